"""The stream of modular arithmetic: two numbers of {0, ..., p - 1}, and what an operation makes of them modulo p.

    {dataset: modular, tasks: [addition, {task: division, name: the hard one}], modulus: 59, train_share: 0.3}

An input is a, b and a token that tells the operation; the answer is asked for there. Every pair is in exactly one
split: a random share of them is trained on, and the others are halved into development and test examples. The seed of
the run decides which.

Source: Power et al., "Grokking: generalization beyond overfitting on small algorithmic datasets" (2022),
appendix A.1.1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from datasets.config import DataConfig, TaskList
from datasets.objectives import Tokens
from datasets.task import DEV, TEST, TRAIN, Examples, Preprocess, StreamSpec, Table, Task, TaskStream
from datasets.validation import real_test, taken
from utils.errors import UserError
from utils.seeding import generator
from utils.settings import Range, setting


class Operation(NamedTuple):
    """What is made of a and b, int64 tensors of one shape, and p; the answer modulo p is the right one."""

    answer: Callable[[Tensor, Tensor, int], Tensor]
    divides: bool = False  # by some b; p is a prime number
    least: int = 0  # b: 1 where all are divided by
    symmetric: bool = False  # in a and b


def divided(a: Tensor, b: Tensor, p: int) -> Tensor:
    """The c with b c = a modulo a prime number p, by Fermat's little theorem: a b^(p - 2)."""
    inverses = torch.tensor([pow(number, p - 2, p) for number in range(p)], device=b.device)
    return a * inverses[b] % p


OPERATIONS: Mapping[str, Operation] = {
    "addition": Operation(lambda a, b, p: a + b, symmetric=True),
    "subtraction": Operation(lambda a, b, p: a - b),
    "multiplication": Operation(lambda a, b, p: a * b, symmetric=True),
    "division": Operation(divided, divides=True, least=1),
    # a / b for odd b, or else a - b
    "division_or_subtraction": Operation(lambda a, b, p: divided(a, b, p).where(b % 2 == 1, a - b), divides=True),
    "x^2+y^2": Operation(lambda a, b, p: a**2 + b**2, symmetric=True),
    "x^2+xy+y^2": Operation(lambda a, b, p: a**2 + a * b + b**2, symmetric=True),
    "x^2+xy+y^2+x": Operation(lambda a, b, p: a**2 + a * b + b**2 + a),
    "x^3+xy": Operation(lambda a, b, p: a**3 + a * b),
    "x^3+xy^2+y": Operation(lambda a, b, p: a**3 + a * b**2 + b),
}
_ASKED = 2  # where an input has the token of the operation


@dataclass(frozen=True)
class ModularTask:
    """One task of a stream, as written in the dataset YAML."""

    task: str = setting(tuple(OPERATIONS), "name of the operation")
    name: str | None = setting(str, "name of the task", default=None)
    label_noise: ClassVar[float] = 0.0  # answers are computed


@dataclass(frozen=True)
class ModularConfig(DataConfig):
    """Which operations, in which order."""

    tasks: tuple[Any, ...] = setting(
        TaskList(ModularTask, "task", "operation, such as [addition, division]"), "the operations"
    )

    def baselines(self, task: int) -> dict[str, float]:
        """The share of the most frequent answer."""
        found = table(self.tasks[task].task, self.settings.modulus)[:, -1]
        return {"most frequent": float(found.bincount().max()) / len(found)}


@dataclass(frozen=True)
class ModularSettings:
    """Keys of the dataset YAML."""

    modulus: int = setting(Range(3, 1024), "p; a prime number where there is a division", default=59)
    train_share: float = setting(
        Range(0, 1, whole=False, open_low=True, open_high=True), "share of the pairs that is trained on", default=0.3
    )


def table(operation: str, modulus: int) -> Tensor:
    """All pairs with their answers, rows a, b, c of [p^2, 3] int64; without b = 0 where all are divided by b."""
    chosen, numbers = OPERATIONS[operation], torch.arange(modulus)
    a, b = torch.cartesian_prod(numbers, numbers[chosen.least :]).unbind(1)
    return torch.stack([a, b, chosen.answer(a, b, modulus) % modulus], 1)


def modular(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream whose operations the dataset YAML names; UserError if p is not prime or a split would be empty."""
    assert isinstance(config, ModularConfig)
    modulus, names = config.settings.modulus, [task.task for task in config.tasks]
    if any(OPERATIONS[name].divides for name in names) and any(modulus % n == 0 for n in range(2, modulus)):
        raise UserError(f"{config.path}: modulus is {modulus}; it must be a prime number, so that one can divide")
    if len(set(names)) < len(names):
        raise UserError(f"{config.path}: tasks has an operation twice; name each once")
    outputs, tasks = (*map(str, range(modulus)), *names), []
    for number, (task, name) in enumerate(zip(config.tasks, names, strict=True), 1):
        if number not in config.numbers:
            continue
        rows = table(name, modulus)
        chosen = _split(config, len(rows), generator(seed, "modular", name, modulus))
        token = torch.full((len(rows), 1), outputs.index(name))
        store = torch.cat([rows[:, :2], token, torch.full_like(token, _ASKED)], 1)
        everything = Examples(store, torch.arange(len(rows)), rows[:, 2:]).to(device)
        splits = {split: everything.subset(part) for split, part in chosen.items()}
        if OPERATIONS[name].symmetric:
            for split in (DEV, TEST):
                splits[split] = replace(splits[split], slices=_mirrored(rows, chosen[TRAIN], chosen[split]))
        tasks.append(Task(number, task.name or name, len(outputs), Table(splits[TRAIN]), splits, outputs))
    spec = StreamSpec(config.stream, (_ASKED + 2,), Tokens(), Preprocess(), heads="identity", asked=1)
    return TaskStream(spec, tuple(tasks), validated=config.validation > 0)


modular.Settings = ModularSettings  # type: ignore[attr-defined]
modular.Config = ModularConfig  # type: ignore[attr-defined]


def arithmetic(task: Task) -> tuple[str, int] | None:
    """The operation and the modulus p of a task of this stream; None for a task of another one."""
    names, store = task.output_names, task.splits[TRAIN].store
    modulus = next((place for place, name in enumerate(names) if name in OPERATIONS), 0)
    if not modulus or store.dtype != torch.int64 or store.shape[1:] != (_ASKED + 2,):
        return None
    return names[int(store[0, _ASKED])], modulus


def all_pairs(task: Task) -> tuple[Tensor, Tensor]:
    """The inputs of all pairs of a task of this stream, [p^2, 4], and which of them are trained on, a mask [p^2].

    Pair (a, b) is in row a p + b. A division by 0, which is in no split, is there too.
    """
    found = arithmetic(task)
    assert found is not None
    modulus, trained = found[1], task.splits[TRAIN]
    numbers = torch.arange(modulus, device=trained.store.device)
    pairs = torch.cartesian_prod(numbers, numbers)
    inputs = torch.cat([pairs, trained.store[:1, _ASKED:].expand(len(pairs), -1)], 1)
    a, b = trained.store[trained.rows, :_ASKED].unbind(1)
    mask = torch.zeros(len(pairs), dtype=torch.bool, device=inputs.device).index_fill(0, a * modulus + b, True)
    return inputs, mask


def _split(config: DataConfig, count: int, rng: torch.Generator) -> dict[str, Tensor]:
    """Which of so many pairs are in which split, in random order; UserError if there are too few."""
    share = config.settings.train_share
    trained = round(share * count)
    rest = count - trained
    if not trained or rest < 2:
        raise UserError(f"{config.path}: train_share is {share:g}: of {count} pairs {trained} would be trained on, "
                        f"and {rest} left for development and test")  # fmt: skip
    train, dev, test = torch.randperm(count, generator=rng).split([trained, rest // 2, rest - rest // 2])
    if config.validation:
        if trained < 2:
            raise UserError(f"--validation {config.validation:g} leaves no pair to train on, of one; leave it out")
        test, train = train.tensor_split([taken(config.validation, trained)])
    else:
        test = real_test(config, lambda: test)
    return {TRAIN: train, DEV: dev, TEST: test}


def _mirrored(rows: Tensor, trained: Tensor, chosen: Tensor) -> dict[str, Tensor]:
    """The chosen pairs (a, b) of which (b, a) is trained on, and the others, as positions among the chosen ones."""
    known = set(map(tuple, rows[trained, :2].tolist()))
    seen = torch.tensor([(b, a) in known for a, b in rows[chosen, :2].tolist()])
    parts = {"mirror trained on": seen, "mirror not trained on": ~seen}
    return {name: part.nonzero().flatten() for name, part in parts.items() if part.any()}
