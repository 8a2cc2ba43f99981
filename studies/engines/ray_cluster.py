"""RayEngine: the machines of a Ray cluster."""

import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.engines.base import Ended, Engine, Job, Resources
from studies.engines.local import cores
from studies.engines.supervise import Order, Outcome, order_of, supervise
from utils.errors import UserError

_PROJECT = Path(__file__).resolve().parents[2]
_MANY = 1000  # jobs handed over at a time; a cluster that grows on demand sees from them that it should
SECONDS_TO_END = 65  # a machine gives its jobs 60
_LEAST_STORE = 80 * 2**20  # bytes of Ray's shared memory, which nothing here uses; Ray refuses less than 75 MiB


@dataclass(frozen=True)
class _Task:
    job: Job
    begin: float


class RayEngine(Engine):
    """Runs each job as a task of a Ray cluster, on any machine that has so many cores and such a part of a GPU free.

    All machines have the code, the Python, the store and the current folder under the same paths. A job whose machine
    is lost is reported as lost: Ray does not run it again by itself (max_retries=0), as it knows nothing of the locks
    of run directories, by which a scheduler decides when a run is free. Jobs end with the process that started them.

    UserError without Ray, without a cluster at the address, or if no machine has the cores.
    """

    def __init__(self, resources: Resources) -> None:
        at_a_time = resources.jobs or cores()
        self._cpus = resources.cpus or (1 if resources.address else max(1, cores() // at_a_time))
        self._ray = _connected(resources.address, at_a_time * self._cpus)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = any(node.get("GPU", 0) for node in nodes)
        self._gpus = 1 / resources.jobs_per_gpu if gpus else 0
        if not any(node.get("CPU", 0) >= self._cpus and node.get("GPU", 0) >= self._gpus for node in nodes):
            self._ray.shutdown()
            raise UserError(f"no machine of the Ray cluster has {self._cpus} cores for a job{' and a GPU' * gpus}")
        self._task = self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)(_one)
        self._most = resources.jobs or _MANY
        self._running: dict[Any, _Task] = {}

    def room(self) -> int:
        return self._most - len(self._running)

    def submit(self, job: Job) -> None:
        reference = self._task.options(name=job.name).remote(order_of(job, self._cpus))
        self._running[reference] = _Task(job, time.perf_counter())

    def poll(self) -> list[Ended]:
        return [self._ended(reference, self._running.pop(reference)) for reference in self._ready(0)]

    def cancel(self) -> None:
        with suppress(KeyboardInterrupt):  # then they are killed
            for reference in self._running:
                self._ray.cancel(reference)
            self._ready(SECONDS_TO_END)
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}
        self._ray.shutdown()

    def _ready(self, seconds: float) -> list[Any]:
        """Wait until all have ended, at most for so long; those that have."""
        waiting = list(self._running)
        return self._ray.wait(waiting, num_returns=len(waiting), timeout=seconds)[0] if waiting else []

    def _ended(self, reference: Any, running: _Task) -> Ended:
        errors = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(reference)
        except errors.RayTaskError as error:  # in our own function, such as a log that cannot be written
            outcome = Outcome(0.0, " ".join(str(error.cause or error).split()))
        except errors.RayError as error:
            what = str(error).split("\n")[0].split(". ")[0]
            outcome = Outcome(time.perf_counter() - running.begin, f"lost by Ray: {what}", lost=True)
        return Ended(running.job.name, outcome.seconds, outcome.failure, outcome.lost)


def _one(order: Order) -> Outcome:
    return supervise([order])[0]


def _connected(address: str | None, cpus: int) -> Any:
    """The module ray, connected to a cluster; without an address, to a new one of this machine with so many cores."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns that this will be the default
    try:
        import ray
        import ray._private.worker as printing
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install -r requirements-optional.txt") from None
    # Pages about each lost machine, on stdout; a study reports lost jobs in a line each.
    printing._worker_logs_enabled = False
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"num_cpus": cpus, "object_store_memory": _LEAST_STORE, "include_dashboard": False}
    options["job_config"] = ray.job_config.JobConfig(_py_driver_sys_path=[str(_PROJECT)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        _check_answers(options["address"])
        ray.init(**options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"no Ray cluster answers at --address {options['address']}: {reason}") from None
    finally:
        signal.signal(signal.SIGTERM, before)  # Ray replaces it
    return ray


def _check_answers(address: str) -> None:
    """Raise OSError if nothing listens at host:port, for which Ray would wait for ten minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
