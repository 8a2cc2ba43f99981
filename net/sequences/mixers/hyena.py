"""Hyena."""

import math
from dataclasses import dataclass

import torch
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


class Hyena(Mixer):
    """Hyena of order 2: a long implicit convolution between two gates.

        x1, x2, v = split(short(W_i u + b_i)),   short: channel by channel, kernel 3
        z = v * x1,   y_t = W_o ((sum_{s <= t} K_{t-s} z_s + b * z_t) * x2_t) + b_o

    with the filter K of `HyenaFilter`, b initially N(0, 1). The state counts the d L past values of z as published, not
    the inputs of the short convolution. Source: Poli et al., "Hyena hierarchy" (2023), sections 3.1 to 3.3.
    """

    @dataclass(frozen=True)
    class Settings(MixerSettings):
        """Settings of Hyena."""

        kernel: int = setting(Range(1, 4096), "positions of the short filter", default=3)
        hidden: int = setting(Range(1, 4096), "hidden values of the network that gives the long filter", default=64)

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        self.in_proj = nn.Linear(width, 3 * width)
        self.short = ShortConvolution(3 * width, settings.kernel, bias=True)
        self.filter = HyenaFilter(width, length, settings.hidden)
        self.skip = nn.Parameter(torch.randn(width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        x1, x2, v = self.short(self.in_proj(inputs)).chunk(3, -1)
        z = v * x1
        long = causal_convolution(z, self.filter(z.shape[1])) + self.skip * z
        return self.out_proj(long * x2)  # type: ignore[no-any-return]

    def begin(self, batch: int) -> State:
        return self.short.begin(batch), self.skip.new_zeros(batch, 0, self.width)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        projected, before = self.short.step(self.in_proj(inputs), state[0])
        x1, x2, v = projected.chunk(3, -1)
        z = v * x1
        past = torch.cat([state[1], z.unsqueeze(1)], 1)
        long = last_convolved(past, self.filter(past.shape[1])) + self.skip * z
        return self.out_proj(long * x2), (before, past)

    def state_size(self, length: int) -> int:
        return self.width * length


class HyenaFilter(nn.Module):
    """The long filter, [L, d], from a network of the position with a window that decays.

        K_t = exp(-t / (l - 1) |delta|) * W_4 sin(w * (W_3 sin(w * (W_2 sin(w * (W_1 z_t + b_1)) + b_2)) + b_3))

    z trainable, initially `position_features`; w trainable, initially 1; delta fixed, evenly spaced over the channels
    from ln(.01) / 1.5 to ln(.01) / .3; l is the longest length. Source: Poli et al. (2023), section 3.3.
    """

    def __init__(self, width: int, length: int, hidden: int) -> None:
        super().__init__()
        self.width = width
        self.positions = nn.Parameter(position_features(length))
        self.frequency = nn.Parameter(torch.ones(hidden))
        self.layers = nn.ModuleList(nn.Linear(size, hidden) for size in (3, hidden, hidden))
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, length: int) -> Tensor:
        longest = len(self.positions)
        check_length(length, longest)
        values = self.positions[:length]
        for layer in self.layers:
            values = (self.frequency * layer(values)).sin()
        dtype, device = self.positions.dtype, self.positions.device
        time = torch.arange(length, dtype=dtype, device=device) / max(1, longest - 1)
        slowest, fastest = math.log(0.01) / 1.5, math.log(0.01) / 0.3
        rates = torch.linspace(slowest, fastest, self.width, dtype=dtype, device=device).abs()
        return (-time[:, None] * rates).exp() * self.output(values)  # type: ignore[no-any-return]
