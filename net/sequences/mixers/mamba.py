"""Mamba: a state-space model whose steps, keys and queries depend on the input (S6)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, MixerSettings, State
from net.sequences.mixers.scans import selective_scan
from net.sequences.mixers.short_conv import ShortConvolution
from utils.errors import UserError
from utils.settings import Range, setting


@dataclass(frozen=True)
class StateSpaceSettings(MixerSettings):
    """Settings of Mamba and Mamba-2."""

    state: int = setting(Range(1, 4096), "N, values of the state for each channel", default=16)
    expansion: int = setting(Range(1, 64), "inner channels for each channel of the model", default=2)
    kernel: int = setting(
        Range(0, 64), "positions of the short convolution; 0: none, 1: a scale for each channel", default=4
    )
    step_min: float = setting(
        Range(0, 100, whole=False, open_low=True), "shortest initial step of the recurrence", default=1e-3
    )
    step_max: float = setting(
        Range(0, 100, whole=False, open_low=True), "longest initial step of the recurrence", default=0.1
    )


class StateSpace(Mixer):
    """What Mamba and Mamba-2 share: settings, the inner width d' and N values of state for each of its channels."""

    def __init__(self, width: int, length: int, settings: StateSpaceSettings) -> None:
        super().__init__(width, length, settings)
        if settings.step_min > settings.step_max:
            low, high = settings.step_min, settings.step_max
            raise UserError(f"{settings.mixer}: step_min is {low:g}; it must be at most step_max, {high:g}")
        self.state, self.inner = settings.state, settings.expansion * width

    def state_size(self, length: int) -> int:
        return self.inner * self.state


def convolution(width: int, kernel: int) -> ShortConvolution | None:
    """The short convolution over positions with bias, or None for kernel 0."""
    return ShortConvolution(width, kernel, bias=True) if kernel else None


def initial_step_bias(count: int, low: float, high: float) -> Tensor:
    """Biases b, [count], for which softplus(b) is log-uniform between two values."""
    steps = torch.empty(count).uniform_(math.log(low), math.log(high)).exp()
    return steps + torch.log(-torch.expm1(-steps))  # the inverse of softplus


class Mamba(StateSpace):
    """Mamba (S6) with d' = expansion d inner channels, N states for each and R = ceil(d / 16).

        x, z = W_in u,   x <- SiLU(conv(x)),   (r, B, C) = W_x x,   D_t = softplus(W_d r_t + b_d),   A = -exp(A_log)
        h_t = exp(D_t A) h_{t-1} + (D_t x_t) B_t^T,   y_t = W_o ((h_t C_t + D x_t) SiLU(z_t))

    At first A_n = -n, D = 1, W_d is uniform in ± R^-1/2 and softplus(b_d) log-uniform between step_min and step_max.
    `state_size` counts h, d' N, and not, like the published figures, the kernel - 1 inputs of the convolution.
    Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces" (2023), section 3.
    """

    Settings = StateSpaceSettings

    def __init__(self, width: int, length: int, settings: StateSpaceSettings) -> None:
        super().__init__(width, length, settings)
        inner, self.rank = self.inner, math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv = convolution(inner, settings.kernel)
        self.x_proj = nn.Linear(inner, self.rank + 2 * self.state, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        with torch.no_grad():
            self.dt_proj.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
            self.dt_proj.bias.copy_(initial_step_bias(inner, settings.step_min, settings.step_max))
        self.A_log = nn.Parameter(torch.arange(1.0, self.state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        x, z = self.in_proj(inputs).chunk(2, -1)
        x = F.silu(self.conv(x) if self.conv else x)
        steps, keys, queries = self._selected(x)
        y = selective_scan(steps, steps * x, -self.A_log.exp(), keys, queries)
        return self.out_proj((y + self.D * x) * F.silu(z))  # type: ignore[no-any-return]

    def begin(self, batch: int) -> State:
        state = self.A_log.new_zeros(batch, self.inner, self.state)
        return (state, self.conv.begin(batch)) if self.conv else (state,)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        x, z = self.in_proj(inputs).chunk(2, -1)
        before: State = ()
        if self.conv:
            x, past = self.conv.step(x, state[1])
            before = (past,)
        x = F.silu(x)
        steps, keys, queries = self._selected(x)
        decay = (steps.unsqueeze(-1) * -self.A_log.exp()).exp()
        h = decay * state[0] + (steps * x).unsqueeze(-1) * keys.unsqueeze(1)
        y = torch.einsum("bdn,bn->bd", h, queries)
        return self.out_proj((y + self.D * x) * F.silu(z)), (h, *before)

    def keeps_init(self) -> Iterator[nn.Module]:
        yield self.dt_proj

    def _selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Steps [..., d'], keys and queries [..., N] of [..., d']."""
        low, keys, queries = self.x_proj(x).split([self.rank, self.state, self.state], -1)
        return F.softplus(self.dt_proj(low)), keys, queries
