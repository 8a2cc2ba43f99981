"""Softmax attention to a window."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from net.sequences.mixers.attention import Attention
from net.sequences.mixers.base import State
from utils.settings import Range, setting


class SlidingAttention(Attention):
    """Softmax attention to the last W positions.

        y_t = W_o sum_{t - W < s <= t} softmax_s(q_t . k_s / sqrt(d / H)) v_s + b_o

    A position sees W keys, its own among them; published runs on synthetic recall let it see one more, although their
    state counts W. Not causal, it sees the W - 1 positions that follow as well. Source: Beltagy et al., "Longformer"
    (2020), section 3.1, with a window to the left.
    """

    @dataclass(frozen=True)
    class Settings(Attention.Settings):
        """Settings of attention to a window."""

        window: int = setting(Range(1), "keys that a position sees, its own among them", default=64)

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        self.window = settings.window

    def forward(self, inputs: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in self._projected(inputs))
        seen = self.seen(inputs.shape[1], inputs.device)
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropped)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def seen(self, length: int, device: torch.device) -> Tensor:
        return super().seen(length, device).triu(1 - self.window).tril(self.window - 1)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        first = max(0, state[0].shape[1] - self.window + 1)  # of those that the new position still sees
        return super().step(inputs, tuple(part[:, first:] for part in state))

    def state_size(self, length: int) -> int:
        return 2 * self.width * min(self.window, length)
