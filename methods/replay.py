"""The training examples of past tasks that a run may still use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datasets.task import Examples, Mixture, Table, Task, TrainSource
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


class Buffer:
    """Training examples of past tasks within a fixed number, for methods that replay a few in every step.

    A task's share is drawn when the task arrives and only ever gets smaller. Nothing outside it is read again.

    Args:
        total: of examples; or
        per_class: of examples of each class of each task.
        reservoir: with `total`, every example seen so far is kept with the same probability (Vitter 1985,
            algorithm R), instead of as many of each task and, within it, of each class.
        seed: of the run.
    """

    def __init__(self, total: int | None, per_class: int | None, reservoir: bool, seed: int) -> None:
        if (total is None) == (per_class is None):
            raise ValueError("a buffer has either a total or a number per class")
        self._total, self._per_class, self._reservoir, self._seed = total, per_class, reservoir, seed
        self._kept: dict[int, Examples] = {}
        self._slots: dict[int, Tensor] = {}  # of a reservoir, by task: where its kept examples are
        self._seen = 0

    def add(self, task: Task) -> None:
        """Keep the task's share; other tasks may have to make room."""
        rng = generator(self._seed, "replay", task.id)
        if self._total is not None and self._reservoir:
            order = torch.randperm(len(task.train_eval), generator=rng)
            chosen = reservoir(self._total, self._seen, len(order), rng)
            self._seen += len(order)
            taken = (chosen >= 0).nonzero().flatten()
            for other, slots in self._slots.items():
                stay = (chosen[slots] < 0).nonzero().flatten()
                self._slots[other], self._kept[other] = slots[stay], self._kept[other].subset(stay)
            self._slots[task.id], self._kept[task.id] = taken, task.train_eval.subset(order[chosen[taken]])
            return
        self._kept[task.id] = task.train_eval.subset(balanced_order(task.train_eval.targets, rng))
        if self._per_class is not None:
            count = min(self._per_class * task.num_outputs, len(task.train_eval))
            self._kept[task.id] = self._kept[task.id].subset(torch.arange(count))
        elif self._total is not None:
            share, more = divmod(self._total, len(self._kept))
            for place, (other, kept) in enumerate(self._kept.items()):
                count = min(share + (place < more), len(kept))
                self._kept[other] = kept.subset(torch.arange(count))

    def examples(self, task_id: int) -> Examples:
        """What is kept of a task; may be nothing."""
        return self._kept[task_id]

    @property
    def tasks(self) -> tuple[int, ...]:
        """Tasks of which something is kept, in the order of their arrival."""
        return tuple(task for task, kept in self._kept.items() if len(kept))

    def mixture(self) -> Mixture:
        """All that is kept, as one table."""
        return Mixture([(task, self._kept[task]) for task in self.tasks])

    def size(self) -> tuple[int, int]:
        """Examples and bytes kept."""
        return sum(map(len, self._kept.values())), sum(kept.nbytes for kept in self._kept.values())


def reservoir(size: int, seen: int, count: int, rng: torch.Generator) -> Tensor:
    """Which of `count` further examples take which of `size` slots, after `seen` examples were offered before.

    Example n (from 0, over all examples ever offered) takes slot n while there are empty ones, then slot
    r, uniform over 0..n, if r < size. Returns [size] int64: the number among the further examples of the
    last one that took the slot, -1 if none did.
    """
    n = seen + torch.arange(count)
    drawn = (torch.rand(count, generator=rng, dtype=torch.float64) * (n + 1)).long()
    slots = torch.where(n < size, n, drawn)
    taken = (slots < size).nonzero().flatten()
    result = torch.full((size,), -1)
    # The last example that took a slot is the one with the largest number.
    return result.scatter_reduce_(0, slots[taken], taken, "amax")


def balanced_order(targets: Tensor, rng: torch.Generator) -> Tensor:
    """Positions in a random order whose every beginning has about as many of each class.

    Targets that are not class numbers ([N] int64) are one class.
    """
    classes = _classes(targets)
    order = torch.randperm(len(classes), generator=rng)
    rank = torch.empty(len(classes), dtype=torch.long)
    for value in classes.unique():
        members = order[classes[order] == value]
        rank[members] = torch.arange(len(members))
    # First one of each class, then a second one of each: by rank, in random order within a rank.
    return order[rank[order].argsort(stable=True)]


def balanced_subset(targets: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
    """Positions, ascending, of a random share of each class, rounded down but at least one of each.

    Targets that are not class numbers ([N] int64) are sampled as one class.
    """
    classes = _classes(targets)
    picks = []
    for value in classes.unique():
        of_class = (classes == value).nonzero().flatten()
        # 0.29 * 100 is 28.999999999999996
        count = max(1, math.floor(fraction * len(of_class) + 1e-9))
        picks.append(of_class[torch.randperm(len(of_class), generator=rng)[:count]])
    return torch.cat(picks).sort().values.to(targets.device)


def _classes(targets: Tensor) -> Tensor:
    return targets.cpu() if targets.ndim == 1 and not targets.is_floating_point() else torch.zeros(len(targets))
