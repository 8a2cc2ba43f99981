"""Training beside other processes, against the share of the machine that it could have.

    python perf/shared_machine.py [--busy 0 1 2 4] [--repeats 3] [--seconds 3]

bare loop: images per second of forward, backward and optimizer step on one batch in place. auto: as programs choose;
spinning: all cores, and threads that spin while they wait, as OpenMP does by itself; passive: all cores, and threads
that sleep; one: one thread. demo: runs an hour of the zoo of `make demo`, imports and files included. Busy processes
count without end. fair: the rate of the fastest way on the quiet machine, as far as the share of the cores allows,
which all processes divide equally. fair/auto: how many times as long as that auto takes. Every measurement is a
process of its own; the ways are taken in turn.
"""

from __future__ import annotations

import argparse
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
from common import BATCH, CASES, CIFAR_WRN, DROPOUT, PROJECT, bare_step, fixed_batch, in_turn, title

from net import build_net, settings_class
from training.optimizers import make_optimizer
from training.recipe import Recipe
from training.threads import use_threads
from utils.compute import keep_freed_memory
from utils.machine import WAITING

CPU = torch.device("cpu")
LOOPS = {case.name: case for case in CASES if case != CIFAR_WRN}
# What is put into the environment; how many threads is said in `loop`.
WAYS = {"auto": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "passive"}, "one": {}}
DEMO = "--data_config config/dataset/rotated_digits.yaml --continual --samples 10 --hold_out 0.2 --epochs 20 --quiet"
OWN = (*WAITING, "OMP_NUM_THREADS")
FREE = {name: value for name, value in os.environ.items() if name not in OWN}


def loop(name: str, way: str, seconds: float) -> tuple[float, float]:
    """Images per second of a bare loop in this process, and how many cores it used."""
    case = LOOPS[name]
    keep_freed_memory()
    heads = dict.fromkeys(range(1, common.TASKS + 1), common.CLASSES)
    net = build_net(case.model, case.shape, settings_class(case.model)(dropout=DROPOUT), heads)
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


class Measurement:
    """The rate of a bare loop, or how often another command could run in an hour.

    Attributes:
        cores: how many were used while it ran, each time.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = [sys.executable, *command], {**FREE, **environment}
        self.cores: list[float] = []

    def __call__(self) -> float:
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            self._command, env=self._environment, cwd=PROJECT, capture_output=True, text=True, check=True
        )
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
    """Busy processes, each in a session of its own like those of other users."""
    endless = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(endless, start_new_session=True) for _ in range(busy)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def share(cores: int, busy: int) -> float:
    """Of the cores, if all processes divide them equally."""
    return max(cores / (busy + 1), cores - busy)


def measured(ways: Mapping[str, Measurement], busy: int, repeats: int) -> dict[str, float]:
    """Median rates."""
    with beside(busy):
        time.sleep(1)
        columns = in_turn(list(ways.values()), repeats)
    return {way: median(column) for way, column in zip(ways, columns, strict=True)}


def compare(name: str, ways: Mapping[str, Measurement], busy: list[int], repeats: int) -> None:
    """Print a line for each number of busy processes; the quiet machine comes first."""
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--busy", type=int, nargs="+", default=[1, 2, 4], help="busy processes (default: 1 2 4)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of measurements (default: 3)")
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
        ways = {way: Measurement(command, WAYS[way]) for way, command in commands.items()}
        compare(name, ways, options.busy, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        command = ["modelzoo.py", *DEMO.split(), "--overwrite", "--run_dir", f"{folder}/demo"]
        compare("demo", {"auto": Measurement(command, {})}, options.busy, options.repeats)


if __name__ == "__main__":
    main()
