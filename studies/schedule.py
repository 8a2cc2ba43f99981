"""Hands the jobs of a study to an engine; waits for jobs that other processes work on, and retries lost ones."""

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

from records.lock import HERE, IN_USE, holder
from studies.engines.base import Ended, Engine, Job
from studies.planned import PlannedJob
from studies.study_file import CANCEL, log_of, note_failure

TRIES = 3  # in all, of a job that loses its worker each time
LOOK = 2.0  # seconds between two looks at the jobs of other processes


class Cancelled(KeyboardInterrupt):
    """Somebody has asked all processes that work on the study to end."""


def run_jobs(
    planned: Sequence[PlannedJob], engine: Engine, store: Path, program: Path,
    show: Callable[[Sequence[str]], None] = lambda names: None,
) -> Generator[Ended, None, None]:  # fmt: skip
    """Run the jobs in this order and yield each when it has ended; closing the iterator ends the running ones.

    `program`: modelzoo.py or train_task.py.
    A job whose runs are held by another process, such as one that a killed study has left behind, is waited for, and
    yielded when that has finished it. `show` is called once a second with the names of the jobs at work. Raises
    Cancelled when the file `cancel` appears in the store.
    """
    study = _Study(planned, engine, store, program)
    shown = 0.0
    try:
        while study.unfinished:
            ended = list(study.hand_over())
            ended += study.ended()
            yield from ended
            if time.monotonic() - shown >= 1:
                shown = time.monotonic()
                show(study.at_work)
                _check_cancel(store)
            if not ended:
                time.sleep(0.05)
    finally:
        engine.cancel()


def _check_cancel(store: Path) -> None:
    """Raise Cancelled if somebody has asked all processes that work on the study to end."""
    if (store / CANCEL).exists():
        raise Cancelled(f"cancelled by {store / CANCEL}")


def job_of(planned: PlannedJob, store: Path, program: Path) -> Job:
    """The command that begins or resumes the runs of a job."""
    threads = planned.runs[0].config.threads
    return Job(
        planned.name, [sys.executable, str(program), *planned.arguments, "--quiet", "--resume"],
        {} if threads is None else {"OMP_NUM_THREADS": str(threads)}, log_of(store, planned.name),
        [run.directory for run in planned.runs],
    )  # fmt: skip


class _Study:
    """The jobs of a study by what is known of them: waiting, handed over, or in the hands of other processes."""

    def __init__(self, planned: Sequence[PlannedJob], engine: Engine, store: Path, program: Path) -> None:
        self._engine, self._store, self._program = engine, store, program
        self._by_name = {job.name: job for job in planned}
        held = ((name, _held(job)) for name, job in self._by_name.items())
        # Name -> whether a process of this machine works on it.
        self._elsewhere = {name: here for name, here in held if here is not None}
        self._waiting = deque(job for name, job in self._by_name.items() if name not in self._elsewhere)
        self._handed: dict[str, None] = {}  # in their order
        self._losses = Counter[str]()
        self._begin, self._looked = time.perf_counter(), 0.0

    @property
    def unfinished(self) -> bool:
        return bool(self._waiting or self._handed or self._elsewhere)

    @property
    def at_work(self) -> list[str]:
        return [*self._handed, *self._elsewhere]

    def hand_over(self) -> Generator[Ended, None, None]:
        """Give the engine what it has room for; yields jobs that others have finished meanwhile."""
        self._look_elsewhere()
        while self._waiting and self._room() > 0:
            job = self._waiting.popleft()
            if not job.missing:
                yield Ended(job.name, time.perf_counter() - self._begin, "")
            elif (here := _held(job)) is not None:
                self._elsewhere[job.name] = here
            else:
                note_failure(self._store, job.name, "")
                self._handed[job.name] = None
                self._engine.submit(job_of(job, self._store, self._program))

    def ended(self) -> Generator[Ended, None, None]:
        """The jobs that have ended for good; lost ones, and those that another process began first, are put back."""
        for end in self._engine.poll():
            job = self._by_name[end.name]
            del self._handed[end.name]
            if end.failure and job.missing and self._again(end):
                self._waiting.append(job)
                continue
            failure = (end.failure or "it ended without a summary.json") if job.missing else ""
            if failure:  # not a failure if it was asked to end
                _check_cancel(self._store)
            note_failure(self._store, job.name, failure)
            yield replace(end, failure=failure)

    def _again(self, end: Ended) -> bool:
        if end.lost:  # whether its run is free yet or not: a job may bring down every machine that it comes to
            self._losses[end.name] += 1
            return self._losses[end.name] < TRIES
        # Another process was faster to begin, and may have ended by now.
        return IN_USE in end.failure or _held(self._by_name[end.name]) is not None

    def _room(self) -> int:
        here = sum(self._elsewhere.values()) if self._engine.on_this_machine else 0
        return self._engine.room() - here

    def _look_elsewhere(self) -> None:
        """Jobs that nobody holds any more come next."""
        if time.monotonic() - self._looked < LOOK:
            return
        self._looked = time.monotonic()
        for name in list(self._elsewhere):
            if (here := _held(self._by_name[name])) is None:
                del self._elsewhere[name]
                self._waiting.appendleft(self._by_name[name])
            else:
                self._elsewhere[name] = here


def _held(job: PlannedJob) -> bool | None:
    """Whether a process of this machine holds a run of the job; None if nobody does."""
    found = [owner for run in job.runs if (owner := holder(run.directory))]
    return any(owner.get("host") == HERE for owner in found) if found else None
