"""What tells apart the runs of a study that repeat each other: the seed and, where it is drawn, the order of tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ORDER = "data.task_order"


@dataclass(frozen=True, order=True)
class Replicate:
    """The seed of a run and the number that the order of its tasks is drawn from, -1 if it is drawn from none."""

    seed: int
    order: int = -1

    def __str__(self) -> str:
        return f"{self.seed}" if self.order < 0 else f"{self.seed}, task order {self.order}"


def replicate_of(config: Mapping[str, Any]) -> Replicate:
    """Which repetition a run is, from its configuration as nested keys and values."""
    order = config["data"].get("task_order")
    return Replicate(config["seed"], order if isinstance(order, int) else -1)


def without_order(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key, alike for runs that differ in the number that the order of their tasks is drawn from."""
    return {key: "drawn" if key == _ORDER and isinstance(value, int) else value for key, value in values.items()}
