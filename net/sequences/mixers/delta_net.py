"""DeltaNet."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, MixerSettings, State, check_divides
from net.sequences.mixers.delta import delta_rule, delta_step
from net.sequences.mixers.kernels import fused
from net.sequences.mixers.short_conv import ShortConvolution
from utils.settings import Range, setting


@dataclass(frozen=True)
class DeltaSettings(MixerSettings):
    """Settings of DeltaNet and Gated DeltaNet."""

    heads: int = setting(Range(1, 4096), "heads, a divisor of the width", default=2)
    kernel: int = setting(Range(1, 4096), "positions that the convolution sees", default=4)


class DeltaNet(Mixer):
    """Linear attention that replaces what a key holds instead of adding to it; H heads of width d / H.

        q, k, v = SiLU(conv(W u)), q and k scaled to norm 1,   beta_t = sigmoid(W_b u_t)
        S_t = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,   y_t = W_o RMSNorm(S_t q_t / sqrt(d / H))

    The state size counts the matrices S, as published: not the last inputs of the convolution.

    Source: Yang et al., "Parallelizing linear transformers with the delta rule over sequence length" (2024), section 3.
    """

    Settings = DeltaSettings

    joined_by = "o_proj"

    def __init__(self, width: int, length: int, settings: DeltaSettings) -> None:
        super().__init__(width, length, settings)
        check_divides(settings, "heads", width)
        self.heads = settings.heads
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.conv = ShortConvolution(3 * width, settings.kernel)
        self.beta_proj = nn.Linear(width, self.heads, bias=False)
        self.norm = nn.RMSNorm(width // self.heads, eps=1e-5)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        q, k, v = self._in_heads(self.conv(self.qkv_proj(inputs)))
        beta = self.beta_proj(inputs).sigmoid()
        read = fused("delta_rule", v, k, q, beta=beta)
        read = delta_rule(q, k, v, beta) if read is None else read
        return self.o_proj(self.norm(read).flatten(-2))

    def begin(self, batch: int) -> State:
        size = self.width // self.heads
        return self.qkv_proj.weight.new_zeros(batch, self.heads, size, size), self.conv.begin(batch)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        matrix, seen = state
        mixed, seen = self.conv.step(self.qkv_proj(inputs), seen)
        read, matrix = delta_step(*self._in_heads(mixed), self.beta_proj(inputs).sigmoid(), None, matrix)
        return self.o_proj(self.norm(read).flatten(-2)), (matrix, seen)

    def state_size(self, length: int) -> int:
        return self.width * self.width // self.heads

    def _in_heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, [..., H, d / H] each."""
        q, k, v = F.silu(mixed).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return F.normalize(q, dim=-1) / math.sqrt(q.shape[-1]), F.normalize(k, dim=-1), v
