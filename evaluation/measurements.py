"""One measurement of a run, and the scenarios in which tasks are measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.objectives import Scores

# The scenarios of van de Ven et al. (2022), and which task it is as a question of its own.
TASK_INCREMENTAL = "task-incremental"
CLASS_INCREMENTAL = "class-incremental"
DOMAIN_INCREMENTAL = "domain-incremental"
TASK_IDENTIFICATION = "task-identification"
WITHOUT_TASK = (CLASS_INCREMENTAL, DOMAIN_INCREMENTAL, TASK_IDENTIFICATION)


@dataclass(frozen=True)
class Measurement:
    """The scores of a method on examples of one task: in metrics.csv a line for each score."""

    episode: int
    step: int  # gradient steps of the run so far
    examples: int  # training examples seen so far, each as often as it was seen
    task: int
    task_name: str
    split: str
    slice: str  # a named part of the split; "" is all of it
    scenario: str  # what the method is told, see evaluation/scenarios.py; or the name of an evaluation
    scores: Scores

    @property
    def n(self) -> int:
        """How many examples the main metric is of."""
        return self.scores[self.metric].n

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return next(iter(self.scores))

    @property
    def main(self) -> float:
        """Value of the main metric: what the matrix R is made of."""
        return self.scores[self.metric].value

    @property
    def is_test(self) -> bool:
        """Whether R is made of it: on all test examples, the task being known."""
        return self.split == "test" and not self.slice and self.scenario == TASK_INCREMENTAL

    def value(self, metric: str) -> float | None:
        """Of a metric; None where it is not defined."""
        return self.scores[metric].value if metric in self.scores else None


def mean_over_tasks(measurements: Sequence[Measurement], scenario: str) -> float | None:
    """Mean of the main metric on whole test splits; None where the scenario was not measured."""
    found = [m.main for m in measurements if m.split == "test" and not m.slice and m.scenario == scenario]
    return sum(found) / len(found) if found else None
