"""Tasks and streams: what a method may train on, and when.

    YAML -> TaskStream -> Episode (reveals tasks) -> train source -> an epoch of Examples -> batches

A train source is a table or a generator. Both return one epoch as tensors on the device, from which batches are
gathered: no batch waits for Python to make its examples one by one.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from datasets.objectives import Objective
from datasets.schema import Schema
from utils.seeding import generator

TRAIN, TEST, HELD_OUT = "train", "test", "held_out"  # names of splits
DEV = "dev"  # development examples, by which seeds and checkpoints are chosen


@dataclass(frozen=True)
class Examples:
    """Inputs and targets. Inputs are rows of a store that tasks share, so that tasks hold no copies.

    With a `view`, value p of an input is value view[p] of the stored one, or 0 where view[p] is -1: a permutation or a
    rotation of the image without a copy.
    """

    store: Tensor  # [M, *input], on the device, or in the host's memory if it is too large for that
    rows: Tensor  # [N] int64, rows of the store, in the same memory
    targets: Tensor  # [N, *target]
    view: Tensor | None = None  # [P] int64, P the number of values of one input
    slices: Mapping[str, Tensor] = field(default_factory=dict)  # by name: positions [K] that are scored on their own
    names: Sequence[str] | None = None  # of the rows of the store, such as files
    schema: Schema | None = None  # of the rows of the store, if these are documents

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, positions: Tensor) -> "Examples":
        """The examples at `positions`, [K] int64, repeats allowed; without slices."""
        rows = self.rows[positions.to(self.rows.device)]
        return replace(self, rows=rows, targets=self.targets[positions.to(self.targets.device)], slices={})

    def to(self, device: torch.device) -> "Examples":
        """The examples on a device; without slices."""
        moved = {name: getattr(self, name).to(device) for name in ("store", "rows", "targets")}
        return replace(self, **moved, slices={}, schema=None if self.schema is None else self.schema.to(device))

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs and targets if these examples were stored alone."""
        inputs = self.store[0].numel() * self.store.element_size()
        targets = self.targets[0].numel() * self.targets.element_size() if len(self) else 0
        return len(self) * (inputs + targets)


@dataclass(frozen=True)
class Table:
    """A finite train source: every epoch has all its examples, each `repeat` times."""

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
    """An endless train source, which draws fresh examples."""

    epoch_size: int  # examples drawn at once; they count as an epoch where lengths are given in epochs

    @abstractmethod
    def draw(self, n: int, rng: torch.Generator) -> Examples:
        """`n` fresh examples on the device, computed by tensor operations from the random numbers of `rng`.

        Their order is random, their store has nothing else, and their rows are its own in order.
        """

    def epoch(self, rng: torch.Generator) -> Examples:
        """The examples of one epoch, different ones each time."""
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

    id: int  # position in the stream, from 1; identifies the task in all files
    name: str
    num_outputs: int  # width of the head
    train: TrainSource
    splits: Mapping[str, Examples]  # by name: "train" and "test", and any others
    classes: tuple[str, ...] = ()  # name of each output, maybe of later ones too; () if they have none

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the outputs; their numbers, from 0, if the task names none."""
        return self.classes or tuple(map(str, range(self.num_outputs)))

    @property
    def train_eval(self) -> Examples:
        """The training examples without augmentation: to measure the fit and to fill replay memories."""
        return self.splits[TRAIN]

    @property
    def test(self) -> Examples:
        """The test examples, on which the accuracy matrix is measured."""
        return self.splits[TEST]

    @property
    def held_out(self) -> Examples | None:
        """The training examples that nothing is trained on; None if none were set aside."""
        return self.splits.get(HELD_OUT)

    def with_splits(self, **splits: Examples) -> "Task":
        """The same task with some splits added or replaced."""
        return replace(self, splits={**self.splits, **splits})


class Preprocess:
    """Turns stored inputs into network inputs, a whole batch at a time on the device; this one changes nothing."""

    def draw(self, count: int, rng: torch.Generator) -> Tensor | None:
        """The random choices that augment `count` inputs, [count, ...] on the CPU; None without augmentation."""
        return None

    def __call__(self, inputs: Tensor, choices: Tensor | None = None) -> Tensor:
        """[B, *input] as stored -> [B, *input] for the network, augmented if `choices` are given."""
        return inputs

    @property
    def facts(self) -> dict[str, Any]:
        """What a run saves of it, as plain values: what its networks need without augmentation."""
        return {}

    @classmethod
    def saved(cls, where: str, facts: Mapping[str, Any]) -> "Preprocess":
        """The one that has these facts; a UserError, which begins with `where`, if they are wrong."""
        return cls()

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one stored input, of the shape of one input of the network."""
        return shape


@dataclass(frozen=True)
class StreamSpec:
    """What a method may know of a stream in advance."""

    name: str
    input_shape: tuple[int, ...]
    objective: Objective
    preprocess: Preprocess
    heads: str = "task"  # one of net.multihead.HEADS
    scenario: str = "task"  # one of datasets.scenarios.SCENARIOS
    # Inputs are tokens followed by so many positions among them whose outputs are asked for, -1 where there are fewer;
    # or vectors, of which the last ones are asked about. 0: an input has a single output.
    asked: int = 0


@dataclass(frozen=True)
class Episode:
    """One step of continual learning, in which the tasks `new` are revealed."""

    number: int  # from 1
    new: tuple[Task, ...]


@dataclass(frozen=True)
class TaskStream:
    """The ordered tasks of a run."""

    spec: StreamSpec
    tasks: tuple[Task, ...]
    notice: str = ""  # how many of the files of the data set are used, for people
    sums: Mapping[int, str] = field(default_factory=dict)  # fingerprints of tasks whose examples were computed
    validated: bool = False  # the examples in the place of test examples are set aside from those for training

    def task(self, number: int) -> Task:
        """The task with that id; ids have gaps where tasks were forgotten."""
        return next(task for task in self.tasks if task.id == number)

    def held(self) -> dict[torch.device, int]:
        """Bytes of all examples by device; tensors that tasks share count once."""
        examples = [own for task in self.tasks for own in task.splits.values()]
        tensors = [part for own in examples for part in (own.store, own.rows, own.targets, own.view)]
        held: Counter[torch.device] = Counter()
        for tensor in {tensor.data_ptr(): tensor for tensor in tensors if tensor is not None}.values():
            held[tensor.device] += tensor.nbytes
        return dict(held)

    def fingerprints(self) -> dict[int, str]:
        """SHA-256 of the examples of each task: tells whether another process has the same data.

        Of computed examples it is that of what they were computed from: other machines round otherwise.
        """
        if self.sums:
            return {task.id: self.sums[task.id] for task in self.tasks}

        @cache  # tensors that tasks share are read once
        def digest(tensor: Tensor | None, rows: Tensor | slice = slice(None)) -> bytes:
            if tensor is None:
                return b""
            values = tensor[rows].cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            return hashlib.sha256(values.data).digest()

        found = {}
        for task in self.tasks:
            sums = [digest(s.store, s.rows) + digest(s.targets) + digest(s.view) for s in task.splits.values()]
            found[task.id] = hashlib.sha256(b"".join(sums)).hexdigest()
        return found

    def continual(self) -> Iterator[Episode]:
        """An episode for each task."""
        for task in self.tasks:
            yield Episode(task.id, (task,))

    def multitask(self, rounds: int) -> Iterator[Episode]:
        """`rounds` episodes, of which the first reveals all tasks."""
        for number in range(1, rounds + 1):
            yield Episode(number, self.tasks if number == 1 else ())
