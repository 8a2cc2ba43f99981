"""The recipe by which one network is trained: length, batches, optimizer and learning-rate schedule."""

import math
from dataclasses import dataclass
from typing import Any

from utils.errors import UserError
from utils.settings import COUNT, Accepted, Range, setting

FULL = "full"
_EPOCHS = 100  # where no length is given
_BATCH = Range(1, 65536)
_SHARE = Range(0, 1, whole=False, open_high=True)  # from 0 to below 1
_FACTOR = Range(0, 1, whole=False, open_low=True)  # above 0 to 1


def _batch_size(value: Any) -> int | str:
    return FULL if value == FULL else _BATCH.check("", value)


def _steps_or_share(value: Any) -> float:
    return (Range(0) if isinstance(value, int) else _SHARE).check("", value)


BATCH_SIZE = Accepted(f"{_BATCH.describe()}, or {FULL}", _batch_size, str)
STEPS_OR_SHARE = Accepted("a whole number of steps, or a share of all steps below 1", _steps_or_share)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    One of `epochs`, `steps` and `examples` sets the length: 100 epochs if none is given, a UserError if several are.
    """

    epochs: int | None = setting(
        Range(1, 10**6), "passes of a member over its training examples (default: from the YAML, else 100)",
        default=None, option="epochs", group="how",
    )  # fmt: skip
    steps: int | None = setting(
        COUNT, "the length in gradient steps, such as 2^14 (default: in epochs)", default=None, option="steps",
        group="how",
    )  # fmt: skip
    examples: int | None = setting(
        COUNT, "the length in training examples seen, such as 2^24 (default: in epochs)", default=None,
        option="examples", group="how",
    )  # fmt: skip
    batch: int | str = setting(BATCH_SIZE, "examples of a gradient step; full: all of an epoch", default=16)
    steps_per_batch: int = setting(Range(1, 1000), "gradient steps on each batch of the task", default=1)
    lr: float = setting(Range(0, 1000, whole=False, open_low=True), "highest learning rate", default=0.01)
    lr_scale: str = setting(
        ("none", "inverse_sqrt_width"),
        "factor on lr; inverse_sqrt_width: 1 / sqrt(width of the network)",
        default="none",
    )
    l2_reg: float = setting(Range(0, 1000, whole=False), "weight decay", default=1e-5)
    decayed: str = setting(
        ("all", "weights"), "parameters with weight decay; weights: those of linear layers and convolutions alone",
        default="all",
    )  # fmt: skip
    optimizer: str = setting(("sgd", "adamw", "adam"), "how gradients become steps", default="sgd")
    momentum: float = setting(_SHARE, "of sgd", default=0.9)
    nesterov: bool = setting(bool, "Nesterov's form of the momentum of sgd", default=True)
    beta1: float = setting(_SHARE, "decay of the mean gradient of adam and adamw", default=0.9)
    beta2: float = setting(_SHARE, "decay of the mean squared gradient of adam and adamw", default=0.999)
    eps: float = setting(_FACTOR, "added to the root of the mean squared gradient of adam and adamw", default=1e-8)
    reset_optimizer: bool = setting(
        bool, "a network that learns one task after another begins each with a new optimizer", default=True
    )
    schedule: str = setting(
        ("cosine", "constant", "linear", "exponential", "half_exponential"),
        "how the learning rate falls",
        default="cosine",
    )
    gamma: float = setting(_FACTOR, "factor on the learning rate in each step, schedule: exponential", default=0.999)
    warmup: float = setting(
        STEPS_OR_SHARE, "steps in which the learning rate rises; below 1: share of all steps", default=0
    )
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
        """Whether training examples are augmented; by default they are, unless there is a single epoch."""
        return self.epochs != 1 if self.augment is None else self.augment

    def batch_size(self, examples: int) -> int:
        """Examples in a batch where an epoch has `examples`."""
        return examples if self.batch == FULL else int(self.batch)

    def length(self, examples: int, size: int) -> int:
        """Gradient steps in all, where an epoch has `examples` in batches of `size`, the last one possibly smaller."""
        if self.steps is not None:
            return self.steps
        whole = examples * self.steps_per_batch
        epochs, rest = (self.epochs, 0) if self.examples is None else divmod(self.examples, whole)
        assert epochs is not None
        return epochs * math.ceil(examples / size) * self.steps_per_batch + math.ceil(rest / size)

    def seen(self, steps: int, examples: int, size: int) -> int:
        """Training examples seen in the first `steps`, where an epoch has `examples` in batches of `size`."""
        repeat = self.steps_per_batch
        epochs, rest = divmod(steps, math.ceil(examples / size) * repeat)
        batch, again = divmod(rest, repeat)
        before, after = (min(count * size, examples) for count in (batch, batch + 1))
        return epochs * examples * repeat + before * repeat + again * (after - before)

    def warmup_steps(self, steps: int) -> int:
        """Of `steps` in all, those in which the learning rate rises."""
        return round(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
