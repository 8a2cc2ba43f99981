"""Tasks and streams: what a method may train on, and when.

    YAML -> TaskStream -> Episode (reveals tasks) -> train source -> an epoch of Examples -> batches

Finite tables and generators look the same to the trainer: a train source returns the examples of one
epoch, and inputs are rows of a tensor on the device, gathered a batch at a time.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets.objectives import Objective


@dataclass(frozen=True)
class Examples:
    """Inputs and targets. The inputs are rows of a store that many tasks share, so tasks hold no copies.

    With a `view`, pixel p of an input is pixel view[p] of the stored one, or 0 where view[p] is -1
    (a permutation or a rotation of the image, without a rotated copy of the data).
    """

    store: Tensor  # [M, *input], on the device or, if it is too large for that, in the host's memory
    rows: Tensor  # [N] int64, rows of the store, beside it
    targets: Tensor  # [N, *target]
    view: Tensor | None = None  # [P] int64, P the number of values of one input

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, positions: Tensor) -> Examples:
        """The examples at `positions`, [K] int64, repeats allowed."""
        rows = self.rows[positions.to(self.rows.device)]
        return replace(self, rows=rows, targets=self.targets[positions.to(self.targets.device)])

    def contents(self) -> list[tuple[tuple[int, ...], Callable[[], Tensor]]]:
        """What can tell these examples from others, each with a key that is the same where memory is shared."""
        parts: list[tuple[tuple[int, ...], Callable[[], Tensor]]] = [
            ((self.store.data_ptr(), self.rows.data_ptr(), len(self)), lambda: self.store[self.rows]),
            ((self.targets.data_ptr(), *self.targets.shape), lambda: self.targets),
        ]
        view = self.view
        return parts if view is None else [*parts, ((view.data_ptr(), *view.shape), lambda: view)]

    @property
    def nbytes(self) -> int:
        """What it would take to store these examples alone: inputs and targets."""
        inputs = self.store[0].numel() * self.store.element_size()
        targets = self.targets[0].numel() * self.targets.element_size() if len(self) else 0
        return len(self) * (inputs + targets)


class TrainSource(Protocol):
    """Where the training examples of a task come from."""

    def epoch(self, rng: torch.Generator) -> Examples:
        """The examples of one epoch; a generator of examples draws them from `rng`."""


@dataclass(frozen=True)
class Table:
    """A finite train source: every epoch has all its rows, each `repeat` times."""

    examples: Examples
    repeat: int = 1

    def epoch(self, rng: torch.Generator) -> Examples:
        if self.repeat == 1:
            return self.examples
        return self.examples.subset(torch.arange(len(self.examples)).repeat(self.repeat))


@dataclass(frozen=True)
class Task:
    """One supervised problem."""

    id: int  # position in the stream, from 1: the one number of this task from YAML to report
    name: str
    classes: tuple[str, ...]  # name of each output; its length is the width of the head
    train: TrainSource
    train_eval: Examples  # fixed and un-augmented: on these the fit of a task is measured
    test: Examples
    held_out: Examples | None = None  # training examples that nothing is trained on

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def examples(self) -> list[Examples]:
        """Of all splits."""
        return [part for part in (self.train_eval, self.test, self.held_out) if part is not None]


class Preprocess(Protocol):
    """Stored inputs -> network inputs, a whole batch at a time on the device."""

    def draw(self, count: int, rng: torch.Generator) -> Any:
        """The random choices of an augmentation for `count` inputs, on the CPU; None if there is none."""

    def __call__(self, inputs: Tensor, choices: Any = None) -> Tensor:
        """[B, *input] as stored -> [B, *input] for the network; augmented if `choices` are given."""


@dataclass(frozen=True)
class StreamSpec:
    """All that a method may know of a stream in advance."""

    name: str
    input_shape: tuple[int, ...]
    objective: Objective
    preprocess: Preprocess


@dataclass(frozen=True)
class Episode:
    """One step of learning: `new` tasks are revealed. What is kept of earlier ones is the method's business."""

    number: int  # from 1
    new: tuple[Task, ...]


@dataclass(frozen=True)
class TaskStream:
    """The ordered tasks of a run."""

    spec: StreamSpec
    tasks: tuple[Task, ...]

    def task(self, number: int) -> Task:
        """The task of that number; there are gaps where tasks were forgotten."""
        return next(task for task in self.tasks if task.id == number)

    def held(self) -> dict[torch.device, int]:
        """Bytes of the examples of all tasks by device; what tasks share counts once."""
        tensors: dict[int, Tensor] = {}
        for task in self.tasks:
            for examples in task.examples():
                for tensor in (examples.store, examples.rows, examples.targets, examples.view):
                    if tensor is not None:
                        tensors[tensor.data_ptr()] = tensor
        held: Counter[torch.device] = Counter()
        for tensor in tensors.values():
            held[tensor.device] += tensor.nbytes
        return dict(held)

    def fingerprint(self) -> str:
        """SHA-256 of all examples: tells whether another process has the same data."""
        sums: dict[tuple[int, ...], bytes] = {}  # what tasks share is read once
        whole = hashlib.sha256()
        for task in self.tasks:
            for examples in task.examples():
                # Of the store what is theirs: other images may have joined it.
                for key, read in examples.contents():
                    if key not in sums:
                        content = read().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                        sums[key] = hashlib.sha256(content.data).digest()
                    whole.update(sums[key])
        return whole.hexdigest()

    def continual(self) -> Iterator[Episode]:
        """One task after the other."""
        for task in self.tasks:
            yield Episode(task.id, (task,))

    def multitask(self, rounds: int) -> Iterator[Episode]:
        """All tasks at once, then `rounds` - 1 further episodes that reveal nothing new."""
        for number in range(1, rounds + 1):
            yield Episode(number, self.tasks if number == 1 else ())
