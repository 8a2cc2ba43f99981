"""Who may read which training examples: the new tasks' in their episode, afterwards what the budget lets a method keep.

A method is handed training examples on loan. Reading them after the loan has ended fails the run, and so does
keeping more than was declared. Test targets are never handed out. What is guarded are Examples and train
sources; tensors that a method has taken out of them are not (tests destroy what is behind them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from datasets.task import TEST, TRAIN, Episode, Examples, Generator, Table, Task, TrainSource


class BudgetError(Exception):
    """A method has read or kept training examples that it must not have; a mistake in the method."""


@dataclass(frozen=True)
class Budget:
    """How many training examples of past tasks a method may keep; one of the three is set.

    Attributes:
        fraction: of each class of each task, rounded down but at least one example; 0 is nothing at all.
        per_class: of each class of each task.
        total: of all tasks together.
    """

    fraction: float | None = None
    per_class: int | None = None
    total: int | None = None

    def allowed(self, targets: Tensor, num_outputs: int) -> Tensor | None:
        """How many examples of each class of a task may be kept; None if only the total counts.

        Targets that are not class numbers ([N] int64) are one class, of which as many count as `num_outputs` have.
        """
        if self.total is not None:
            return None
        counts = count_classes(targets, num_outputs)
        if self.per_class is not None:
            return torch.full_like(counts, self.per_class * (num_outputs // len(counts)))
        return torch.tensor([kept_of(self.fraction or 0.0, count) for count in counts.tolist()])


def class_numbers(targets: Tensor) -> Tensor | None:
    """Targets that are class numbers, [N] int64 on the CPU; None for others, which count as one class."""
    return targets.cpu() if targets.ndim == 1 and not targets.is_floating_point() else None


def kept_of(fraction: float, count: int) -> int:
    """How many of `count` examples of a class are a fraction: rounded down, but at least one; none if it is 0."""
    # 0.29 * 100 is 28.999999999999996
    return max(1, math.floor(fraction * count + 1e-9)) if fraction and count else 0


def count_classes(targets: Tensor, num_outputs: int) -> Tensor:
    """Examples of each class, [num_outputs]; all of them, [1], if the targets are not class numbers."""
    numbers = class_numbers(targets)
    return torch.tensor([len(targets)]) if numbers is None else torch.bincount(numbers, minlength=num_outputs)


class Loan:
    """Permission to read some training examples."""

    def __init__(self, what: str) -> None:
        self._what, self._ended = what, ""

    def end(self, why: str) -> None:
        """Reading is an error from now on."""
        self._ended = why

    def check(self) -> None:
        """
        Raises:
            BudgetError: the loan has ended.
        """
        if self._ended:
            raise BudgetError(f"{self._what} were read after {self._ended}")


@dataclass(frozen=True)
class Lent(Examples):
    """Examples that can be read while the loan lasts."""

    loan: Loan | None = None

    def __getattribute__(self, name: str) -> Any:
        if name in ("store", "rows", "targets"):
            loan = object.__getattribute__(self, "loan")
            if loan is not None:
                loan.check()
        return object.__getattribute__(self, name)


def lend(examples: Examples, loan: Loan) -> Lent:
    """The same examples on loan."""
    return Lent(**{field.name: getattr(examples, field.name) for field in fields(Examples)}, loan=loan)


@dataclass(frozen=True)
class LentGenerator(Generator):
    """A generator that can be asked while the loan lasts."""

    epoch_size: int
    _source: Generator
    _loan: Loan

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        self._loan.check()
        return lend(self._source.draw(n, rng), self._loan)


def lend_source(source: TrainSource, loan: Loan) -> TrainSource:
    """The same train source on loan."""
    if isinstance(source, Table):
        return replace(source, examples=lend(source.examples, loan))
    return LentGenerator(source.epoch_size, source, loan)


def blind(examples: Examples) -> Examples:
    """Test examples without their targets: all are zero."""
    return replace(examples, targets=torch.zeros_like(examples.targets))


def to_predict(task: Task) -> Task:
    """A task of which nothing but the test inputs can be read."""
    loan = Loan(f"training examples of task {task.id}")
    loan.end("its test inputs were all that there was to see")
    return _shown(task, loan)


def _shown(task: Task, loan: Loan) -> Task:
    """What a method sees of a task: its training examples on loan, and the test inputs."""
    splits = {TRAIN: lend(task.train_eval, loan), TEST: blind(task.test)}
    return replace(task, train=lend_source(task.train, loan), splits=splits)


class Auditor:
    """Lends training examples, and holds what is kept of them."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._allowed: dict[int, Tensor | None] = {}  # by task: of each class
        self._outputs: dict[int, int] = {}
        self._held: dict[int, Examples] = {}  # all of a new task, what is kept of a past one
        self._kept: dict[int, Loan] = {}

    @contextmanager
    def lending(self, episode: Episode) -> Iterator[Episode]:
        """The episode with its training examples on loan until the end."""
        loans, lent = [], []
        for task in episode.new:
            loan = Loan(f"training examples of task {task.id}")
            shown = _shown(task, loan)
            self._allowed[task.id] = self.budget.allowed(task.train_eval.targets, task.num_outputs)
            self._outputs[task.id] = task.num_outputs
            self._held[task.id] = shown.train_eval
            loans.append(loan)
            lent.append(shown)
        yield Episode(episode.number, tuple(lent))
        # Who may keep everything may go on drawing from the source, which may be a generator.
        if self.budget.fraction != 1:
            for loan in loans:
                loan.end(f"episode {episode.number}, in which it was new")
        for task in episode.new:
            if task.id not in self._kept:
                del self._held[task.id]

    def keep(self, positions: Mapping[int, Tensor]) -> dict[int, Examples]:
        """Keep these and no others, by task: positions among those held so far; tasks left out stay as they are.

        Raises:
            BudgetError: an example is named twice, or the budget is exceeded.
        """
        for task_id, places in positions.items():
            if len(places.unique()) < len(places):
                raise BudgetError(f"a training example of task {task_id} is kept twice")
            loan = Loan(f"training examples kept of task {task_id}")
            chosen = self._held[task_id].subset(places)
            self._held[task_id] = replace(chosen, loan=loan)  # type: ignore[call-arg]
            if task_id in self._kept:
                self._kept[task_id].end("some had to make room")
            self._kept[task_id] = loan
        self._check()
        return {task_id: self._held[task_id] for task_id in positions}

    def _check(self) -> None:
        kept = {task_id: self._held[task_id] for task_id in self._kept}
        count = sum(map(len, kept.values()))
        if self.budget.total is not None and count > self.budget.total:
            raise BudgetError(f"{count} training examples are kept; the memory is of {self.budget.total}")
        for task_id, examples in kept.items():
            allowed = self._allowed[task_id]
            if allowed is not None and (count_classes(examples.targets, self._outputs[task_id]) > allowed).any():
                raise BudgetError(
                    f"{len(examples)} training examples of task {task_id} are kept, too many: {self.budget}"
                )
