"""Scores while a network learns: a method asks its network in training, and the targets stay here."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.objectives import Scores
from datasets.task import TaskStream
from utils.seeding import generator

MOST = 1_000  # test examples of a task that are asked about, as De Lange et al. (2023) do


@dataclass(frozen=True)
class Moment:
    """The scores on each task seen at one moment of an episode."""

    step: int  # gradient steps of the episode so far
    examples: int
    scores: Mapping[int, Scores]  # by task


class Anytime:
    """Scores answers on the same test examples of each task, after every `every` steps of an episode and at its end."""

    def __init__(self, stream: TaskStream, every: int, seed: int) -> None:
        self.every, self._stream, self._seed = every, stream, seed
        self._chosen: dict[int, Tensor] = {}

    def chosen(self, task_id: int) -> Tensor:
        """The positions of these examples among the test examples of a task, [N], in order."""
        if task_id not in self._chosen:
            rng = generator(self._seed, "anytime", task_id)
            order = torch.randperm(len(self._stream.task(task_id).test), generator=rng)
            self._chosen[task_id] = order[:MOST].sort().values
        return self._chosen[task_id]

    def scores(self, task_id: int, predictions: Tensor) -> Scores:
        """Scores of predictions on them, [N, C]."""
        targets = self._stream.task(task_id).test.targets
        return self._stream.spec.objective.evaluate(predictions, targets[self.chosen(task_id).to(targets.device)])
