"""Sequence mixers, one file each: [B, L, d] -> [B, L, d], causal, with a parallel and a step form.

of flash-linear-attention, where they are installed.
"""

from net.sequences.mixers.attention import Attention
from net.sequences.mixers.base import Mixer

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
}
