"""Measurement: the scores on one task, split and slice after one episode; and the scenarios."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.objectives import Scores

# How the networks were trained and asked: the scenarios of van de Ven et al. (2022), by value of --scenario.
TRAINED = {"task": "task-incremental", "domain": "domain-incremental", "class": "class-incremental"}
# How well heads that were trained with the task told do without it, see evaluation/scenarios.py.
ROUTED_CLASS = "routed-class"
ROUTED_DOMAIN = "routed-domain"
ROUTED_DOMAIN_SUM = "routed-domain-sum"
TASK_IDENTIFICATION = "task-identification"
WITHOUT_TASK = (ROUTED_CLASS, ROUTED_DOMAIN, ROUTED_DOMAIN_SUM, TASK_IDENTIFICATION)
# While a network learns, and before it learns a task: these are no entries of R.
ANYTIME = "anytime"
ZERO_SHOT = "zero-shot"


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
        """Whether it is an entry of R: on the whole test split, asked as the networks were trained."""
        return self.split == "test" and not self.slice and self.scenario in TRAINED.values()


def mean_over_tasks(measurements: Sequence[Measurement], scenario: str) -> float | None:
    """Mean of the main metric on whole test splits; None where the scenario was not measured."""
    found = [m.main for m in measurements if m.split == "test" and not m.slice and m.scenario == scenario]
    return sum(found) / len(found) if found else None
