"""Gated linear attention."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, MixerSettings, State
from net.sequences.mixers.kernels import fused
from net.sequences.mixers.scans import vector_scan
from utils.errors import UserError
from utils.settings import Range, setting

GATE_RANK, GATE_ROOT = 16, 16


class GatedLinearAttention(Mixer):
    """Gated linear attention in H heads, with keys of width d_k = d / 2 H and values of width d_v = d / H.

        q, k, v, r = W u,   log g_t = logsigmoid(W_2 W_1 u_t + b) / 16 with W_1 of rank 16
        S_t = diag(g_t) S_{t-1} + k_t v_t^T,   y_t = W_o (RMSNorm(S_t^T q_t / sqrt(d_k)) SiLU(r_t))

    The norm is over the values of a head, with the same weights for all; only the gate has a bias.
    `state_size` counts S, d_k d_v for each head.
    Source: Yang et al., "Gated linear attention transformers with hardware-efficient training" (2023), section 4.4.
    """

    @dataclass(frozen=True)
    class Settings(MixerSettings):
        """Settings of gated linear attention."""

        heads: int = setting(Range(1, 4096), "attention heads, a divisor of half the width", default=1)

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        self.heads, self.keys = settings.heads, width // 2
        if width % (2 * self.heads):
            raise UserError(f"gla: heads is {self.heads}; it must divide half the width, {width / 2:g}")
        self.in_proj = nn.Linear(width, 2 * self.keys + 2 * width, bias=False)  # q, k, v, r
        self.gate = nn.Sequential(nn.Linear(width, GATE_RANK, bias=False), nn.Linear(GATE_RANK, self.keys))
        self.norm = nn.RMSNorm(width // self.heads, eps=1e-5)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        q, k, v, log_decay, gate = self._projected(inputs)
        mixed = fused("gla", v, k, q, g=log_decay)
        return self._read(vector_scan(log_decay, q, k, v) if mixed is None else mixed, gate)

    def begin(self, batch: int) -> State:
        heads = self.heads
        return (self.out_proj.weight.new_zeros(batch, heads, self.keys // heads, self.width // heads),)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v, log_decay, gate = self._projected(inputs)
        held = log_decay.exp().unsqueeze(-1) * state[0] + k.unsqueeze(-1) * v.unsqueeze(-2)
        return self._read(torch.einsum("bhkv,bhk->bhv", held, q), gate), (held,)

    def state_size(self, length: int) -> int:
        return self.keys * self.width // self.heads

    def _projected(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Queries and keys [..., H, d_k], values [..., H, d_v], log decays [..., H, d_k] and SiLU(r) [..., d]."""
        q, k, v, r = self.in_proj(inputs).split([self.keys, self.keys, self.width, self.width], -1)
        log_decay = F.logsigmoid(self.gate(inputs)) / GATE_ROOT
        q = q * (self.keys // self.heads) ** -0.5
        return *(part.unflatten(-1, (self.heads, -1)) for part in (q, k, v, log_decay)), F.silu(r)

    def _read(self, y: Tensor, gate: Tensor) -> Tensor:
        """The outputs, [..., d], from what is read of the states, [..., H, d_v]."""
        return self.out_proj(self.norm(y).flatten(-2) * gate)  # type: ignore[no-any-return]
