"""The replay memory: the training examples of past tasks that are kept."""

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import Episode, Examples, Table, Task, TrainSource
from methods.memory.audit import Auditor, Budget, by_class, kept_of
from utils.seeding import generator


class ReplayMemory:
    """Keeps some training examples of each task, drawn when the task arrives; later tasks can only displace them.

    No other examples of past tasks are available, neither for training nor for boosting losses: see Auditor.

    A budget with the fraction 1 keeps everything (and a generator itself); a total is shared by all tasks: later ones
    displace examples of earlier ones. With a total and a `reservoir` every example seen so far is kept with the same
    probability (Vitter 1985, algorithm R), instead of as many of each task and, within it, of each class.
    """

    def __init__(self, budget: Budget, seed: int, reservoir: bool = False) -> None:
        self.budget, self.auditor = budget, Auditor(budget)
        self._seed, self._reservoir = seed, reservoir
        self.positions: dict[int, Tensor] = {}  # by task: of its kept examples among its training examples
        self.changed: set[int] = set()  # tasks of which other examples are kept than before this episode
        self._kept: dict[int, Examples] = {}
        self._whole: dict[int, int] = {}  # by task: how many examples it had
        self._sources: dict[int, TrainSource] = {}  # of tasks that are kept whole
        self._slots: dict[int, Tensor] = {}  # by task: the slots of the reservoir with its kept examples

    def add(self, task: Task) -> dict[int, Tensor]:
        """Keep examples of a new task; by task that loses some to it, where those that stay are in what it had kept."""
        if self.budget.fraction == 0:
            return {}
        rng = generator(self._seed, "replay", task.id)
        self._whole[task.id] = len(task.train_eval)
        if self.budget.fraction is not None:
            if self.budget.fraction == 1:
                self._sources[task.id] = task.train
            chosen = {task.id: balanced_subset(task.train_eval.targets, self.budget.fraction, rng)}
        elif self.budget.per_class is not None:
            order = balanced_order(task.train_eval.targets, rng)
            chosen = {task.id: first_of_each(task.train_eval.targets, order, self.budget.per_class, task.num_outputs)}
        elif self._reservoir:
            chosen = self._into_slots(task.id, rng)
        else:
            chosen = self._shares(task, rng)
        self._kept.update(self.auditor.keep(chosen))
        self.changed.update(chosen)
        for other, stay in chosen.items():
            self.positions[other] = self.positions[other][stay] if other in self.positions else stay
        return {other: stay for other, stay in chosen.items() if other != task.id}

    def revisit(self, episodes: Sequence[Episode]) -> None:
        """Fill the memory as after these episodes: examples are drawn again, from the same random streams."""
        for episode in episodes:
            with self.auditor.lending(episode) as lent:
                for task in lent.new:
                    self.add(task)

    def examples(self, task_id: int) -> Examples:
        """The kept examples of a task, un-augmented."""
        return self._kept[task_id]

    def share(self, task_id: int) -> float:
        """The share of a task's examples that is kept, in [0, 1]."""
        return len(self._kept[task_id]) / self._whole[task_id]

    def source(self, task_id: int, tasks_in_member: int) -> TrainSource:
        """The train source of a past task for a member of m tasks.

        Where a share f < 1 was kept, its examples are repeated max(1, int(1 / ((m - 1) f))) times, so that past tasks
        together weigh about as much as the new one (Ramesh & Chaudhari 2022, authors' code).
        """
        if task_id in self._sources:
            return self._sources[task_id]
        kept, others = self._kept[task_id], max(1, tasks_in_member - 1)
        return Table(kept, max(1, self._whole[task_id] // (others * len(kept))))

    @property
    def tasks(self) -> tuple[int, ...]:
        """Tasks with kept examples, in the order of their arrival."""
        return tuple(task for task, kept in self._kept.items() if len(kept))

    def mixture(self) -> Mixture:
        """All kept examples as one table."""
        return Mixture([(task, self._kept[task]) for task in self.tasks])

    def size(self) -> tuple[int, int]:
        """Number and bytes of the kept examples."""
        return sum(map(len, self._kept.values())), sum(kept.nbytes for kept in self._kept.values())

    def _shares(self, task: Task, rng: torch.Generator) -> dict[int, Tensor]:
        """Equal numbers of each task: positions to keep of the new task and of those that must shrink.

        Kept examples are in an order whose every beginning is balanced, so the last ones are dropped. With a total
        below the number of tasks the earliest tasks have one each.
        """
        assert self.budget.total is not None
        share, more = divmod(self.budget.total, len(self._kept) + 1)
        chosen = {}
        for number, (other, kept) in enumerate(self._kept.items()):
            room = share + (number < more)
            if len(kept) > room:
                chosen[other] = torch.arange(room)
        chosen[task.id] = balanced_order(task.train_eval.targets, rng)[:share]
        return chosen

    def _into_slots(self, task_id: int, rng: torch.Generator) -> dict[int, Tensor]:
        """Offer a new task's examples to the reservoir; positions to keep of it and of tasks that must shrink."""
        assert self.budget.total is not None
        order = torch.randperm(self._whole[task_id], generator=rng)
        taken_by = reservoir(self.budget.total, sum(self._whole.values()) - len(order), len(order), rng)
        chosen = {}
        for other, slots in self._slots.items():
            stay = (taken_by[slots] < 0).nonzero().flatten()
            if len(stay) < len(slots):
                chosen[other], self._slots[other] = stay, slots[stay]
        self._slots[task_id] = (taken_by >= 0).nonzero().flatten()
        chosen[task_id] = order[taken_by[self._slots[task_id]]]
        return chosen


def reservoir(size: int, seen: int, count: int, rng: torch.Generator) -> Tensor:
    """Which of `count` further examples take which of `size` slots, after `seen` examples were offered before.

    Example n (counted from 0 over all examples ever offered) takes slot n while there are empty ones, then slot r,
    uniform over 0..n, if r < size. Returns, [size] int64, the further example that took each slot last; -1 if none did.
    """
    n = seen + torch.arange(count)
    drawn = (torch.rand(count, generator=rng, dtype=torch.float64) * (n + 1)).long()
    slots = torch.where(n < size, n, drawn)
    taken = (slots < size).nonzero().flatten()
    result = torch.full((size,), -1)
    # The last example that took a slot is the one with the largest number.
    return result.scatter_reduce_(0, slots[taken], taken, "amax")


def balanced_order(targets: Tensor, rng: torch.Generator) -> Tensor:
    """Positions in a random order whose every beginning has about as many of each class."""
    classes, _ = by_class(targets)
    order = torch.randperm(len(classes), generator=rng)
    # First one of each class, then a second one of each: by rank, in random order within a rank.
    return order[_ranks(classes[order]).argsort(stable=True)]


def first_of_each(targets: Tensor, order: Tensor, count: int, num_outputs: int) -> Tensor:
    """The positions in `order` up to the `count`-th of each class; count * num_outputs if there are no classes."""
    classes, number = by_class(targets, num_outputs)
    return order[_ranks(classes[order]) < count * (num_outputs // number)]


def balanced_subset(targets: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
    """Positions, ascending, of a random share of each class, rounded down but at least one of each."""
    classes, _ = by_class(targets)
    picks = []
    for value in classes.unique():
        of_class = (classes == value).nonzero().flatten()
        picks.append(of_class[torch.randperm(len(of_class), generator=rng)[: kept_of(fraction, len(of_class))]])
    return torch.cat(picks).sort().values


def _ranks(classes: Tensor) -> Tensor:
    """For each position, how many of the same class come before it."""
    order, sizes = classes.argsort(stable=True), classes.bincount()
    rank = torch.empty_like(classes)
    rank[order] = torch.arange(len(classes)) - (sizes.cumsum(0) - sizes)[classes[order]]
    return rank
