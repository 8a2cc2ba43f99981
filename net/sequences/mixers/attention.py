"""Softmax attention."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, MixerSettings, State, check_divides
from utils.errors import UserError
from utils.settings import Range, setting


class Attention(Mixer):
    """Softmax attention with H heads of width d / H.

        q, k, v = W u + b,   y_t = W_o sum_{s <= t} softmax_s(q_t . k_s / sqrt(d / H)) v_s + b_o

    Not causal, the sum is over all positions, also those that fill up a shorter sequence; there is no step form then.

    Source: Vaswani et al., "Attention is all you need" (2017), section 3.2.
    """

    @dataclass(frozen=True)
    class Settings(MixerSettings):
        """Settings of softmax attention."""

        heads: int = setting(Range(1, 4096), "attention heads, a divisor of the width", default=1)
        dropout: float = setting(
            Range(0, 1, whole=False, open_high=True), "share of attention weights dropped in training", default=0.0
        )
        causal: bool = setting(
            bool, "a position sees no later ones; false: it sees all, padding of shorter sequences included",
            default=True,
        )  # fmt: skip
        bias: bool = setting(bool, "the linear maps have biases", default=True)

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        check_divides(settings, "heads", width)
        self.heads, self.dropout, self.causal = settings.heads, settings.dropout, settings.causal
        self.qkv_proj = nn.Linear(width, 3 * width, bias=settings.bias)
        self.out_proj = nn.Linear(width, width, bias=settings.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self._projected(inputs))
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropped, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def weights(self, inputs: Tensor) -> Tensor:
        """How much position t attends to position s, [B, H, t, s], without dropout."""
        q, k, _ = self._projected(inputs)
        scores = torch.einsum("bthe,bshe->bhts", q, k) / math.sqrt(self.width / self.heads)
        return scores.masked_fill(~self.seen(inputs.shape[1], inputs.device), -torch.inf).softmax(-1)

    def seen(self, length: int, device: torch.device) -> Tensor:
        """Whether position t sees position s, [t, s]."""
        every = torch.ones(length, length, dtype=torch.bool, device=device)
        return every.tril() if self.causal else every

    def begin(self, batch: int) -> State:
        if not self.causal:
            raise UserError("attention with causal: false sees later positions, so it cannot go position by position")
        none = self.qkv_proj.weight.new_zeros(batch, 0, self.heads, self.width // self.heads)
        return none, none

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self._projected(inputs.unsqueeze(1))
        keys, values = torch.cat([state[0], k], 1), torch.cat([state[1], v], 1)
        scores = torch.einsum("bhe,bshe->bhs", q[:, 0], keys) / math.sqrt(self.width / self.heads)
        mixed = torch.einsum("bhs,bshe->bhe", scores.softmax(-1), values)
        return self.out_proj(mixed.flatten(1)), (keys, values)

    def state_size(self, length: int) -> int:
        return 2 * self.width * length

    def _projected(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, [B, L, H, d / H] each."""
        return self.qkv_proj(inputs).unflatten(-1, (3, self.heads, -1)).unbind(2)  # type: ignore[no-any-return]
