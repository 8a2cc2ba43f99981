"""The stream of sparse features: inputs that are to be reconstructed, drawn fresh while a network trains, or frozen.

    {dataset: superposition, tasks: [sparse, {task: k_hot, active: 2}], features: 6, probability: 0.1, decay: 0.9}
    {dataset: superposition, tasks: [{importances: [1, 1, 0]}, {importances: [0, 1, 1]}], features: 3}

The target of an input is the input itself. Training examples depend on the seed of the run; development and test
examples are the same in all runs.

Source: Elhage et al., "Toy models of superposition" (2022); Chen et al., "Dynamical versus Bayesian phase transitions
in a toy model of superposition" (2023).
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from datasets.config import DataConfig, TaskList
from datasets.objectives import Reconstruction
from datasets.synthetic.amounts import Amounts
from datasets.synthetic.recall import distinct
from datasets.task import TRAIN, Examples, Generator, Preprocess, StreamSpec, Table, Task, TaskStream
from datasets.validation import random_stream
from utils.errors import UserError
from utils.seeding import generator, on_device
from utils.settings import Range, declarations, optional, setting


class Importances:
    """A list of numbers that are at least 0, at least one of them above it."""

    @staticmethod
    def read(where: str, value: object) -> tuple[float, ...]:
        """The checked numbers; a UserError begins with `where`."""
        numbers = value if isinstance(value, (list, tuple)) else ()
        found = tuple(Range(0, whole=False).check(where, number) for number in numbers)
        if not any(found):
            raise UserError(f"{where} is {value!r}; it must be a number for each feature, at least one of them above 0")
        return found


@dataclass(frozen=True)
class Law:
    """How features are distributed, and how much each of them matters."""

    features: int = setting(Range(1, 4096), "f, features of an input", default=6)
    probability: float = setting(
        Range(0, 1, whole=False, open_low=True), "that a feature, or a group of features, is not 0", default=0.1
    )
    active: int = setting(Range(1, 4096), "features of k_hot that are not 0", default=1)
    group: int = setting(Range(1, 4096), "features that come together, or one at a time, a divisor of f", default=2)
    values: str = setting(("uniform", "ones"), "of features that are not 0: uniform in [0, 1), or 1", default="uniform")
    decay: float = setting(
        Range(0, whole=False, open_low=True), "r: feature i, from 0, has the importance r^i", default=1.0
    )
    importances: Sequence[float] | None = setting(
        Importances, "the importance of each feature, in place of decay; 0: it need not be reconstructed", default=None
    )
    averaged: bool = setting(bool, "the loss is the mean over features; false: the sum", default=False)


def sparse(count: int, law: Law, rng: torch.Generator) -> Tensor:
    """Each feature is there with the probability p, whatever the others are."""
    return _luck(count, law.features, rng) < law.probability


def k_hot(count: int, law: Law, rng: torch.Generator) -> Tensor:
    """Exactly k features are there, all choices equally likely."""
    chosen = distinct(count, law.active, law.features, rng)
    return torch.zeros(count, law.features, dtype=torch.bool, device=rng.device).scatter_(1, chosen, True)


def correlated(count: int, law: Law, rng: torch.Generator) -> Tensor:
    """The features of a group are all there, with the probability p, or none of them."""
    return (_luck(count, law.features // law.group, rng) < law.probability).repeat_interleave(law.group, 1)


def anticorrelated(count: int, law: Law, rng: torch.Generator) -> Tensor:
    """With the probability p one feature of a group is there, any of them; never two."""
    groups = law.features // law.group
    there = _luck(count, groups, rng) < law.probability
    which = torch.randint(law.group, (count, groups), generator=rng, device=rng.device)
    one = torch.nn.functional.one_hot(which, law.group).bool()
    return (one & there.unsqueeze(-1)).flatten(1)


def table(law: Law) -> Tensor:
    """All choices of k of the f features, [C(f, k), f]."""
    chosen = torch.tensor(list(itertools.combinations(range(law.features), law.active)))
    return torch.zeros(len(chosen), law.features).scatter_(1, chosen, 1.0)


def _luck(count: int, width: int, rng: torch.Generator) -> Tensor:
    return torch.rand(count, width, generator=rng, device=rng.device)


TABLE = "table"  # the task whose examples are the whole table
_MOST_NUMBERS = 10**8  # of a table
KINDS: Mapping[str, Callable[[int, Law, torch.Generator], Tensor] | None] = {
    "sparse": sparse, "k_hot": k_hot, "correlated": correlated, "anticorrelated": anticorrelated, TABLE: None,
}  # fmt: skip
_LawKeys = optional(Law, "LawKeys")


@dataclass(frozen=True)
class FeatureTask(_LawKeys):  # type: ignore[misc, valid-type]
    """One task of a stream, as written in the dataset YAML; what it does not say, the stream says."""

    task: str = setting(tuple(KINDS), "how features are distributed", default="sparse")
    name: str | None = setting(str, "name of the task", default=None)
    label_noise: ClassVar[float] = 0.0


@dataclass(frozen=True)
class FeatureConfig(DataConfig):
    """Which distributions of features, in which order."""

    tasks: tuple[Any, ...] = setting(TaskList(FeatureTask, "task", "task, such as [sparse, k_hot]"), "the tasks")

    def law(self, task: int) -> Law:
        """The law of a task, by its place; UserError if there is no such law."""
        asked, given = self.tasks[task], dict[str, Any]()
        for part in (self.settings, asked):
            given |= {key: value for key in declarations(Law) if (value := getattr(part, key)) is not None}
        law, where = Law(**given), f"{self.path}: task {task + 1}"
        if law.importances is not None and law.decay != 1:
            raise UserError(f"{where}: importances and decay are given; leave one out")
        if law.importances is not None and len(law.importances) != law.features:
            raise UserError(
                f"{where}: importances are given for {len(law.importances)} features; there are {law.features}"
            )
        if asked.task in ("k_hot", TABLE) and law.active > law.features:
            raise UserError(f"{where}: active is {law.active}; there are {law.features} features")
        if asked.task == TABLE and (rows := math.comb(law.features, law.active)) * law.features > _MOST_NUMBERS:
            raise UserError(
                f"{where}: active is {law.active}: a table of {rows:,} choices is too large; k_hot draws some of them"
            )
        if asked.task in ("correlated", "anticorrelated") and law.features % law.group:
            raise UserError(f"{where}: group is {law.group}; it must divide the number of features, {law.features}")
        return law


FeatureSettings = make_dataclass("FeatureSettings", (), bases=(Amounts, _LawKeys), frozen=True)


@dataclass(frozen=True)
class FreshFeatures(Generator):
    """Inputs of a law, drawn on the device."""

    kind: str
    law: Law
    epoch_size: int
    device: torch.device

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        return self._examples(n, on_device(rng, self.device))

    def frozen(self, n: int, seed: int, *name: object) -> Examples:
        """`n` examples from the random stream `name` of `seed`, the same on every device; of the table all."""
        rng = generator(seed, "superposition", self.kind, self.law, *name)
        return self._examples(len(table(self.law)) if self.kind == TABLE else n, rng).to(self.device)

    def _examples(self, n: int, rng: torch.Generator) -> Examples:
        """Examples side by side in memory; inputs are a part of the targets."""
        law = self.law
        targets = torch.empty(2, law.features, n, device=rng.device)
        self._write(targets[0], rng)
        targets[1] = importances(law).to(rng.device).unsqueeze(1)
        rows = torch.arange(n, device=rng.device)
        return Examples(targets[0].T, rows, targets.permute(2, 0, 1))

    def _write(self, inputs: Tensor, rng: torch.Generator) -> None:
        """Draw inputs, [f, n]; of the table all."""
        law, uniform, n = self.law, self.law.values == "uniform", inputs.shape[1]
        if self.kind == TABLE:
            inputs.copy_(table(law).T)
        elif self.kind == "k_hot" and law.active == 1:  # one number and one value, not f
            which = torch.randint(law.features, (1, n), generator=rng, device=rng.device)
            value = _luck(1, n, rng) if uniform else torch.ones(1, n, device=rng.device)
            inputs.zero_().scatter_(0, which, value)
        elif self.kind == "sparse":
            luck = _luck(law.features, n, rng)
            there = luck < law.probability
            # Below p, a number that is uniform below 1 is uniform below p.
            torch.mul(there, luck.div_(law.probability) if uniform else 1.0, out=inputs)
        else:
            draw = KINDS[self.kind]
            assert draw is not None  # the table is not drawn
            mask = draw(n, law, rng).T
            torch.mul(mask, _luck(law.features, n, rng) if uniform else 1.0, out=inputs)


def importances(law: Law) -> Tensor:
    """How much the squared error of each feature counts, [f]."""
    given = law.importances
    found = law.decay ** torch.arange(law.features) if given is None else torch.tensor(given)
    return found / law.features if law.averaged else found


def superposition(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream whose tasks the dataset YAML names; UserError if there are no such inputs."""
    assert isinstance(config, FeatureConfig)
    own, tasks = config.settings, []
    laws = [config.law(place) for place in range(len(config.tasks))]
    if len({law.features for law in laws}) > 1:
        raise UserError(f"{config.path}: tasks: all tasks of a stream must have the same number of features")
    for number, (task, law) in enumerate(zip(config.tasks, laws, strict=True), 1):
        if number not in config.numbers:
            continue
        fresh = FreshFeatures(task.task, law, own.epoch_examples, device)
        if config.validation and task.task == TABLE:
            raise UserError(f"--validation {config.validation:g}: task {number} is a table without other examples")
        splits = {
            split: fresh.frozen(count, *random_stream(config, split, seed)) for split, count in own.splits.items()
        }
        live = own.fresh and task.task != TABLE
        tasks.append(Task(number, _name(task), law.features, fresh if live else Table(splits[TRAIN]), splits))
    spec = StreamSpec(config.stream, (laws[0].features,), Reconstruction(), Preprocess(), heads="identity")
    return TaskStream(spec, tuple(tasks), validated=config.validation > 0)


superposition.Settings = FeatureSettings  # type: ignore[attr-defined]
superposition.Config = FeatureConfig  # type: ignore[attr-defined]


def _name(task: FeatureTask) -> str:
    """The name of a task: the given one, or its kind and what sets it apart."""
    given = {key: value for key in declarations(Law) if (value := getattr(task, key)) is not None}
    words = ", ".join(f"{key} {value}" for key, value in given.items())
    return task.name or (f"{task.task} ({words})" if words else task.task)
