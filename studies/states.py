"""The state of every run and job of a study, from the files of its store; loads neither torch nor any YAML."""

import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from records.lock import holder
from records.manifest import MANIFEST, SUMMARY
from studies.study_file import Study, StudyJob, StudyRun, failed_jobs, failure_of, read_study

FINISHED, RUNNING, FAILED, INTERRUPTED, WAITING = STATES = ("finished", "running", "failed", "interrupted", "waiting")
_CONFIG = "config.yaml"  # that a run was begun


@dataclass(frozen=True)
class RunState:
    """What is known of a run.

    Attributes:
        seconds: wall time up to its last commit, over all processes that worked on it.
        since: when that commit was, in seconds of the epoch; 0 if there was none.
        holder: the process that works on it, see records/lock.py.
    """

    run: StudyRun
    state: str
    episode: int = 0
    seconds: float = 0.0
    since: float = 0.0
    holder: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class JobState:
    """What is known of a process of a study; `failure`: the last line that it printed, if it has failed."""

    job: StudyJob
    runs: tuple[RunState, ...]
    failure: str = ""

    @cached_property
    def state(self) -> str:
        """The first of running, failed, interrupted that one of its runs is; else finished or waiting, if all are."""
        found = {run.state for run in self.runs}
        if len(found) == 1:
            return found.pop()
        return next((state for state in (RUNNING, FAILED) if state in found), INTERRUPTED)

    @property
    def done(self) -> float:
        """The part that is complete, 0 to 1."""
        parts = (1.0 if of.state == FINISHED else min(1.0, of.episode / self.job.episodes) for of in self.runs)
        return sum(parts) / len(self.runs)

    @property
    def seconds(self) -> float:
        """Wall time up to the last commit: its runs are trained at the same time."""
        return max(run.seconds for run in self.runs)

    @property
    def holder(self) -> Mapping[str, object]:
        """The process that works on it, empty if there is none."""
        return next((run.holder for run in self.runs if run.holder), {})

    @property
    def progress(self) -> str:
        """What is complete, in words."""
        if len(self.runs) > 1:
            return f"{sum(run.state == FINISHED for run in self.runs)} of {len(self.runs)} runs"
        return f"{self.runs[0].episode} of {self.job.episodes} episode{'s' * (self.job.episodes != 1)}"

    @property
    def cell(self) -> tuple[str, str, str]:
        """What it has in common with jobs that take as long: all but the seed."""
        first = self.runs[0].run
        return first.stream, first.net, first.label


@dataclass(frozen=True)
class StudyState:
    """The states of all jobs at one time, in seconds of the epoch."""

    study: Study
    jobs: Sequence[JobState]
    now: float

    @property
    def runs(self) -> list[RunState]:
        """The runs of all jobs."""
        return [run for job in self.jobs for run in job.runs]

    def among(self, state: str) -> list[JobState]:
        """The jobs in a state."""
        return [job for job in self.jobs if job.state == state]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many runs are in each state."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES}

    @property
    def done(self) -> float:
        """The part of the study that is complete, 0 to 1, each run counted alike."""
        return sum(job.done * len(job.runs) for job in self.jobs) / (len(self.runs) or 1)

    @property
    def over(self) -> bool:
        """Whether every run has finished or failed."""
        return not any(self.counts[state] for state in (RUNNING, INTERRUPTED, WAITING))

    def remaining(self, job: JobState) -> float | None:
        """Seconds until a job is finished, if it runs now; None if nothing is known of its speed.

        A job takes as long as the mean of the finished ones of its cell, else of its network and stream, else of all.
        Where none is finished, progress counts: seconds so far / the part that is complete.
        """
        if job.state == FINISHED:
            return 0.0
        stream, net, _ = job.cell
        known = (self._lengths.get(key) for key in (job.cell, (stream, net), ()))
        length = next((each for each in known if each is not None), None)
        if length is None:
            return None
        return max(0.0, length - job.seconds - (self.now - _begin(job) if job.state == RUNNING else 0.0))

    @cached_property
    def left(self) -> float | None:
        """Seconds until all jobs are finished if as many as now, at least one, run at a time; None if unknown."""
        each = [self.remaining(job) for job in self.jobs]
        running = [self.remaining(job) or 0.0 for job in self.among(RUNNING)]
        if any(seconds is None for seconds in each):
            return None
        return max([sum(seconds or 0.0 for seconds in each) / max(1, len(running)), *running])

    @cached_property
    def _lengths(self) -> dict[tuple[str, ...], float]:
        """Mean seconds of a whole job by cell, by stream and network, and of all."""
        measured = [(job, job.seconds) for job in self.jobs if job.state == FINISHED]
        begun = [(job, job.seconds / job.done) for job in self.jobs if job.state != FINISHED and job.done]
        found: dict[tuple[str, ...], list[float]] = {}
        for jobs in (measured, begun):
            more: dict[tuple[str, ...], list[float]] = {}
            for job, seconds in jobs:
                for key in (job.cell, job.cell[:2], ()):
                    more.setdefault(key, []).append(seconds)
            found = more | found
        return {key: statistics.fmean(values) for key, values in found.items()}

    def to_json(self) -> dict[str, Any]:
        """All of it but the names of runs that are finished or waiting."""
        return {
            "command": self.study.command, "engine": self.study.engine, "runs": len(self.runs), "states": self.counts,
            "done": self.done, "remaining_seconds": self.left,
            "running": [
                {"name": job.job.name, **job.holder, "done": job.done, "remaining_seconds": self.remaining(job)}
                for job in self.among(RUNNING)
            ],
            "failed": [{"name": job.job.name, "failure": job.failure} for job in self.among(FAILED)],
            "interrupted": [{"name": job.job.name, "done": job.done} for job in self.among(INTERRUPTED)],
        }  # fmt: skip


def study_state(store: Path, before: StudyState | None = None) -> StudyState:
    """The state of the study in a store; UserError if it holds none.

    `before`, an earlier state, saves time: what was finished then is not looked at again.
    """
    study, failed, jobs = read_study(store), failed_jobs(store), list[JobState]()
    known = {run.run: run for run in (before.runs if before else ()) if run.state == FINISHED}
    for job in study.jobs:
        runs = tuple(known.get(run) or run_state(store, run, job.name in failed) for run in job.runs)
        jobs.append(JobState(job, runs, failure_of(store, job.name) if job.name in failed else ""))
    return StudyState(study, jobs, time.time())


def run_state(store: Path, run: StudyRun, failed: bool) -> RunState:
    """The state of a run; `failed`: whether its job has when it was run last. Checksums are not looked at."""
    directory = store / run.name
    content, since = _read_manifest(directory)
    episode, seconds = content.get("episode", 0), content.get("seconds", 0.0)
    if SUMMARY in content.get("files", {}):
        return RunState(run, FINISHED, episode, seconds, since)
    owner = holder(directory)
    begun = bool(content) or (directory / _CONFIG).exists()
    state = RUNNING if owner else FAILED if failed else INTERRUPTED if begun else WAITING
    return RunState(run, state, episode, seconds, since, owner)


def _read_manifest(directory: Path) -> tuple[dict[str, Any], float]:
    """Its content and time; empty if there is none, or a damaged one, of which the run itself will tell."""
    kinds: dict[str, Any] = {"episode": int, "seconds": (int, float), "files": dict}
    try:
        with open(os.open(directory / MANIFEST, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            content, since = json.loads(file.read()), os.fstat(file.fileno()).st_mtime
        well = isinstance(content, dict) and all(isinstance(content[key], kind) for key, kind in kinds.items())
        return (content, since) if well else ({}, 0.0)
    except (OSError, ValueError, KeyError, RecursionError):
        return {}, 0.0


def _begin(job: JobState) -> float:
    """When the part of a running job began that its seconds do not count yet, in seconds of the epoch."""
    taken = 0.0
    try:
        taken = datetime.strptime(str(job.holder.get("since")), "%Y-%m-%d %H:%M:%S").timestamp()
    except ValueError:  # written by another version
        taken = time.time()
    return max([taken, *(run.since for run in job.runs)])
