"""Sequence mixers, one file each: [B, L, d] -> [B, L, d], causal, with a parallel and a step form.

To add one: a class derived from Mixer (see base.py) with its `Settings`, and one line in MIXERS.
"""

from net.sequences.mixers.attention import Attention
from net.sequences.mixers.base import Mixer
from net.sequences.mixers.base_conv import BaseConv
from net.sequences.mixers.based import Based
from net.sequences.mixers.delta_net import DeltaNet
from net.sequences.mixers.gated_delta_net import GatedDeltaNet
from net.sequences.mixers.gla import GatedLinearAttention
from net.sequences.mixers.h3 import H3
from net.sequences.mixers.hyena import Hyena
from net.sequences.mixers.mamba import Mamba
from net.sequences.mixers.mamba2 import Mamba2
from net.sequences.mixers.rwkv7 import RWKV7
from net.sequences.mixers.sliding_attention import SlidingAttention

MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "sliding_attention": SlidingAttention,
    "base_conv": BaseConv,
    "based": Based,
    "hyena": Hyena,
    "h3": H3,
    "mamba": Mamba,
    "mamba2": Mamba2,
    "gla": GatedLinearAttention,
    "delta_net": DeltaNet,
    "gated_delta_net": GatedDeltaNet,
    "rwkv7": RWKV7,
}
