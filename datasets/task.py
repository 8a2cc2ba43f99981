"""Tasks and streams: what a method may train on, and when.

    YAML -> TaskStream -> Episode (reveals tasks) -> train source -> an epoch of Examples -> batches

Finite tables and generators look the same to the trainer: a train source returns the examples of one
epoch, and inputs are rows of a tensor on the device, gathered a batch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

    store: Tensor  # [M, *input]
    rows: Tensor  # [N] int64, rows of the store
    targets: Tensor  # [N, *target]
    view: Tensor | None = None  # [P] int64, P the number of values of one input

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, positions: Tensor) -> Examples:
        """The examples at `positions`, [K] int64, repeats allowed."""
        return Examples(self.store, self.rows[positions], self.targets[positions], self.view)

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
        return self.examples.subset(
            torch.arange(len(self.examples), device=self.examples.rows.device).repeat(self.repeat)
        )


@dataclass(frozen=True)
class Task:
    """One supervised problem."""

    id: int  # position in the stream, from 1: the one number of this task from YAML to report
    name: str
    classes: tuple[str, ...]  # name of each output; its length is the width of the head
    train: TrainSource
    train_eval: Examples  # fixed and un-augmented: on these the fit of a task is measured
    test: Examples

    @property
    def num_outputs(self) -> int:
        return len(self.classes)


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

    def continual(self) -> Iterator[Episode]:
        """One task after the other."""
        for task in self.tasks:
            yield Episode(task.id, (task,))

    def multitask(self, rounds: int) -> Iterator[Episode]:
        """All tasks at once, then `rounds` - 1 further episodes that reveal nothing new."""
        for number in range(1, rounds + 1):
            yield Episode(number, self.tasks if number == 1 else ())


class Mixture:
    """The examples of several tasks as one table, from which mixed batches are gathered.

    Args:
        parts: task id and examples of each task; inputs have one shape.
    """

    def __init__(self, parts: Sequence[tuple[int, Examples]]) -> None:
        examples = [part for _, part in parts]
        device = examples[0].rows.device
        if all(part.store is examples[0].store for part in examples):
            self._store, self._rows = examples[0].store, torch.cat([part.rows for part in examples])
        else:
            self._store = torch.cat([part.store[part.rows] for part in examples])
            self._rows = torch.arange(len(self._store), device=device)
        self.targets = torch.cat([part.targets for part in examples])
        sizes = torch.tensor([len(part) for part in examples], device=device)
        self.task_ids = torch.tensor([task_id for task_id, _ in parts], device=device).repeat_interleave(sizes)
        self._views: Tensor | None = None
        if any(part.view is not None for part in examples):
            same = torch.arange(self._store[0].numel(), device=device)
            self._views = torch.stack([same if part.view is None else part.view for part in examples])
            self._view_of = torch.arange(len(parts), device=device).repeat_interleave(sizes)

    def __len__(self) -> int:
        return len(self._rows)

    def inputs(self, positions: Tensor) -> Tensor:
        """[K, *input] as stored, of the examples at `positions`, [K] int64."""
        inputs = self._store[self._rows[positions]]
        if self._views is None:
            return inputs
        view = self._views[self._view_of[positions]]
        seen = inputs.flatten(1).gather(1, view.clamp_min(0)).masked_fill_(view < 0, 0)
        return seen.view_as(inputs)
