"""What an engine is: it runs the jobs of a study, on this machine or on others."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A command, additions to its environment, and the file that its output is appended to.

    Attributes:
        name: without slashes, unique within a study.
        command: is run in the current directory.
        runs: the run directories that it makes.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    runs: Sequence[Path] = ()


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        failure: why it failed in one line, empty if it did not.
        lost: it was killed from outside, or its machine went away: worth another try.
    """

    name: str
    seconds: float
    failure: str
    lost: bool = False


@dataclass(frozen=True)
class Resources:
    """What the command line of a study says about where its jobs run.

    Attributes:
        store: the folder of the study; all machines see it by this path.
        jobs: at a time; None: as many as have a GPU, or one, and on a cluster as many as its engine takes.
        gpus: numbers of the GPUs that jobs on this machine share; empty for those that they choose themselves.
        jobs_per_gpu: how many share one GPU, on every engine.
        cpus: cores of a job; None for an equal share of this machine.
        address: of the Ray cluster; "auto" finds the one of this machine, None starts one.
        slurm: options of sbatch, such as partition and time.
    """

    store: Path
    jobs: int | None = None
    gpus: Sequence[int] = ()
    jobs_per_gpu: int = 1
    cpus: int | None = None
    address: str | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many jobs run at a time on this machine."""
        return self.jobs or len(self.gpus) * self.jobs_per_gpu or 1


class Engine(ABC):
    """Runs jobs; used by one process, from one thread."""

    on_this_machine = False  # whether its jobs share this machine with those that other processes started

    @abstractmethod
    def room(self) -> int:
        """How many more jobs it takes now."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Run a job as soon as possible; UserError if the engine cannot run anything."""

    @abstractmethod
    def poll(self) -> list[Ended]:
        """The jobs that have ended since the last call; does not wait."""

    @abstractmethod
    def cancel(self) -> None:
        """Ask all jobs to end, upon which they save their state, and wait until they have; then free what it uses."""
