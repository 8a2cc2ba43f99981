"""Run commands as processes, a few at a time."""

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Between asking a process to end, upon which a run saves its state, and killing it. Jobs do not receive Ctrl-C
# themselves: this process asks them to end, and kills them at the next Ctrl-C.
_SECONDS_TO_END = 60


@dataclass(frozen=True)
class Job:
    """A command, additions to its environment, and the file that receives its output."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path


@dataclass(frozen=True)
class Ended:
    """How a job ended; `failure` says why it failed, and is empty if it did not."""

    name: str
    seconds: float
    failure: str


def run_jobs(
    jobs: Iterable[Job], at_a_time: int, lock: int, show: Callable[[Sequence[str]], None] = lambda names: None
) -> Generator[Ended, None, None]:
    """Run the jobs in this order and yield each when it has ended; closing the iterator ends the running ones.

    The jobs inherit `lock`, a descriptor of `locked` (records/lock.py), so that the folder stays locked until they have
    ended even if this process is killed. `show` is called once a second with the names of the running jobs.
    """
    waiting, shown = deque(jobs), 0.0
    running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                job = waiting.popleft()
                job.log.unlink(missing_ok=True)  # it may be a link
                with open(job.log, "xb") as log:
                    child = subprocess.Popen(
                        job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                        env={**os.environ, **job.environment}, pass_fds=(lock,), start_new_session=True,
                    )  # fmt: skip
                running.append((job, child, time.perf_counter()))
            ended = [entry for entry in running if entry[1].poll() is not None]
            running = [entry for entry in running if entry not in ended]
            for job, child, begin in ended:
                yield Ended(job.name, time.perf_counter() - begin, _failure(child.returncode, job.log))
            if time.monotonic() - shown >= 1:
                shown = time.monotonic()
                show([job.name for job, _, _ in running])
            if not ended:
                time.sleep(0.05)
    finally:
        _stop([child for _, child, _ in running])


def _failure(code: int, log: Path) -> str:
    if code == 0:
        return ""
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
    return f"{how}: {lines[-1].strip()}" if lines[-1] else how


def _stop(children: Collection[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    end = time.monotonic() + _SECONDS_TO_END
    try:
        for child in children:
            child.wait(max(0.0, end - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for child in children:
            child.kill()
            child.wait()
