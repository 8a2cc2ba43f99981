"""The configuration of a run of train_task.py."""

import math
from dataclasses import dataclass

from methods.config import BaseConfig
from training.times import Times
from utils.settings import Range, setting

METHOD = "train_task"  # what config.yaml says in place of a method
CHECKPOINTS = "checkpoints"


class EvaluationTimes(Times):
    """A policy, or the word for: at each checkpoint."""

    @staticmethod
    def read(where: str, value: object) -> str:
        """The checked policy; a UserError begins with `where`."""
        return CHECKPOINTS if value == CHECKPOINTS else Times.read(where, value)


@dataclass(frozen=True, kw_only=True)
class TaskRunConfig(BaseConfig):
    """Everything that determines the training of one network on one task; written to config.yaml."""

    method: str = setting((METHOD,), "stands where runs of modelzoo.py have a method", default=METHOD, internal=True)
    continual: bool = setting(bool, "the task has an episode of its own", default=True, internal=True)
    checkpoints: str = setting(
        Times, "when the weights are kept: powers_of_two (after 1, 2, 4, ... steps), every:N steps, log:N (N times, "
        "evenly in the logarithm) or none; before and after training always (default: powers_of_two)",
        default="powers_of_two", option="checkpoints", group="how", metavar="WHEN",
    )  # fmt: skip
    evaluate_at: str = setting(
        EvaluationTimes, "when the network is evaluated on development examples: the same words, or checkpoints "
        "(default: checkpoints)", default=CHECKPOINTS, option="evaluate_at", group="how", metavar="WHEN",
    )  # fmt: skip
    until: float | None = setting(
        Range(0, math.inf, whole=False), "stop when the main score on development examples is at least this, such as "
        "0.99; at most, if smaller is better (default: train to the end)", default=None, option="until", group="how",
    )  # fmt: skip
    evaluate_only: bool = setting(
        bool, "train nothing: evaluate the network that training would begin with (default: train)", default=False,
        option="evaluate_only", group="how",
    )  # fmt: skip
    begun_from: str | None = setting(
        str, "the file with the first weights (default: they are drawn)", default=None, internal=True, machine=True
    )
    begun_from_sha256: str | None = setting(str, "checksum of that file", default=None, internal=True)

    @property
    def evaluations(self) -> str:
        """The policy of evaluations."""
        return self.checkpoints if self.evaluate_at == CHECKPOINTS else self.evaluate_at
