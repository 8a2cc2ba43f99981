"""The replay memory: the training examples of past tasks that are kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import Episode, Examples, Table, Task, TrainSource
from methods.memory.audit import Auditor, Budget, by_class, kept_of
from methods.memory.slots import NONE, Arrivals, ClassReservoir, reservoir_slots
from utils.seeding import generator

SLOTS = ("reservoir", "class_reservoir")  # buffers with a total
BUFFERS = ("balanced", "random", *SLOTS)


class ReplayMemory:
    """Keeps some training examples of each task, drawn when the task arrives; later tasks can only displace them.

    No other examples of past tasks are available, neither for training nor for boosting losses: see Auditor.

    A budget with the fraction 1 keeps everything (and a generator itself); a total is shared by all tasks: later ones
    displace examples of earlier ones. `buffer` is one of BUFFERS: balanced keeps as many of each class and task, random
    of each task; the others fill the slots of a total while examples arrive, see slots.py.

    Args:
        order: the order in which the training examples of a task arrive, [n], for slots; random without one.
        shared_classes: whether equal targets of different tasks are the same class, for class_reservoir.
    """

    def __init__(
        self, budget: Budget, seed: int, buffer: str = "balanced", *, order: Callable[[Task], Tensor] | None = None,
        shared_classes: bool = False,
    ) -> None:  # fmt: skip
        self.budget, self.auditor = budget, Auditor(budget)
        self._seed, self._buffer, self._order, self._shared = seed, buffer, order, shared_classes
        self.positions: dict[int, Tensor] = {}  # by task: of its kept examples among its training examples
        self.changed: set[int] = set()  # tasks of which other examples are kept than before this episode
        self._kept: dict[int, Examples] = {}
        self._whole: dict[int, int] = {}  # by task: how many examples it had
        self._sources: dict[int, TrainSource] = {}  # of tasks that are kept whole
        self._slots: dict[int, Tensor] = {}  # by task: the slots with its kept examples
        self._arrived = 0  # examples that the slots were offered; of a task perhaps fewer than it has
        self._class_slots = ClassReservoir(budget.total or 0)
        self._planned: tuple[int, Tensor, Tensor] | None = None  # task, order and slots of its examples, see `_plan`

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
        elif self.budget.per_task is not None:
            chosen = {task.id: self._mixed(task, rng)[: self.budget.per_task]}
        elif self.budget.per_class is not None:
            order = balanced_order(task.train_eval.targets, rng)
            chosen = {task.id: first_of_each(task.train_eval.targets, order, self.budget.per_class, task.num_outputs)}
        elif self._buffer in SLOTS:
            chosen = self._into_slots(task)
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
        chosen[task.id] = self._mixed(task, rng)[:share]
        return chosen

    def _mixed(self, task: Task, rng: torch.Generator) -> Tensor:
        """Positions of a task's examples in the order in which they are kept."""
        targets = task.train_eval.targets
        return torch.randperm(len(targets), generator=rng) if self._buffer == "random" else balanced_order(targets, rng)

    def arrivals(self, task: Task) -> tuple[Arrivals, Mixture]:
        """What the slots hold while a new task's examples arrive, and the pool of examples that these are."""
        assert self.budget.total is not None
        assert isinstance(task.train, Table)
        order, slots = self._plan(task)
        held = torch.cat([self._slots[other] for other in self.tasks]) if self.tasks else order[:0]
        pool = [(other, self._kept[other]) for other in self.tasks] + [(task.id, task.train.examples)]
        return Arrivals(self.budget.total, held, order, slots), Mixture(pool)

    def _plan(self, task: Task) -> tuple[Tensor, Tensor]:
        """The order of a new task's examples, and the slot that each takes; the same until the task is added."""
        if self._planned is None or self._planned[0] != task.id:
            rng, targets = generator(self._seed, "replay", task.id), task.train_eval.targets
            assert self.budget.total is not None
            order = self._order(task) if self._order else torch.randperm(len(targets), generator=rng)
            if self._buffer == "reservoir":
                slots = reservoir_slots(self.budget.total, self._arrived, len(order), rng)
            else:
                classes = by_class(targets)[0][order].tolist()
                slots = self._class_slots.slots(classes if self._shared else [(task.id, c) for c in classes], rng)
            self._planned = task.id, order, slots
        return self._planned[1:]

    def _into_slots(self, task: Task) -> dict[int, Tensor]:
        """Offer a new task's examples to the slots; positions to keep of it and of tasks that must shrink."""
        assert self.budget.total is not None
        task_id, (order, taken) = task.id, self._plan(task)
        self._arrived += len(order)
        # The last example that took a slot is the one with the largest number.
        arrived, kept = torch.arange(len(taken)), taken != NONE
        taken_by = torch.full((self.budget.total,), -1).scatter_reduce_(0, taken[kept], arrived[kept], "amax")
        chosen = {}
        for other, slots in self._slots.items():
            stay = (taken_by[slots] < 0).nonzero().flatten()
            if len(stay) < len(slots):
                chosen[other], self._slots[other] = stay, slots[stay]
        self._slots[task_id] = (taken_by >= 0).nonzero().flatten()
        chosen[task_id] = order[taken_by[self._slots[task_id]]]
        return chosen


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
