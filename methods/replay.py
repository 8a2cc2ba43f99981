"""The training examples of past tasks that a run may still use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datasets.task import Examples, Table, Task, TrainSource
from utils.seeding import generator


class ReplayMemory:
    """Keeps a fraction of the training examples of each task, drawn once when the task arrives.

    Nothing but what is kept is ever handed out again, neither for training nor for boosting losses.

    Args:
        fraction: of each class of a task, rounded down but at least one example; 1 keeps everything
            (a generator of examples stays a generator), 0 nothing.
        seed: of the run.
    """

    def __init__(self, fraction: float, seed: int) -> None:
        self.fraction = fraction
        self._seed = seed
        self._kept: dict[int, Examples] = {}
        self._sources: dict[int, TrainSource] = {}

    def add(self, task: Task) -> None:
        """Keep the task's share."""
        if self.fraction == 1:
            self._kept[task.id], self._sources[task.id] = task.train_eval, task.train
        elif self.fraction > 0:
            rng = generator(self._seed, "replay", task.id)
            self._kept[task.id] = task.train_eval.subset(balanced_subset(task.train_eval.targets, self.fraction, rng))

    def examples(self, task_id: int) -> Examples | None:
        """What was kept of a task, un-augmented; None if nothing was."""
        return self._kept.get(task_id)

    def source(self, task_id: int, tasks_in_member: int) -> TrainSource:
        """What a member of m tasks trains on for a past task.

        With a fraction f < 1 the kept examples are repeated max(1, int(1 / ((m - 1) f))) times, so that
        past tasks together weigh about as much as the new one (Ramesh & Chaudhari 2022, authors' code).
        """
        if self.fraction == 1:
            return self._sources[task_id]
        return Table(self._kept[task_id], max(1, int(1 / ((tasks_in_member - 1) * self.fraction))))

    @property
    def tasks(self) -> tuple[int, ...]:
        """Tasks of which something was kept, in the order of their arrival."""
        return tuple(self._kept)

    def size(self) -> tuple[int, int]:
        """Examples and bytes kept."""
        return sum(map(len, self._kept.values())), sum(kept.nbytes for kept in self._kept.values())


def balanced_subset(targets: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
    """Positions, ascending, of a random share of each class, rounded down but at least one of each.

    Targets that are not class numbers ([N] int64) are sampled as one class.
    """
    classes = targets.cpu() if targets.ndim == 1 and not targets.is_floating_point() else torch.zeros(len(targets))
    picks = []
    for value in classes.unique():
        of_class = (classes == value).nonzero().flatten()
        # 0.29 * 100 is 28.999999999999996
        count = max(1, math.floor(fraction * len(of_class) + 1e-9))
        picks.append(of_class[torch.randperm(len(of_class), generator=rng)[:count]])
    return torch.cat(picks).sort().values.to(targets.device)
