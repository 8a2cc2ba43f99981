"""The check that a method reads and keeps no training examples beyond its budget.

A method gets the training examples of new tasks on loan; afterwards it may read those that its budget lets it keep.
Reading others fails the run, and so does keeping more than was declared. Test targets are never handed out. The check
covers Examples and train sources, but not tensors that a method has taken out of them (tests overwrite their storage
to find such copies).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from datasets.task import TEST, TRAIN, Episode, Examples, Generator, Table, Task, TrainSource
from methods.config import KEPT, RunConfig


class BudgetError(Exception):
    """A method has read or kept training examples that it must not; a mistake in the method."""


@dataclass(frozen=True)
class Budget:
    """How many training examples of past tasks a method may keep; one of the four is set."""

    fraction: float | None = None  # of each class of each task, rounded down but at least one example; 0: none at all
    per_class: int | None = None  # of each class of each task
    total: int | None = None  # of all tasks together
    per_task: int | None = None

    def allowed(self, targets: Tensor, num_outputs: int) -> Tensor | None:
        """How many examples of each class of a task may be kept, [num_outputs]; None if only the total counts.

        Targets that are not class numbers ([N] int64) are one class, [1], with the examples of `num_outputs` classes.
        """
        if self.total is not None:
            return None
        classes, count = by_class(targets, num_outputs)
        if self.per_class is not None:
            return torch.full((count,), self.per_class * (num_outputs // count))
        if self.per_task is not None:
            return torch.full((count,), self.per_task)
        sizes = classes.bincount(minlength=count).tolist()
        return torch.tensor([kept_of(self.fraction or 0.0, size) for size in sizes])


def limited(config: RunConfig) -> Budget | None:
    """The budget of the option that limits how many examples are kept; None if none is given."""
    given = {name: getattr(config, option) for option, name in KEPT.items()}
    return Budget(**given) if any(given.values()) else None


def by_class(targets: Tensor, num_outputs: int = 1) -> tuple[Tensor, int]:
    """The class of each example, [N] int64 on the CPU, and how many classes there are; 1 if targets are no classes."""
    if targets.ndim == 1 and not targets.is_floating_point():
        return targets.cpu(), num_outputs
    return torch.zeros(len(targets), dtype=torch.long), 1


def kept_of(fraction: float, count: int) -> int:
    """A fraction of `count` examples of a class: rounded down, but at least one unless either is 0."""
    # 0.29 * 100 is 28.999999999999996
    return max(1, math.floor(fraction * count + 1e-9)) if fraction and count else 0


@dataclass
class Loan:
    """Permission to read some training examples, until it has `ended` for a reason."""

    what: str
    ended: str = ""

    def check(self) -> None:
        """Raise a BudgetError if the loan has ended."""
        if self.ended:
            raise BudgetError(f"{self.what} were read after {self.ended}")


@dataclass(frozen=True)
class Lent(Examples):
    """Examples that can be read while the loan lasts."""

    loan: Loan = field(kw_only=True)

    def __getattribute__(self, name: str) -> Any:
        if name in ("store", "rows", "targets"):
            self.loan.check()
        return object.__getattribute__(self, name)


@dataclass(frozen=True)
class LentGenerator(Generator):
    """A generator that can draw while the loan lasts."""

    epoch_size: int
    _source: Generator
    _loan: Loan

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        self._loan.check()
        return _lent(self._source.draw(n, rng), self._loan)


def _lent(examples: Examples, loan: Loan) -> Lent:
    return Lent(**{part.name: getattr(examples, part.name) for part in fields(Examples)}, loan=loan)


def _shown(task: Task, loan: Loan) -> Task:
    """A task as a method sees it: the training examples on loan, and the test inputs."""
    source: TrainSource = (
        replace(task.train, examples=_lent(task.train.examples, loan))
        if isinstance(task.train, Table)
        else LentGenerator(task.train.epoch_size, task.train, loan)
    )
    return replace(task, train=source, splits={TRAIN: _lent(task.train_eval, loan), TEST: blind(task.test)})


def blind(examples: Examples) -> Examples:
    """Test examples without their targets: all are zero."""
    return replace(examples, targets=torch.zeros_like(examples.targets))


def to_predict(task: Task) -> Task:
    """A task of which only the test inputs can be read."""
    return _shown(task, Loan(f"training examples of task {task.id}", ended="it was handed out for prediction only"))


class Auditor:
    """Lends the training examples of new tasks, and holds those kept of past tasks to the budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._allowed: dict[int, Tensor | None] = {}  # by task: see Budget.allowed
        self._held: dict[int, Lent] = {}  # by task: all examples of a new one, the kept examples of a past one
        self._kept: set[int] = set()  # tasks of which `keep` was told

    @contextmanager
    def lending(self, episode: Episode) -> Iterator[Episode]:
        """The episode with its training examples on loan until the end."""
        loans = {task.id: Loan(f"training examples of task {task.id}") for task in episode.new}
        for task in episode.new:
            self._allowed[task.id] = self.budget.allowed(task.train_eval.targets, task.num_outputs)
            self._held[task.id] = _lent(task.train_eval, loans[task.id])
        yield Episode(episode.number, tuple(_shown(task, loans[task.id]) for task in episode.new))
        for task_id, loan in loans.items():
            # A method that may keep everything may also draw from the task's generator later.
            if self.budget.fraction != 1:
                loan.ended = f"episode {episode.number}, in which it was new"
            if task_id not in self._kept:
                del self._held[task_id]

    def keep(self, positions: Mapping[int, Tensor]) -> dict[int, Examples]:
        """Keep only these examples, by task: positions among those held so far; other tasks keep what they have."""
        for task_id, places in positions.items():
            if len(places.unique()) < len(places):
                raise BudgetError(f"a training example of task {task_id} is kept twice")
            before = self._held[task_id]
            loan = Loan(f"training examples kept of task {task_id}")
            self._held[task_id] = replace(before.subset(places), loan=loan)  # type: ignore[call-arg, assignment]
            if task_id in self._kept:
                before.loan.ended = "some had to make room"
            self._kept.add(task_id)
        count = sum(len(self._held[task_id]) for task_id in self._kept)
        if self.budget.total is not None and count > self.budget.total:
            raise BudgetError(f"{count} training examples are kept; the memory is of {self.budget.total}")
        kept: dict[int, Examples] = {task_id: self._held[task_id] for task_id in positions}
        for task_id, examples in kept.items():
            if self.budget.per_task is not None and len(examples) > self.budget.per_task:
                raise BudgetError(f"{len(examples)} training examples of task {task_id} are too many: {self.budget}")
            allowed, (classes, _) = self._allowed[task_id], by_class(examples.targets)
            if allowed is not None and (classes.bincount(minlength=len(allowed)) > allowed).any():
                raise BudgetError(f"{len(examples)} training examples of task {task_id} are too many: {self.budget}")
        return kept
