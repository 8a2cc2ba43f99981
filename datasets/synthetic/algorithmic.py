"""The stream of algorithms: random inputs, drawn fresh while a network trains and frozen for evaluation.

    {dataset: algorithmic, tasks: [2nd_argmax, {task: argmax, length: 5, name: the easy one}], length: 10}

Tasks of one length share their inputs in every split. Training examples depend on the seed of the run; development and
test examples are the same in all runs, like the test images of a data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.config import DataConfig, TaskList
from datasets.synthetic.algorithms import ALGORITHMS, MAP, Algorithm, draw
from datasets.synthetic.amounts import COUNT, Amounts
from datasets.task import TRAIN, Examples, Generator, Preprocess, StreamSpec, Table, Task, TaskStream
from datasets.validation import random_stream
from utils.errors import UserError
from utils.seeding import generator
from utils.settings import Range, setting

_LENGTH = Range(2, 256)


@dataclass(frozen=True)
class AlgorithmTask:
    """One task of a stream, as written in the dataset YAML."""

    task: str = setting(tuple(ALGORITHMS), "name of the algorithm")
    length: int | None = setting(_LENGTH, "entries of an input (default: `length` of the stream)", default=None)
    name: str | None = setting(str, "name of the task", default=None)
    label_noise: ClassVar[float] = 0.0  # answers are computed


@dataclass(frozen=True)
class AlgorithmConfig(DataConfig):
    """Which algorithms, in which order."""

    tasks: tuple[Any, ...] = setting(
        TaskList(AlgorithmTask, "task", "algorithm, such as [argmax, 2nd_argmax]"), "the algorithms"
    )

    def baselines(self, task: int) -> dict[str, float]:
        asked = self.tasks[task]
        return ALGORITHMS[asked.task].baselines(asked.length or self.settings.length, self.settings.readout)


@dataclass(frozen=True)
class AlgorithmKeys:
    """Keys of the dataset YAML."""

    length: int = setting(_LENGTH, "entries of an input, where a task has no length of its own", default=10)
    readout: bool = setting(bool, "the last token of longest_cycle is one at which the answer is read", default=False)


@dataclass(frozen=True)
class AlgorithmSettings(Amounts, AlgorithmKeys):
    """All keys of the dataset YAML: how many examples there are stands last."""

    dev_examples: int = setting(COUNT, "development examples of a task", default=1 << 16)
    test_examples: int = setting(COUNT, "test examples of a task", default=1 << 18)
    epoch_examples: int = setting(COUNT, "fresh examples that are drawn at once", default=1 << 16)


@dataclass(frozen=True)
class FreshInputs(Generator):
    """Examples of an algorithm, drawn on the device."""

    algorithm: Algorithm
    length: int
    width: int  # of the inputs of the stream
    readout: bool
    epoch_size: int
    device: torch.device

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        inputs = draw(self.algorithm.inputs, n, self.length, self.readout, rng, self.device)
        rows = torch.arange(n, device=self.device)
        return Examples(_padded(inputs, self.width), rows, self.algorithm.answer(inputs))


def algorithmic(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream whose tasks are the algorithms that the dataset YAML names; UserError if they do not go together."""
    assert isinstance(config, AlgorithmConfig)
    own = config.settings
    lengths = [task.length or own.length for task in config.tasks]
    _check(config, lengths)
    width, first = max(lengths), ALGORITHMS[config.tasks[0].task]

    @cache
    def inputs(length: int, split: str) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs on the CPU, where the same are drawn for every device; as a store and its rows on the device."""
        kind = f"{first.inputs} with a read-out" if own.readout else first.inputs
        own_seed, name = random_stream(config, split, seed)
        rng = generator(own_seed, "algorithmic", kind, length, name)
        drawn = draw(first.inputs, own.splits[split], length, own.readout, rng, torch.device("cpu"))
        return drawn, _padded(drawn, width).to(device), torch.arange(len(drawn), device=device)

    def frozen(algorithm: Algorithm, length: int, split: str) -> Examples:
        drawn, store, rows = inputs(length, split)
        answers = algorithm.answer(drawn)
        slices = {} if split == TRAIN else algorithm.slices(drawn, answers)
        return Examples(store, rows, answers.to(device), slices=slices)

    tasks = []
    for number, (task, length) in enumerate(zip(config.tasks, lengths, strict=True), 1):
        if number not in config.numbers:
            continue
        algorithm = ALGORITHMS[task.task]
        splits = {split: frozen(algorithm, length, split) for split in own.splits}
        fresh = FreshInputs(algorithm, length, width, own.readout, own.epoch_examples, device)
        name = task.name or (f"{task.task} of length {length}" if task.length else task.task)
        source = fresh if own.fresh else Table(splits[TRAIN])
        tasks.append(Task(number, name, algorithm.outputs(length), source, splits))
    spec = StreamSpec(config.stream, (width,), first.objective, Preprocess())
    return TaskStream(spec, tuple(tasks), validated=config.validation > 0)


algorithmic.Settings = AlgorithmSettings  # type: ignore[attr-defined]
algorithmic.Config = AlgorithmConfig  # type: ignore[attr-defined]


def _padded(inputs: Tensor, width: int) -> Tensor:
    """Inputs with zeros in front, which leave the state of a network without biases that starts at zero as it is."""
    return F.pad(inputs, (width - inputs.shape[-1], 0))


def _check(config: AlgorithmConfig, lengths: Sequence[int]) -> None:
    """UserError if tasks differ in their kind of inputs or answers, or in lengths that cannot be evened out."""
    first, *others = (task.task for task in config.tasks)
    for name in others:
        one, other = ALGORITHMS[first], ALGORITHMS[name]
        if (one.inputs, one.classes) != (other.inputs, other.classes):
            what = f"{first} is {_kind(one)}, {name} {_kind(other)}"
            raise UserError(f"{config.path}: tasks: {what}; the tasks of a stream are of one kind")
    maps, readout = ALGORITHMS[first].inputs == MAP, config.settings.readout
    if maps and len(set(lengths)) > 1:
        raise UserError(f"{config.path}: tasks: {first} has the lengths {sorted(set(lengths))}; give all the same")
    if readout and not maps:
        raise UserError(f"{config.path}: readout is for tokens, which {first} has not; leave it out")
    if readout and lengths[0] == 2:
        raise UserError(f"{config.path}: readout leaves one token of length 2; it needs a length of at least 3")


def _kind(algorithm: Algorithm) -> str:
    inputs = "tokens" if algorithm.inputs == MAP else "numbers"
    return f"{inputs} -> {'a class' if algorithm.classes else 'a number'}"
