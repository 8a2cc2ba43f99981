"""Sequence mixers, one file each: [B, L, d] -> [B, L, d], causal, with a parallel and a step form.

of flash-linear-attention, where they are installed.
"""

from net.sequences.mixers.attention import Attention
from net.sequences.mixers.base import Mixer
from net.sequences.mixers.delta_net import DeltaNet
from net.sequences.mixers.gated_delta_net import GatedDeltaNet
from net.sequences.mixers.rwkv7 import RWKV7

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "rwkv7": RWKV7,
}
