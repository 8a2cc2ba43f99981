"""Tasks and streams: what a method may train on, and when.

    YAML -> TaskStream -> Episode (reveals tasks) -> train source -> an epoch of Examples -> batches

A train source is a table or a generator. Both return the examples of one epoch as tensors on the device, from
which batches are gathered: no batch waits for Python to make its examples one by one.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets.objectives import Objective
from utils.seeding import generator

TRAIN, TEST, HELD_OUT = "train", "test", "held_out"  # names of splits


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
    slices: Mapping[str, Tensor] = field(default_factory=dict)  # by name: positions [K] that are scored on their own

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, positions: Tensor) -> Examples:
        """The examples at `positions`, [K] int64, repeats allowed; without slices."""
        rows = self.rows[positions.to(self.rows.device)]
        return replace(self, rows=rows, targets=self.targets[positions.to(self.targets.device)], slices={})

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


@dataclass(frozen=True)
class Table:
    """A finite train source: every epoch has all its rows, each `repeat` times."""

    examples: Examples
    repeat: int = 1

    def __len__(self) -> int:
        """Examples in one epoch."""
        return self.repeat * len(self.examples)

    def epoch(self, rng: torch.Generator) -> Examples:
        """The examples of one epoch, always the same."""
        if self.repeat == 1:
            return self.examples
        return self.examples.subset(torch.arange(len(self.examples)).repeat(self.repeat))


class Generator(ABC):
    """A train source without end: draws fresh examples.

    Attributes:
        epoch_size: how many examples are drawn at once, and count as an epoch where lengths are given in epochs.
    """

    epoch_size: int

    @abstractmethod
    def draw(self, n: int, rng: torch.Generator) -> Examples:
        """`n` fresh examples on the device, made by tensor operations from the random numbers of `rng`."""

    def epoch(self, rng: torch.Generator) -> Examples:
        """The examples of one epoch, other ones each time."""
        return self.draw(self.epoch_size, rng)

    def freeze(self, n: int, seed: int, *name: object) -> Table:
        """A table of `n` examples from the random stream `name` of `seed`: for evaluation, replay and caches."""
        return Table(self.draw(n, generator(seed, "frozen", *name)))

    def __len__(self) -> int:
        return self.epoch_size


TrainSource = Table | Generator


@dataclass(frozen=True)
class Task:
    """One supervised problem: a train source and the fixed, un-augmented splits on which it is scored."""

    id: int  # position in the stream, from 1: the one number of this task from YAML to report
    name: str
    num_outputs: int  # width of the head
    train: TrainSource
    splits: Mapping[str, Examples]  # by name: "train" and "test", and any others
    classes: tuple[str, ...] = ()  # name of each output; () where they have none

    @property
    def output_names(self) -> tuple[str, ...]:
        """A name of each output: its number, from 0, where the task names none."""
        return self.classes or tuple(map(str, range(self.num_outputs)))

    @property
    def train_eval(self) -> Examples:
        """Training examples on which the fit is measured and from which replay memories are filled."""
        return self.splits[TRAIN]

    @property
    def test(self) -> Examples:
        """The examples behind the accuracies of the stream."""
        return self.splits[TEST]

    @property
    def held_out(self) -> Examples | None:
        """Training examples that nothing is trained on, if some were set aside."""
        return self.splits.get(HELD_OUT)

    def with_splits(self, **splits: Examples) -> Task:
        """The same task with some splits added or exchanged."""
        return replace(self, splits={**self.splits, **splits})


class Preprocess(Protocol):
    """Stored inputs -> network inputs, a whole batch at a time on the device."""

    def draw(self, count: int, rng: torch.Generator) -> Any:
        """The random choices of an augmentation for `count` inputs, on the CPU; None if there is none."""

    def __call__(self, inputs: Tensor, choices: Any = None) -> Tensor:
        """[B, *input] as stored -> [B, *input] for the network; augmented if `choices` are given."""


class AsStored:
    """The Preprocess of inputs that a network reads as they are stored: no augmentation, no normalisation."""

    def draw(self, count: int, rng: torch.Generator) -> None:
        """Nothing is random."""

    def __call__(self, inputs: Tensor, choices: None = None) -> Tensor:
        return inputs


@dataclass(frozen=True)
class StreamSpec:
    """All that a method may know of a stream in advance."""

    name: str
    input_shape: tuple[int, ...]
    objective: Objective
    preprocess: Preprocess
    heads: str = "task"  # one of net.multihead.HEADS: how features become outputs


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
            for examples in task.splits.values():
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
            for examples in task.splits.values():
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
