"""What a sequence mixer is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from utils.errors import UserError
from utils.settings import setting

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class MixerSettings:
    """Settings of a sequence mixer; each mixer derives its own class from this one."""

    mixer: str = setting(str, "name of the sequence mixer")


def check_divides(settings: MixerSettings, key: str, width: int, what: str = "the width") -> None:
    """UserError if a setting of a mixer does not divide a width."""
    value = getattr(settings, key)
    if width % value:
        raise UserError(f"{settings.mixer}: {key} is {value}; it must divide {what}, {width}")


class Mixer(nn.Module, ABC):
    """Moves information between positions: [B, L, d] -> [B, L, d]; position t sees the positions up to t.

    The parallel form (`forward`) trains; the step form (`begin` and `step`) computes the same one position at a time
    from a state. Weights of linear layers and convolutions have the usual initialisation of torch, which the model may
    replace; of modules that `keeps_init` lists it does not.

    Args:
        width: d, values at each position.
        length: positions of the longest input.
        settings: of the class `Settings`.
    """

    Settings: type[MixerSettings]
    heads = 1
    joined_by = "out_proj"  # the linear map whose inputs are what the heads have read, side by side

    def __init__(self, width: int, length: int, settings: Any) -> None:
        super().__init__()
        self.width, self.length = width, length

    @abstractmethod
    def forward(self, inputs: Tensor) -> Tensor:
        """The parallel form: [B, L, d] -> [B, L, d]."""

    @abstractmethod
    def begin(self, batch: int) -> State:
        """The state before the first position, for `batch` sequences, with the type and device of the parameters."""

    @abstractmethod
    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """The step form: inputs at one position [B, d] and the state before it -> outputs [B, d], state after it."""

    @abstractmethod
    def state_size(self, length: int) -> int:
        """Numbers that the step form has to remember of one sequence after `length` positions."""

    @property
    def joining(self) -> nn.Module | None:
        """The linear map that joins the heads; None if there is none."""
        return getattr(self, self.joined_by, None)

    def keeps_init(self) -> Iterator[nn.Module]:
        """Linear layers whose initialisation is part of the mixer's definition."""
        yield from ()
