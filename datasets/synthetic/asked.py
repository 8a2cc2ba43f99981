"""Sequences with questions: what a task asks of one, and how those of different lengths are stored alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

UNASKED = -1  # target of a question that is none, position of such a question, and the vector of zeros


@dataclass(frozen=True)
class Shape:
    """What the sequences of a task look like; each task reads what it needs."""

    length: int  # L, tokens of a sequence
    vocabulary: int  # V, tokens are 0, ..., V - 1
    pairs: int  # K, keys with a value
    updates: int  # U, keys whose value changes
    power: float  # a, questions stand in slot j with a probability that is proportional to j^(a - 1)
    noise: bool  # other tokens are random ones, not 0
    passes: int  # how often all pairs are shown


class Asked(NamedTuple):
    """Sequences, the positions at which outputs are asked for, from first to last, and the right answers."""

    tokens: Tensor  # [N, L] int64; of vectors [N, L, 2], rows of a table
    positions: Tensor  # [N, K] int64
    answers: Tensor  # [N, K] int64


Fault = tuple[str, str]  # the key of a wrong setting, and what is wrong with it


@dataclass(frozen=True)
class Kind:
    """A kind of task."""

    draw: Callable[[int, Shape, torch.Generator], Asked]  # so many sequences, on the device of the generator
    questions: Callable[[Shape], int]  # of each sequence
    fault: Callable[[Shape], Fault | None]  # why there is no such sequence
    keys: tuple[str, ...]  # what sets the difficulty, some of "length", "pairs" and "updates"
    baselines: Callable[[Shape], dict[str, float]]  # the expected accuracy of answers that need no network, by name
    vectors: bool = False  # inputs are vectors, not tokens
    by_answer: bool = False  # of one question; tests are also scored for each answer alone

    def difficulty(self, shape: Shape) -> dict[str, int]:
        """The values of `keys`."""
        return {key: getattr(shape, key) for key in self.keys}


def describe(difficulty: Mapping[str, int]) -> str:
    """A difficulty in words, such as "length 64, 4 pairs"."""
    named = {key: key.removesuffix("s") if value == 1 else key for key, value in difficulty.items()}
    return ", ".join(f"length {value}" if key == "length" else f"{value} {named[key]}"
                     for key, value in difficulty.items())  # fmt: skip


@dataclass(frozen=True)
class Layout(ABC):
    """How sequences of at most `length` positions with at most `asked` questions are stored as inputs of one shape."""

    length: int
    asked: int

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The type of inputs."""

    @abstractmethod
    def values(self, shape: Shape) -> int:
        """Values of one sequence of a shape without what fills it up."""

    @abstractmethod
    def stored(self, found: Asked) -> tuple[Tensor, Tensor]:
        """Inputs [N, *shape] and targets [N, asked]."""

    def to(self, device: torch.device) -> "Layout":
        """The layout for sequences on a device."""
        return self


@dataclass(frozen=True)
class TokenLayout(Layout):
    """`length` tokens, 0 behind the end of a shorter sequence; then the positions that are asked, -1 behind them."""

    dtype = torch.int64

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length + self.asked,)

    def values(self, shape: Shape) -> int:
        return shape.length

    def stored(self, found: Asked) -> tuple[Tensor, Tensor]:
        behind = (0, self.asked - found.answers.shape[1])
        tokens = F.pad(found.tokens, (0, self.length - found.tokens.shape[1]))
        positions = F.pad(found.positions, behind, value=UNASKED)
        return torch.cat([tokens, positions], -1), F.pad(found.answers, behind, value=UNASKED)


@dataclass(frozen=True)
class VectorLayout(Layout):
    """`length` vectors, zeros before the start of a shorter sequence; the last `asked` ones are asked."""

    table: Tensor  # [V + 1, d] float32, of which the last row is zeros

    dtype = torch.float32

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, 2 * self.table.shape[1])

    def values(self, shape: Shape) -> int:
        return (shape.passes + 1) * shape.pairs * 2 * self.table.shape[1]

    def stored(self, found: Asked) -> tuple[Tensor, Tensor]:
        rows = F.pad(found.tokens, (0, 0, self.length - found.tokens.shape[1], 0), value=UNASKED)
        answers = F.pad(found.answers, (self.asked - found.answers.shape[1], 0), value=UNASKED)
        return self.table[rows].flatten(2), answers

    def to(self, device: torch.device) -> Layout:
        return replace(self, table=self.table.to(device))
