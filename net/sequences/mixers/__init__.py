"""Sequence mixers, one file each: [B, L, d] -> [B, L, d], causal, with a parallel and a step form."""

from net.sequences.mixers.attention import Attention
from net.sequences.mixers.base import Mixer
from net.sequences.mixers.gla import GatedLinearAttention
from net.sequences.mixers.mamba import Mamba
from net.sequences.mixers.mamba2 import Mamba2

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "gla": GatedLinearAttention,
}
