"""LocalEngine: processes on this machine."""

import os
import signal
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from studies.engines.base import Ended, Engine, Job, Resources

# Between asking a process to end, upon which a run saves its state, and killing it. Jobs do not receive Ctrl-C
# themselves: this process asks them to end, and kills them at the next Ctrl-C.
SECONDS_TO_END = 60
_KILLED = -9


@dataclass(frozen=True)
class _Process:
    job: Job
    process: subprocess.Popen[bytes]
    begin: float
    slot: int


class LocalEngine(Engine):
    """Runs so many jobs at a time, each with its share of the cores and, if they are named, on one of the GPUs.

    A job goes on when the process that started it is killed.
    """

    on_this_machine = True

    def __init__(self, resources: Resources) -> None:
        gpus, each = resources.gpus, resources.jobs_per_gpu
        self._gpus = [str(gpu) for _ in range(each) for gpu in gpus]
        self._slots = resources.slots
        self._threads = str(resources.cpus or max(1, cores() // self._slots))
        self._running: list[_Process] = []

    def room(self) -> int:
        return self._slots - len(self._running)

    def submit(self, job: Job) -> None:
        slot = min({*range(self._slots)} - {running.slot for running in self._running})
        own = {"OMP_NUM_THREADS": self._threads}
        if self._gpus:
            own["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        with open(opened_log(job.log), "ab") as log:
            process = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **own, **job.environment}, start_new_session=True,
            )  # fmt: skip
        self._running.append(_Process(job, process, time.perf_counter(), slot))

    def poll(self) -> list[Ended]:
        ended = [running for running in self._running if running.process.poll() is not None]
        self._running = [running for running in self._running if running not in ended]
        return [
            Ended(of.job.name, time.perf_counter() - of.begin, *failure(of.process.returncode, of.job.log))
            for of in ended
        ]  # fmt: skip

    def cancel(self) -> None:
        stop([running.process for running in self._running])
        self._running = []


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def opened_log(path: Path) -> int:
    """A descriptor to append to a log; a link in its place is not followed."""
    if path.is_symlink():
        path.unlink()
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)


def failure(code: int, log: Path) -> tuple[str, bool]:
    """Why a command failed, in a line, and whether it was killed; an empty text if it did not fail."""
    if code == 0:
        return "", False
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    last = last_line(log)
    return (f"{how}: {last}" if last and code != _KILLED else how), code == _KILLED


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, "" if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def stop(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """Ask processes, each in its own session, to end; if they do not, or at Ctrl-C, kill them and their children."""
    for process in processes:
        process.terminate()
    end = time.monotonic() + SECONDS_TO_END
    try:
        for process in processes:
            process.wait(max(0.0, end - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
