"""study.json in a store: what a study consists of, so that it can be looked at from anywhere; failures of its jobs."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import UserError, one_line
from utils.files import json_bytes, write_bytes

if TYPE_CHECKING:
    from studies.planned import PlannedJob  # loads torch

STUDY = "study.json"
CANCEL = "cancel"  # a file that asks every process that works on the study to end
LOGS = "logs"
_FORMAT = 1


@dataclass(frozen=True)
class StudyRun:
    """A run of a study; `name`: its directory within the store."""

    name: str
    label: str
    stream: str
    net: str
    seed: int


@dataclass(frozen=True)
class StudyJob:
    """One process of a study; `episodes`: how many each of its runs has, 1 for those of train_task.py."""

    name: str
    episodes: int
    runs: tuple[StudyRun, ...]


@dataclass(frozen=True)
class Study:
    """What a store is filled with.

    Attributes:
        command: that fills it, for people.
        config: the path of its grid, absolute.
        paper: whether that is a published table.
        program: that makes the runs, without .py.
        engine: that computes them.
        smoke: whether it is a quick version of a published table.
        data_dir: where the data of a published table lies; None for the place that its file says.
        search: whether it is a search, which plans its runs as it goes.
    """

    command: str
    config: str
    paper: bool
    program: str
    engine: str
    jobs: tuple[StudyJob, ...]
    smoke: bool = False
    data_dir: str | None = None
    search: bool = False

    def write(self, store: Path) -> None:
        write_bytes(store / STUDY, json_bytes({"format": _FORMAT, **asdict(self)}))


def study_job(job: "PlannedJob") -> StudyJob:
    """What study.json says of a process."""
    runs = (StudyRun(run.name, run.label, run.config.stream, run.net, run.config.seed) for run in job.runs)
    return StudyJob(job.name, job.episodes, tuple(runs))


def read_study(store: Path) -> Study:
    """The study of a store; UserError if there is none, or it is damaged."""
    path = store / STUDY
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format") != _FORMAT:
            raise UserError(f"{path} was written by another version; the command of the study writes it again")
        jobs = tuple(map(_read_job, content.pop("jobs")))
        return Study(**content, jobs=jobs)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"--store {store} holds no study (it has no {STUDY}); benchmark.py --config makes one"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); the command of the study writes it again") from None


def check_kind(store: Path, *, search: bool) -> None:
    """UserError if a store holds a search and is to be filled by a grid, or the other way round."""
    try:
        found = read_study(store).search
    except UserError:  # there is none, or it is damaged and written again
        return
    if found != search:
        raise UserError(f"--store {store} holds a {'grid' if search else 'search'}; name another folder")


def _read_job(content: dict[str, Any]) -> StudyJob:
    job = StudyJob(content["name"], content["episodes"], tuple(StudyRun(**run) for run in content["runs"]))
    names = [job.name, *(run.name for run in job.runs)]
    if not all(isinstance(name, str) for name in names) or not job.runs or job.episodes < 1:
        raise ValueError(f"{one_line(names)[:200]} is no job")
    return job


def log_of(store: Path, job: str) -> Path:
    """The file that receives what a job prints."""
    return store / LOGS / f"{job}.log"


def failure_of(store: Path, job: str) -> str:
    """Why a job has failed when it was run last; empty if it has not."""
    try:
        return _failed(store, job).read_text(encoding="utf-8", errors="replace").strip() or "failed"
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:  # a folder, or of another user
        return f"failed; why cannot be read ({error.strerror})"


def note_failure(store: Path, job: str, failure: str) -> None:
    """Keep why a job has failed, or forget it, with an empty text."""
    if failure:
        write_bytes(_failed(store, job), f"{failure}\n".encode())
    else:
        with suppress(OSError):
            _failed(store, job).unlink()


def failed_jobs(store: Path) -> set[str]:
    """The names of the jobs that have failed when they were run last."""
    return {path.stem for path in (store / LOGS).glob("*.failed")}


def _failed(store: Path, job: str) -> Path:
    return store / LOGS / f"{job}.failed"
