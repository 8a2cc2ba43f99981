"""Speed of training beside other processes, against its fair share of the machine.

    python perf/shared_machine.py [--repeats 3] [--seconds 3]

Images per second of forward, backward and optimizer step on one fixed batch. auto: as the programs choose; spinning:
all cores, threads spin while they wait (OpenMP's default); passive: all cores, threads sleep while they wait; one: one
thread. Busy processes run endless loops. fair: the rate of the fastest way on the quiet machine, scaled to an equal
share of the cores. fair/auto: how much longer auto takes. Every measurement is a new process; the ways are taken in
turn.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import common
import torch
from common import BATCH, CASES, CIFAR_WRN, Case, in_turn, line, seconds_a_call, step_of, title

from training.threads import use_threads
from utils.machine import WAITING

CPU = torch.device("cpu")
LOOPS = {case.name: case for case in CASES if case != CIFAR_WRN}
# Environment variables of each way; `loop` sets the number of threads.
WAYS = {"auto": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}, "passive": {"OMP_WAIT_POLICY": "passive"}, "one": {}}
FREE = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_NUM_THREADS")}
BUSY = (0, 1, 2, 4)


def loop(case: Case, way: str, seconds: float) -> tuple[float, float]:
    """Images per second of a bare loop in this process, and the number of cores that it used."""
    net = common.network(case)
    if way == "auto":
        use_threads(net.trunk, case.shape, BATCH, CPU)
    if way == "one":
        torch.set_num_threads(1)
    step = step_of(net, case, CPU)
    step()
    begin, used = time.perf_counter(), time.process_time()
    rate = BATCH / seconds_a_call(step, CPU, seconds)
    return rate, (time.process_time() - used) / (time.perf_counter() - begin)


def measured(name: str, way: str, seconds: float) -> tuple[float, float]:
    """The result of `loop` in a new process."""
    command = [sys.executable, __file__, "--seconds", str(seconds), "--loop", name, "--way", way]
    done = subprocess.run(command, env={**FREE, **WAYS[way]}, stdout=subprocess.PIPE, text=True, check=True)
    rate, cores = map(float, done.stdout.split())
    return rate, cores


@contextmanager
def beside(busy: int) -> Iterator[None]:
    """Run busy processes meanwhile, each in its own session like those of other users."""
    # They end with this process, however it ends.
    endless = [sys.executable, "-c", f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(100_000))"]
    processes = [subprocess.Popen(endless, start_new_session=True) for _ in range(busy)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compare(name: str, seconds: float, repeats: int) -> None:
    """Print a line for each number of busy processes, first for none."""
    cores, best, used = len(os.sched_getaffinity(0)), 0.0, 1.0
    for busy in BUSY:
        with beside(busy):
            columns = in_turn([partial(measured, name, way, seconds) for way in WAYS], repeats)
        # Rate, and the number of cores used, of each way.
        found = [tuple(median(values) for values in zip(*column, strict=True)) for column in columns]
        if not busy:
            best, used = max(found)
        share = max(cores / (busy + 1), cores - busy)  # if all processes share the cores equally
        fair = best * min(1, share / used)
        rates = [f"{rate:,.0f}" for rate, _ in found]
        line(f"{name}, {busy} busy", *rates, f"{fair:,.0f}", f"{fair / found[0][0]:.2f}")


def main() -> None:
    options = common.options(__doc__, repeats=3, seconds=3.0, loop="", way="auto")
    if options.loop:  # one measurement, in this process
        print(*loop(LOOPS[options.loop], options.way, options.seconds))
        return
    print(f"A shared machine: images/s, batch {BATCH}. {title(CPU)}")
    line("", *WAYS, "fair", "fair/auto")
    for name in LOOPS:
        compare(name, options.seconds, options.repeats)


if __name__ == "__main__":
    main()
