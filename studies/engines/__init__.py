"""Where the runs of a study are computed. To add an engine: one file with a class, and one line in ENGINES."""

from collections.abc import Callable

from studies.engines.base import Ended, Engine, Job, Resources
from studies.engines.local import LocalEngine
from studies.engines.ray_cluster import RayEngine
from studies.engines.slurm import SlurmEngine

ENGINES: dict[str, Callable[[Resources], Engine]] = {
    "local": LocalEngine,
    "ray": RayEngine,
    "slurm": SlurmEngine,
}

__all__ = ["ENGINES", "Ended", "Engine", "Job", "Resources"]
