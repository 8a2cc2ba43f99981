"""Speed of training beside other processes, against its fair share of the machine.

    python perf/shared_machine.py [--busy 0 1 2 4] [--repeats 3] [--seconds 3]

bare loop: images per second of forward, backward and optimizer step on one fixed batch. auto: as the programs choose;
spinning: all cores, threads spin while they wait (OpenMP's default); passive: all cores, threads sleep while they wait;
one: one thread. demo: runs per hour of `make demo`, imports and files included. Busy processes run endless loops. fair:
the rate of the fastest way on the quiet machine, scaled to an equal share of the cores. fair/auto: how much longer
auto takes. Every measurement is a new process; the ways are taken in turn.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import common
import torch
from common import BATCH, CASES, CIFAR_WRN, PROJECT, bare_step, fixed_batch, in_turn, title

from training.optimizers import make_optimizer
from training.recipe import Recipe
from training.threads import use_threads
from utils.compute import keep_freed_memory
from utils.machine import WAITING

CPU = torch.device("cpu")
LOOPS = {case.name: case for case in CASES if case != CIFAR_WRN}
# Environment variables of each way; `loop` sets the number of threads.
WAYS = {"auto": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "passive"}, "one": {}}
DEMO = "--data_config config/dataset/rotated_digits.yaml --continual --samples 10 --hold_out 0.2 --epochs 20 --quiet"
OWN = (*WAITING, "OMP_NUM_THREADS")
FREE = {name: value for name, value in os.environ.items() if name not in OWN}


def loop(name: str, way: str, seconds: float) -> tuple[float, float]:
    """Images per second of a bare loop in this process, and the number of cores that it used."""
    case = LOOPS[name]
    keep_freed_memory()
    net = common.network(case)
    if way == "auto":
        use_threads(net.trunk, case.shape, BATCH, CPU)
    if way == "one":
        torch.set_num_threads(1)
    step = bare_step(net, make_optimizer(net, Recipe(batch=BATCH), 0.01), fixed_batch(case, CPU))
    step()
    begin, used, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        step()
        steps += 1
    passed = time.perf_counter() - begin
    return steps * BATCH / passed, (time.process_time() - used) / passed


class TimedCommand:
    """A command whose call returns the rate of a bare loop, or the runs per hour of another program.

    Attributes:
        cores: the number of cores used in each call.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = [sys.executable, *command], {**FREE, **environment}
        self.cores: list[float] = []

    def __call__(self) -> float:
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        options = {"env": self._environment, "cwd": PROJECT, "capture_output": True, "text": True, "check": True}
        done = subprocess.run(self._command, **options)  # type: ignore[call-overload]
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        if "--loop" in self._command:
            rate, cores = map(float, done.stdout.split())
        else:
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            rate, cores = 3600 / seconds, used / seconds
        self.cores.append(cores)
        return rate


@contextmanager
def beside(busy: int) -> Iterator[None]:
    """Run busy processes meanwhile, each in its own session like those of other users."""
    # They end with this process, however it ends.
    endless = [sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(100_000))"]
    processes = [subprocess.Popen(endless, start_new_session=True) for _ in range(busy)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def share(cores: int, busy: int) -> float:
    """The cores that a program gets if all processes share them equally."""
    return max(cores / (busy + 1), cores - busy)


def measured(ways: Mapping[str, TimedCommand], busy: int, repeats: int) -> dict[str, float]:
    """The median rate of each way beside so many busy processes."""
    with beside(busy):
        time.sleep(1)
        columns = in_turn(list(ways.values()), repeats)
    return {way: median(column) for way, column in zip(ways, columns, strict=True)}


def compare(name: str, ways: Mapping[str, TimedCommand], busy: list[int], repeats: int) -> None:
    """Print a line for each number of busy processes, first for none."""
    cores = len(os.sched_getaffinity(0))
    quiet = measured(ways, 0, repeats)
    best = max(quiet, key=lambda way: quiet[way])
    used = median(ways[best].cores)
    for count in sorted({0, *busy}):
        rates = measured(ways, count, repeats) if count else quiet
        fair = quiet[best] * min(1, share(cores, count) / used)
        columns = " ".join(f"{rates[way]:>9,.0f}" if way in rates else f"{'':>9}" for way in WAYS)
        print(f"{name:<12} {count:>5} {columns} {fair:>9,.0f} {fair / rates['auto']:>10.2f}", flush=True)


def main() -> None:
    """Print one table."""
    parser = common.parser(__doc__, device=False)
    parser.add_argument("--busy", type=int, nargs="+", default=[1, 2, 4], help="busy processes (default: 1 2 4)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a bare loop (default: 3)")
    parser.add_argument("--loop", nargs=2, metavar=("CASE", "WAY"), help="only this one, in this process")
    options = parser.parse_args()
    if options.loop:
        print(*loop(options.loop[0], options.loop[1], options.seconds))
        return
    print(f"A shared machine: images/s, batch {BATCH}; demo: runs/h. {title(CPU)}")
    print(f"{'':<12} {'busy':>5} {' '.join(f'{way:>9}' for way in WAYS)} {'fair':>9} {'fair/auto':>10}")
    script = "perf/shared_machine.py"
    for name in LOOPS:
        commands = {way: [script, "--seconds", str(options.seconds), "--loop", name, way] for way in WAYS}
        ways = {way: TimedCommand(command, WAYS[way]) for way, command in commands.items()}
        compare(name, ways, options.busy, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        command = ["modelzoo.py", *DEMO.split(), "--overwrite", "--run_dir", f"{folder}/demo"]
        compare("demo", {"auto": TimedCommand(command, {})}, options.busy, options.repeats)


if __name__ == "__main__":
    main()
