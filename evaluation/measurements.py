"""Measurement: the scores on one task, split and slice after one episode; and the scenarios."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.objectives import Scores

# The scenarios of van de Ven et al. (2022), with a second answer where only the class counts, and task identification.
TASK_INCREMENTAL = "task-incremental"
CLASS_INCREMENTAL = "class-incremental"
DOMAIN_INCREMENTAL = "domain-incremental"
DOMAIN_INCREMENTAL_SUM = "domain-incremental-sum"
TASK_IDENTIFICATION = "task-identification"
WITHOUT_TASK = (CLASS_INCREMENTAL, DOMAIN_INCREMENTAL, DOMAIN_INCREMENTAL_SUM, TASK_IDENTIFICATION)


@dataclass(frozen=True)
class Measurement:
    """The scores of a method on examples of one task; metrics.csv has a line for each score."""

    episode: int
    step: int  # training steps of the run so far
    examples: int  # training examples of the run so far, with repetitions
    task: int
    task_name: str
    split: str
    slice: str  # a named part of the split; "" is the whole split
    scenario: str  # see evaluation/scenarios.py; or the name of an evaluation
    scores: Scores

    @property
    def n(self) -> int:
        """Number of examples behind the main metric."""
        return self.scores[self.metric].n

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return next(iter(self.scores))

    @property
    def main(self) -> float:
        """Value of the main metric, an entry of the matrix R."""
        return self.scores[self.metric].value

    @property
    def is_test(self) -> bool:
        """Whether it is an entry of R: on the whole test split, with the task known."""
        return self.split == "test" and not self.slice and self.scenario == TASK_INCREMENTAL


def mean_over_tasks(measurements: Sequence[Measurement], scenario: str) -> float | None:
    """Mean of the main metric on whole test splits; None where the scenario was not measured."""
    found = [m.main for m in measurements if m.split == "test" and not m.slice and m.scenario == scenario]
    return sum(found) / len(found) if found else None
