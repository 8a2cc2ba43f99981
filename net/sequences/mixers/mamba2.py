"""Mamba-2: a state-space model with one decay for each head and position."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import State
from net.sequences.mixers.kernels import fused
from net.sequences.mixers.mamba import StateSpace, StateSpaceSettings, convolution, initial_step_bias
from net.sequences.mixers.scans import scalar_scan
from utils.errors import UserError
from utils.settings import Range, setting


class Mamba2(StateSpace):
    """Mamba-2 with d' = expansion d inner channels in heads of P; B and C, of N values, are those of all heads.

        z, x, B, C, r = W_in u,   (x, B, C) <- SiLU(conv(x, B, C)),   D_t = softplus(r_t + b),   A = -exp(A_log)
        S_t = exp(D_t A) S_{t-1} + B_t (D_t x_t)^T,   y_t = W_o RMSNorm((S_t^T C_t + D x_t) SiLU(z_t))

    At first A is uniform in [-16, -1] for each head, D = 1 and softplus(b) log-uniform between step_min and step_max.
    `state_size` counts S, d' N, and not, like the published figures, the kernel - 1 inputs of the convolution.
    Source: Dao and Gu, "Transformers are SSMs: generalized models and efficient algorithms through structured state
    space duality" (2024), section 7.
    """

    @dataclass(frozen=True)
    class Settings(StateSpaceSettings):
        """Settings of Mamba-2."""

        head_size: int = setting(
            Range(1, 4096), "channels of a head, a divisor of the inner channels or more than they", default=64
        )

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        inner, head = self.inner, min(settings.head_size, self.inner)
        if inner % head:
            raise UserError(f"mamba2: head_size is {head}; it must divide the inner channels, {inner}")
        self.heads, self.mixed = inner // head, inner + 2 * self.state
        self.in_proj = nn.Linear(width, inner + self.mixed + self.heads, bias=False)
        self.conv = convolution(self.mixed, settings.kernel)
        self.dt_bias = nn.Parameter(initial_step_bias(self.heads, settings.step_min, settings.step_max))
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        z, mixed, raw = self._projected(inputs)
        x, keys, queries = self._split(F.silu(self.conv(mixed) if self.conv else mixed))
        steps = F.softplus(raw + self.dt_bias)
        log_decay, values = steps * -self.A_log.exp(), steps.unsqueeze(-1) * x
        same = (part.unsqueeze(2).expand(-1, -1, self.heads, -1) for part in (keys, queries))  # for all heads
        y = fused("scalar_decay", values, *same, g=log_decay)
        return self._read(scalar_scan(log_decay, queries, keys, values) if y is None else y, x, z)

    def begin(self, batch: int) -> State:
        state = self.A_log.new_zeros(batch, self.heads, self.state, self.inner // self.heads)
        return (state, self.conv.begin(batch)) if self.conv else (state,)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        z, mixed, raw = self._projected(inputs)
        before: State = ()
        if self.conv:
            mixed, past = self.conv.step(mixed, state[1])
            before = (past,)
        x, keys, queries = self._split(F.silu(mixed))
        steps = F.softplus(raw + self.dt_bias)
        decay = (steps * -self.A_log.exp()).exp()[..., None, None]
        held = decay * state[0] + torch.einsum("bn,bh,bhp->bhnp", keys, steps, x)
        return self._read(torch.einsum("bhnp,bn->bhp", held, queries), x, z), (held, *before)

    def _projected(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """z [..., d'], x with B and C [..., d' + 2 N], and steps before softplus [..., H]."""
        return self.in_proj(inputs).split([self.inner, self.mixed, self.heads], -1)  # type: ignore[no-any-return]

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [..., H, P], keys and queries [..., N]."""
        x, keys, queries = mixed.split([self.inner, self.state, self.state], -1)
        return x.unflatten(-1, (self.heads, -1)), keys, queries

    def _read(self, y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        """The outputs, [..., d], from what is read of the states."""
        y = (y + self.D.unsqueeze(-1) * x).flatten(-2)
        return self.out_proj(self.norm(y * F.silu(z)))  # type: ignore[no-any-return]
