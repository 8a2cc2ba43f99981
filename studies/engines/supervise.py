"""supervise: what another machine does for an engine, run the commands of jobs and end them when it is asked to."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from records.lock import holder
from studies.engines.base import Job
from studies.engines.local import failure, opened_log, stop
from utils.errors import SignalError, handling

_ASKED = (signal.SIGTERM, signal.SIGUSR2)  # Slurm: by preemption and scancel; by submitit's --signal before a limit
_CHILD = Path(__file__).with_name("child.py")
SECONDS_FOR_LEASES = 60  # for the process of a lost worker, which saves its state


@dataclass(frozen=True)
class Order:
    """A job as another machine needs it: all paths are absolute, and it begins in `folder`."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    log: Path
    runs: Sequence[Path]


@dataclass(frozen=True)
class Outcome:
    """How an order ended, see Ended; stopped: it was asked to end before it was done."""

    seconds: float
    failure: str = ""
    lost: bool = False
    stopped: bool = False


def order_of(job: Job, threads: int) -> Order:
    """The order to run a job as if it were started here, on so many cores."""
    environment = {"OMP_NUM_THREADS": str(threads), **job.environment}
    return Order(tuple(job.command), environment, Path.cwd(), job.log.absolute(), [run.absolute() for run in job.runs])


def supervise(orders: Sequence[Order]) -> list[Outcome]:
    """Run them side by side, and return when all have ended; an exception that a signal raises ends them first.

    Each runs in a session of its own and is asked to end if this process dies. Runs that another process holds are
    waited for; orders whose runs are held for long are lost.
    """
    begin, ended = time.perf_counter(), dict[int, float]()
    processes: dict[int, subprocess.Popen[bytes]] = {}
    try:
        held = _held(orders)
        for number, order in enumerate(orders):
            if number not in held:
                processes[number] = _started(order)
        while len(ended) < len(processes):
            for number, process in processes.items():
                if number not in ended and process.poll() is not None:
                    ended[number] = time.perf_counter() - begin
            time.sleep(0.05)  # an exception raised by a signal handler must not wait for a system call to return
    except BaseException:
        for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):  # they are ending already
            signal.signal(asked, signal.SIG_IGN)
        stop(list(processes.values()))
        raise
    outcomes = {
        number: Outcome(ended[number], *failure(process.returncode, orders[number].log))
        for number, process in processes.items()
    }
    outcomes |= {number: Outcome(time.perf_counter() - begin, why, lost=True) for number, why in held.items()}
    return [outcomes[number] for number in range(len(orders))]


def run_pack(orders: Sequence[Order]) -> list[Outcome]:
    """Run them within a Slurm job; if that is to end, they are asked to end before, and counted as stopped."""
    begin = time.perf_counter()

    def end(number: int, frame: FrameType | None) -> None:
        for asked in _ASKED:
            signal.signal(asked, signal.SIG_IGN)
        raise SignalError(number)

    with handling(end, *_ASKED):  # instead of submitit's own handlers
        try:
            return supervise(orders)
        except SignalError as error:
            return [Outcome(time.perf_counter() - begin, str(error), lost=True, stopped=True)] * len(orders)


def _held(orders: Sequence[Order]) -> dict[int, str]:
    """The orders that have runs in the hands of another process even after a while, and a line about each."""
    end = time.monotonic() + SECONDS_FOR_LEASES
    while True:
        held = {
            number: f"{run} is in use on {owner.get('host', 'another machine')}"
            for number, order in enumerate(orders)
            for run in order.runs
            if (owner := holder(run))
        }
        if not held or time.monotonic() > end:
            return held
        time.sleep(0.5)


def _started(order: Order) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), *order.command]
    with open(opened_log(order.log), "ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=order.folder,
            env={**os.environ, **order.environment}, start_new_session=True,
        )  # fmt: skip
