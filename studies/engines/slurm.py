"""SlurmEngine: the queue of a cluster, through submitit."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.engines.base import Ended, Engine, Job, Resources
from studies.engines.local import last_line
from studies.engines.supervise import Outcome, order_of, run_pack
from utils.errors import UserError

FOLDER = "slurm"  # in the store: <job>.json says where in the queue a job is, submitit/ has what submitit writes
_PROJECT = Path(__file__).resolve().parents[2]
_MANY = 10_000
_ARRAY = 1000  # jobs of one array; Slurm takes 1001, unless its administrator has changed that
_SECONDS_BETWEEN = 15.0  # two questions to the queue; results are looked for more often, but not by asking it
SECONDS_TO_END = 60
_MOST_STOPS = 100  # how often a job goes on after a time limit or a preemption
_FINAL = ("CANCELLED", "DEADLINE", "FAILED", "OUT_OF_MEMORY")  # states in which another try would end the same way


@dataclass
class _Handed:
    """A job in the queue: the Slurm job, and its place in it, as several may share a GPU."""

    job: Job
    slurm: Any
    place: int
    stops: int = 0
    absent: int = 0  # how often the queue was asked and did not have it


class SlurmEngine(Engine):
    """Queues jobs, many at a time as an array; with jobs_per_gpu so many run side by side in each Slurm job.

    All machines have the code, the Python, the store and the current folder under the same paths. Queued and running
    jobs stay when this process ends; a new one adopts them by the ids in the store. Before a time limit or a preemption
    a run saves its state, and its job is queued again here; Slurm itself does not (--no-requeue), so that no job is in
    the queue twice. A job whose machine is lost is reported as lost.

    UserError without submitit or Slurm, or if sbatch refuses a job.
    """

    def __init__(self, resources: Resources, seconds_between: float = _SECONDS_BETWEEN) -> None:
        self._folder = resources.store.absolute() / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._cpus, self._pack = resources.cpus or 1, resources.jobs_per_gpu
        self._submitit, self._executor = _executor(self._folder / "submitit", resources)
        self._most = resources.jobs or _MANY
        self._waiting: list[tuple[Job, int]] = []
        self._handed: list[_Handed] = []
        self._seconds = seconds_between
        self._in_queue, self._asked, self._looked = _queue(), time.monotonic(), -1.0

    def room(self) -> int:
        return self._most - len(self._waiting) - len(self._handed)

    def submit(self, job: Job) -> None:
        kept = _record(self._folder, job.name)
        if kept.get("id") in self._in_queue:
            slurm = self._submitit.SlurmJob(self._folder / "submitit", kept["id"])
            if not slurm.paths.result_pickle.exists():
                self._handed.append(_Handed(job, slurm, kept["place"]))
                return
        self._waiting.append((job, 0))

    def poll(self) -> list[Ended]:
        self._hand_over()
        if time.monotonic() - self._looked < self._seconds / 10:
            return []
        self._looked, fresh = time.monotonic(), False
        if time.monotonic() - self._asked >= self._seconds:
            with suppress(UserError):  # the queue may answer the next time
                self._in_queue, self._asked, fresh = _queue(), time.monotonic(), True
        results = {path.name for path in (self._folder / "submitit").glob("*_result.pkl")}
        ended = []
        for handed in list(self._handed):
            outcome = self._outcome(handed, results, fresh)
            if outcome is None:
                continue
            self._handed.remove(handed)
            self._forget(handed, outcome)
            if outcome.stopped and handed.stops < _MOST_STOPS:
                self._waiting.append((handed.job, handed.stops + 1))
            else:
                ended.append(Ended(handed.job.name, outcome.seconds, outcome.failure, outcome.lost))
        return ended

    def cancel(self) -> None:
        self._waiting = []
        ids = {handed.slurm.job_id for handed in self._handed}
        _scancel(ids)
        end = time.monotonic() + SECONDS_TO_END
        with suppress(KeyboardInterrupt, UserError):  # Slurm kills them
            while ids & _queue() and time.monotonic() < end:
                time.sleep(self._seconds / 10)
        for handed in self._handed:
            (self._folder / f"{handed.job.name}.json").unlink(missing_ok=True)
        self._handed = []

    def _hand_over(self) -> None:
        """Submit what waits."""
        while self._waiting:
            batch, self._waiting = self._waiting[: _ARRAY * self._pack], self._waiting[_ARRAY * self._pack :]
            packs = [batch[start : start + self._pack] for start in range(0, len(batch), self._pack)]
            try:
                with self._executor.batch():
                    slurms = [
                        self._executor.submit(run_pack, [order_of(job, self._cpus) for job, _ in pack])
                        for pack in packs
                    ]
            except (self._submitit.core.utils.FailedJobError, OSError) as error:
                raise UserError(f"sbatch refuses a job: {' '.join(str(error).split())}") from None
            for pack, slurm in zip(packs, slurms, strict=True):
                for place, (job, stops) in enumerate(pack):
                    kept = {"id": slurm.job_id, "place": place}
                    (self._folder / f"{job.name}.json").write_text(json.dumps(kept))
                    self._handed.append(_Handed(job, slurm, place, stops))
                self._in_queue.add(slurm.job_id)

    def _outcome(self, handed: _Handed, results: Collection[str], fresh: bool) -> Outcome | None:
        """How a job has ended, None if it has not; `fresh`: the queue was asked since the last call."""
        slurm, stopped = handed.slurm, None
        if slurm.paths.result_pickle.name in results:
            kind, value = self._submitit.core.utils.pickle_load(slurm.paths.result_pickle)
            if kind == "error":  # in our own function, such as a log that cannot be written
                return Outcome(0.0, value.strip().split("\n")[-1])
            if not value[handed.place].stopped:
                return value[handed.place]
            stopped = value[handed.place]
        handed.absent += fresh and slurm.job_id not in self._in_queue
        if handed.absent < (1 if stopped else 2):  # a network disk may show the result late
            return None
        slurm.watcher.update()
        state = slurm.watcher.get_state(slurm.job_id, mode="cache").split()[0]
        if stopped and state != "CANCELLED":
            return stopped
        last = last_line(slurm.paths.stderr)
        failure = f"{state} in Slurm" + (f": {last}" if last and state == "FAILED" else "")
        return Outcome(0.0, failure, lost=state not in _FINAL)

    def _forget(self, handed: _Handed, outcome: Outcome) -> None:
        """Remove the files about a job that has ended; what submitit printed about a failure stays."""
        (self._folder / f"{handed.job.name}.json").unlink(missing_ok=True)
        if any(other.slurm.job_id == handed.slurm.job_id for other in self._handed):
            return
        paths = handed.slurm.paths
        for path in (
            paths.result_pickle,
            paths.submitted_pickle,
            *[paths.stdout, paths.stderr] * (not outcome.failure),
        ):
            path.unlink(missing_ok=True)


def cancel_slurm(store: Path) -> int:
    """Cancel the jobs of a store that are in the queue, whoever has queued them, and return their number."""
    folder = store / FOLDER
    kept = {path.stem: _record(folder, path.stem).get("id") for path in folder.glob("*.json")}
    if not kept:
        return 0
    queue = _queue()
    _scancel({found for found in kept.values() if found in queue})
    return sum(found in queue for found in kept.values())


def _executor(folder: Path, resources: Resources) -> tuple[Any, Any]:
    """The module submitit, and what submits."""
    try:
        import submitit
    except ImportError:
        raise UserError("--engine slurm needs submitit: pip install -r requirements-optional.txt") from None
    given: dict[str, Any] = {key.replace("-", "_"): value for key, value in resources.slurm.items()}
    cpus = (resources.cpus or 1) * resources.jobs_per_gpu
    if resources.jobs_per_gpu > 1 and not any(key.startswith(("gpus", "gres")) for key in given):
        given["gpus_per_node"] = 1
    try:
        executor = submitit.SlurmExecutor(folder)
    except RuntimeError:
        raise UserError("--engine slurm runs where sbatch and srun are; they are not found here") from None
    path = os.pathsep.join(filter(None, [str(_PROJECT), os.environ.get("PYTHONPATH")]))
    executor.update_parameters(
        job_name="modelzoo", time=None, wckey=None, cpus_per_task=cpus, array_parallelism=_ARRAY,
        additional_parameters={"no_requeue": True, **given}, setup=[f"export PYTHONPATH={shlex.quote(path)}"],
        srun_args=[f"--cpus-per-task={cpus}"],  # srun does not take it over from sbatch any more
    )  # fmt: skip
    return submitit, executor


def _queue() -> set[str]:
    """The ids of this user's jobs in the queue, of each job of an array alone."""
    try:
        told = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("--engine slurm runs where squeue is; it is not found here") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"squeue does not answer: {' '.join(error.stderr.split())}") from None
    return set(told.stdout.split())


def _scancel(ids: Collection[str]) -> None:
    if ids:
        subprocess.run(["scancel", *sorted(ids)], capture_output=True, check=False)


def _record(folder: Path, name: str) -> dict[str, Any]:
    """Where a job is in the queue; empty if nothing is known."""
    with suppress(OSError, ValueError):
        kept = json.loads((folder / f"{name}.json").read_bytes())
        if isinstance(kept, dict) and isinstance(kept.get("id"), str) and isinstance(kept.get("place"), int):
            return kept
    return {}
