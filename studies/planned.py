"""What a study is to run: runs, the processes that make them, and all of a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods import METHODS
from methods.config import RunConfig
from records.manifest import read_manifest
from records.summary import read_summary
from records.task_config import TaskRunConfig
from studies.replicates import Replicate
from utils.errors import UserError, unknown

if TYPE_CHECKING:
    from studies.published import PublishedTable

SMOKE = ", smoke"  # ends the labels of a quick version of a published table


@dataclass(frozen=True)
class PlannedRun:
    """One run that a grid asks for, finished or not."""

    directory: Path
    name: str  # of the directory within the store
    label: str
    net: str
    config: RunConfig | TaskRunConfig
    arguments: tuple[str, ...]  # of the program that makes this run alone
    untuned: str = ""  # its label without the values of the recipe that vary; "" if none do

    @property
    def table(self) -> str:
        return f"{self.config.stream}, {self.net}"

    @property
    def replicate(self) -> Replicate:
        """Which repetition it is of what it has in common with other runs."""
        order = self.config.data.numbered_order
        return Replicate(self.config.seed, -1 if order is None else order)

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        manifest = read_manifest(self.directory)
        return manifest is not None and manifest.finished

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json, empty if the run is not finished; UserError if it is damaged."""
        return read_summary(self.directory) or {}


@dataclass(frozen=True)
class PlannedJob:
    """Runs that differ only in seed and learning rate, and the arguments of the program for all of them.

    Attributes:
        name: without slashes.
        label: what the runs have in common.
        together: whether one process computes them faster than one each.
    """

    name: str
    arguments: tuple[str, ...]
    runs: tuple[PlannedRun, ...]
    label: str = ""
    together: bool = True

    @property
    def episodes(self) -> int:
        """How many episodes each of its runs has, 1 for those of train_task.py."""
        config = self.runs[0].config
        if not isinstance(config, RunConfig):
            return 1
        tasks = len(config.data.numbers)
        rounds = (config.rounds or tasks) + config.warm_start if "rounds" in METHODS[config.method].options else 1
        return tasks if config.continual else rounds

    @property
    def processes(self) -> "tuple[PlannedJob, ...]":
        """The job itself, or one for each of its runs."""
        if self.together or len(self.runs) == 1:
            return (self,)
        return tuple(PlannedJob(run.name.replace("/", "-"), run.arguments, (run,), self.label) for run in self.runs)

    @property
    def missing(self) -> int:
        """How many of its runs are not finished."""
        return sum(not run.finished for run in self.runs)


@dataclass(frozen=True)
class Grid:
    """All jobs in their order, and the options of their runs in words for the notes below the tables.

    Attributes:
        program: that makes the runs, without .py.
        axes: of train_task, by "stream, network", the settings that vary; an axis may be several that vary together.
        published: tables of others by the name of the stream, or by "stream, network".
        against: the label whose results those of all other labels are compared with; "" for no comparison.
    """

    jobs: tuple[PlannedJob, ...]
    options: str
    program: str = "modelzoo"
    axes: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)
    published: Mapping[str, "PublishedTable"] = field(default_factory=dict)
    against: str = ""

    @property
    def processes(self) -> list[PlannedJob]:
        """All processes, each once: two labels may stand for the same run."""
        return list({process.name: process for job in self.jobs for process in job.processes}.values())

    @property
    def runs(self) -> tuple[PlannedRun, ...]:
        """The runs of all jobs."""
        return tuple(run for job in self.jobs for run in job.runs)


def chosen(grid: Grid, patterns: Sequence[str]) -> Grid:
    """The grid with those jobs alone that have a run whose label or name fits one of the patterns, if there are some.

    In a pattern * stands for any text. UserError for one that no run fits.
    """
    found = set[str]()
    for pattern in patterns or ("*",):
        fitting = [job.name for job in grid.jobs if any(fnmatchcase(name, pattern) for run in job.runs for name in
                   (run.label, run.label.removesuffix(SMOKE), run.name))]  # fmt: skip
        if not fitting:
            labels = dict.fromkeys(run.label.removesuffix(SMOKE) for run in grid.runs)
            raise UserError(f"--only: {unknown('label', pattern, labels)}")
        found.update(fitting)
    return replace(grid, jobs=tuple(job for job in grid.jobs if job.name in found))
