"""How one network is trained: length, batches, optimizer and learning-rate schedule."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from utils.errors import UserError
from utils.settings import Range, setting

FULL = "full"
_EPOCHS = 100  # where no length is given
_SHARE = Range(0, 1, whole=False, open_high=True)
_STEPS = Range(0)


class Count:
    """Accepts a whole number from 1, also as a power in a text: 2^24."""

    range = Range(1)

    def describe(self) -> str:
        return f"{self.range.describe()}, or a power such as 2^24"

    def read(self, where: str, value: object) -> int:
        """
        Raises:
            UserError: it is no such number.
        """
        power = re.fullmatch(r"(\d{1,4})(?:\^(\d{1,2}))?", value) if isinstance(value, str) else None
        number = int(power[1]) ** int(power[2] or 1) if power else value
        if not isinstance(number, int) or isinstance(number, bool) or number not in self.range:
            raise UserError(f"{where} is {value!r}; it must be {self.describe()}")
        return number


class BatchSize:
    """Accepts a whole number from 1, or the word "full": all examples of an epoch in one batch."""

    range = Range(1, 65536)

    def describe(self) -> str:
        return f"{self.range.describe()}, or {FULL}"

    def read(self, where: str, value: object) -> int | str:
        """
        Raises:
            UserError: it is neither.
        """
        if value == FULL:
            return FULL
        if not isinstance(value, int) or isinstance(value, bool) or value not in self.range:
            raise UserError(f"{where} is {value!r}; it must be {self.describe()}")
        return value


class StepsOrShare:
    """Accepts a whole number of steps, or a share of all steps: a number below 1."""

    def describe(self) -> str:
        return "a whole number of steps, or a share of all steps below 1"

    def read(self, where: str, value: object) -> float:
        """
        Raises:
            UserError: it is neither.
        """
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or value not in (_STEPS if isinstance(value, int) else _SHARE):  # type: ignore[operator]
            raise UserError(f"{where} is {value!r}; it must be {self.describe()}")
        return value  # type: ignore[return-value]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained. One of `epochs`, `steps` and `examples` sets the length; 100 epochs if none does.

    Raises:
        UserError: several of them are given.
    """

    epochs: int | None = setting(
        Range(1, 10**6),
        "passes of a member over its training examples (default: from the YAML, else 100)",
        default=None,
        option="epochs",
        group="how",
    )
    steps: int | None = setting(
        Count(),
        "length: gradient steps",
        default=None,
    )
    examples: int | None = setting(
        Count(),
        "length: training examples seen",
        default=None,
    )
    batch: int | str = setting(
        BatchSize(),
        "examples of a gradient step; full: all of an epoch",
        default=16,
    )
    lr: float = setting(
        Range(0, 1000, whole=False, open_low=True),
        "highest learning rate",
        default=0.01,
    )
    l2_reg: float = setting(
        Range(0, 1000, whole=False),
        "weight decay",
        default=1e-5,
    )
    optimizer: str = setting(
        ("sgd", "adamw", "adam"),
        "how gradients become steps",
        default="sgd",
    )
    momentum: float = setting(
        Range(0, 1, whole=False, open_high=True),
        "of sgd",
        default=0.9,
    )
    nesterov: bool = setting(
        bool,
        "Nesterov's form of the momentum of sgd",
        default=True,
    )
    beta1: float = setting(
        Range(0, 1, whole=False, open_high=True), "decay of the mean gradient of adam and adamw",
        default=0.9,
    )  # fmt: skip
    beta2: float = setting(
        Range(0, 1, whole=False, open_high=True), "decay of the mean squared gradient of adam and adamw",
        default=0.999,
    )  # fmt: skip
    eps: float = setting(
        Range(0, 1, whole=False, open_low=True), "added to the root of the mean squared gradient of adam and adamw",
        default=1e-8,
    )  # fmt: skip
    schedule: str = setting(
        ("cosine", "constant", "linear", "exponential"), "how the learning rate falls",
        default="cosine",
    )  # fmt: skip
    gamma: float = setting(
        Range(0, 1, whole=False, open_low=True), "factor on the learning rate in each step, schedule: exponential",
        default=0.999,
    )  # fmt: skip
    warmup: float = setting(
        StepsOrShare(), "steps in which the learning rate rises; below 1: share of all steps",
        default=0,
    )  # fmt: skip
    augment: bool | None = setting(
        bool, "train without random crops and flips (default: with, but for a single epoch)", default=None,
        option="no_augment", group="how",
    )  # fmt: skip

    def __post_init__(self) -> None:
        given = [name for name in ("epochs", "steps", "examples") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} are given; one of them sets the length of training")
        if not given:
            object.__setattr__(self, "epochs", _EPOCHS)

    @property
    def augments(self) -> bool:
        """Whether training examples are augmented; if nothing is said, unless each of them is seen once."""
        return self.epochs != 1 if self.augment is None else self.augment

    def batch_size(self, examples: int) -> int:
        """Examples of a batch where an epoch has `examples`."""
        return examples if self.batch == FULL else int(self.batch)

    def length(self, examples: int, size: int) -> int:
        """Gradient steps in all, where an epoch has `examples` in batches of `size`, the last one as small as it is."""
        per_epoch = math.ceil(examples / size)
        if self.steps is not None:
            return self.steps
        if self.examples is not None:
            epochs, rest = divmod(self.examples, examples)
            return epochs * per_epoch + math.ceil(rest / size)
        assert self.epochs is not None
        return self.epochs * per_epoch

    def warmup_steps(self, steps: int) -> int:
        """Of `steps` in all, those in which the learning rate rises."""
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
