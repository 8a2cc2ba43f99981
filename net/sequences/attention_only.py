"""A transformer of attention alone, for sequences of tokens."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.sites import Tap
from utils.errors import UserError
from utils.settings import Range, setting


class AttentionWeights(nn.Module):
    """The weights of one layer, with the names and the initialisation of nn.MultiheadAttention without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.out_proj = nn.ParameterDict({"weight": torch.empty(width, width).uniform_(-bound, bound)})
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))


class AttentionOnly(nn.Module):
    """token numbers [B, n] -> the residual stream at the last position, [B, d], after some layers of attention.

        s = E[x_i] + P[i],   in each layer  s <- s + W_o softmax(Q K' / sqrt(d / heads)) V

    Every position sees all positions. There is no normalisation, no perceptron and no bias.
    """

    input_dtype = torch.int64
    head_bias = False
    head_name = "unembed"  # in published files

    @dataclass(frozen=True)
    class Settings:
        """Settings of the transformer."""

        width: int = setting(Range(1, 4096), "values at each position", default=8)
        layers: int = setting(Range(1, 64), "layers of attention", default=2)
        heads: int = setting(Range(1, 4096), "attention heads of each layer, a divisor of the width", default=1)
        vocabulary: int | None = setting(
            Range(1, 2**20), "different tokens (default: as many as positions)", default=None
        )

    def __init__(self, shape: tuple[int, ...], settings: Settings) -> None:
        super().__init__()
        (length,), width = shape, settings.width
        if width % settings.heads:
            raise UserError(f"heads is {settings.heads}; it must divide the width, {width}")
        self.width, self.attention_heads = width, settings.heads
        self.embed = nn.ParameterDict({"weight": torch.randn(settings.vocabulary or length, width)})
        self.pos_embed = nn.ParameterDict({"weight": torch.randn(length, width)})
        self.attns = nn.ModuleList(AttentionWeights(width) for _ in range(settings.layers))

    def forward(self, tokens: Tensor) -> Tensor:
        parameters = {name: parameter.unsqueeze(0) for name, parameter in self.named_parameters()}
        return self.stacked(parameters, tokens.unsqueeze(0))[0]

    def sites(self) -> tuple[str, ...]:
        """The names of the sites, see net/sequences/sites.py."""
        parts = ("input", "mixer.output", "output")
        return tuple(f"blocks.{layer}.{part}" for layer in range(len(self.attns)) for part in parts)

    def tapped(self, tokens: Tensor, tap: Tap) -> Tensor:
        """The residual stream at the last position, where each activation is replaced by what a tap makes of it."""
        stream = self.embed["weight"][tokens] + self.pos_embed["weight"]
        for number, weights in enumerate(self.attns):
            stream = tap(f"blocks.{number}.input", stream)
            into, out = (weights.get_parameter(name).unsqueeze(0) for name in ("in_proj_weight", "out_proj.weight"))
            mixed = _attention(stream.unsqueeze(0), stream.unsqueeze(0), into, out, self.attention_heads)[0]
            stream = tap(f"blocks.{number}.output", stream + tap(f"blocks.{number}.mixer.output", mixed))
        return stream[:, -1]

    def stacked(self, parameters: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
        """The features of S networks at once, parameters by name [S, ...], tokens [S, B, n] -> [S, B, d]."""
        embed = parameters["embed.weight"]
        first = torch.arange(len(embed), device=tokens.device).view(-1, 1, 1) * embed.shape[1]
        stream = F.embedding(tokens + first, embed.flatten(0, 1)) + parameters["pos_embed.weight"].unsqueeze(1)
        for layer in range(len(self.attns)):
            # The last position alone is read: in the last layer no other asks.
            asking = stream[:, :, -1:] if layer == len(self.attns) - 1 else stream
            into, out = (parameters[f"attns.{layer}.{name}"] for name in ("in_proj_weight", "out_proj.weight"))
            stream = asking + _attention(asking, stream, into, out, self.attention_heads)
        return stream[:, :, 0]


def _attention(asking: Tensor, stream: Tensor, in_proj: Tensor, out_proj: Tensor, heads: int) -> Tensor:
    """What some positions [S, B, m, d] read from all positions [S, B, n, d] with weights [S, 3d, d] and [S, d, d]."""
    width = asking.shape[-1]

    def mapped(values: Tensor, weight: Tensor) -> Tensor:
        return (values.flatten(1, 2) @ weight.transpose(1, 2)).unflatten(1, values.shape[1:3])

    queries = mapped(asking, in_proj[:, :width]).unflatten(-1, (heads, -1)).transpose(2, 3)
    keys, values = (
        part.unflatten(-1, (heads, -1)).transpose(2, 3) for part in mapped(stream, in_proj[:, width:]).chunk(2, -1)
    )
    shares = (queries @ keys.transpose(-1, -2) / math.sqrt(width // heads)).softmax(-1)
    return mapped((shares @ values).transpose(2, 3).flatten(-2), out_proj)
