"""Gated convolution."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, MixerSettings, State
from net.sequences.mixers.convolution import (
    causal_convolution,
    check_length,
    last_convolved,
    position_features,
)
from net.sequences.mixers.short_conv import ShortConvolution
from utils.settings import Range, setting


class BaseConv(Mixer):
    """A convolution gated by a linear map.

        y_t = conv(u)_t * (W u_t + b) + u_t

        short:     conv(u)_t = c + sum_{j < k} w_j u_{t-j}
        long:      conv(u)_t = sum_{s <= t} K_{t-s} u_s + u_t
        implicit:  K_t = W_2 relu(W_1 z_t + b_1) + b_2,  z trainable, initially `position_features`
        explicit:  K free, initially N(0, 1)

    all channel by channel; `silu` applies x sigmoid(x) to both factors. The short state counts k inputs and the long
    one L, as published. Source: Arora et al., "Zoology" (2023), section 4.
    """

    @dataclass(frozen=True)
    class Settings(MixerSettings):
        """Settings of a gated convolution."""

        filter: str = setting(("short", "implicit", "explicit"), "kind of the filter", default="short")
        kernel: int = setting(Range(1, 4096), "positions of a short filter", default=3)
        hidden: int = setting(Range(1, 4096), "hidden values of the network that gives an implicit filter", default=16)
        silu: bool = setting(bool, "whether both factors pass SiLU", default=False)

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        self.kernel = settings.kernel
        self.act = F.silu if settings.silu else nn.Identity()
        self.gate = nn.Linear(width, width)
        self.conv: ShortConvolution | LongConvolution
        if settings.filter == "short":
            self.conv = ShortConvolution(width, settings.kernel, bias=True)
        elif settings.filter == "implicit":
            self.conv = LongConvolution(ImplicitFilter(width, length, settings.hidden))
        else:
            self.conv = LongConvolution(ExplicitFilter(width, length))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.act(self.conv(inputs)) * self.act(self.gate(inputs)) + inputs

    def begin(self, batch: int) -> State:
        return (self.conv.begin(batch),)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        mixed, past = self.conv.step(inputs, state[0])
        return self.act(mixed) * self.act(self.gate(inputs)) + inputs, (past,)

    def state_size(self, length: int) -> int:
        return self.width * (self.kernel if isinstance(self.conv, ShortConvolution) else length)


class LongConvolution(nn.Module):
    """The long branch: filtered and unfiltered inputs, [B, L, d] -> [B, L, d]."""

    def __init__(self, filter: "ImplicitFilter | ExplicitFilter") -> None:
        super().__init__()
        self.filter = filter

    def forward(self, inputs: Tensor) -> Tensor:
        return causal_convolution(inputs, self.filter(inputs.shape[1])) + inputs

    def begin(self, batch: int) -> Tensor:
        """No inputs yet, [B, 0, d]."""
        return self.filter(1).new_zeros(batch, 0, self.filter.width)

    def step(self, inputs: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, d] and all before them [B, t, d] -> outputs [B, d], inputs so far [B, t + 1, d]."""
        past = torch.cat([past, inputs.unsqueeze(1)], 1)
        return last_convolved(past, self.filter(past.shape[1])) + inputs, past


class ImplicitFilter(nn.Module):
    """A filter that a small network computes from the position, [L, d]."""

    def __init__(self, width: int, length: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.positions = nn.Parameter(position_features(length))
        self.network = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, length: int) -> Tensor:
        check_length(length, len(self.positions))
        return self.network(self.positions[:length])  # type: ignore[no-any-return]


class ExplicitFilter(nn.Module):
    """A filter of free weights, [L, d]."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.randn(length, width))

    def forward(self, length: int) -> Tensor:
        check_length(length, len(self.weight))
        return self.weight[:length]
