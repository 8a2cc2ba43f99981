"""One measurement of a run, and the scenarios in which tasks are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# The scenarios of van de Ven et al. (2022), and which task it is as a question of its own.
TASK_INCREMENTAL = "task-incremental"
CLASS_INCREMENTAL = "class-incremental"
DOMAIN_INCREMENTAL = "domain-incremental"
TASK_IDENTIFICATION = "task-identification"


class Row(NamedTuple):
    """One measurement: a line of metrics.csv."""

    episode: int
    task: int
    task_name: str
    split: str
    scenario: str  # what has to be told, see evaluation/scenarios.py
    n: int
    loss: float
    accuracy: float
    ece: float  # see calibration_error in datasets/objectives.py

    @property
    def is_test(self) -> bool:
        """Whether it is the accuracy that R is made of: on test examples whose task is known."""
        return self.split == "test" and self.scenario == TASK_INCREMENTAL


def mean_accuracy(rows: Sequence[Row], scenario: str) -> float | None:
    """Mean over tasks, on test examples; None where the scenario was not measured."""
    found = [row.accuracy for row in rows if row.split == "test" and row.scenario == scenario]
    return sum(found) / len(found) if found else None
