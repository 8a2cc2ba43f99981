"""A network of sequence mixers, for sequences of tokens or vectors that are asked about at some of their positions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.activations import ACTIVATIONS
from net.sequences.embedding import EMBEDDINGS, OneHot
from net.sequences.mixers import MIXERS
from net.sequences.mixers.attention import Attention
from net.sequences.mixers.base import MixerSettings, State
from net.sequences.sites import Hook, Tap, hooked
from utils.errors import UserError, unknown
from utils.settings import Range, read, setting

NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "none": nn.Identity}
_STD = 0.02  # of drawn weights, init: normal


class PositionwiseMLP(nn.Module):
    """fc2(act(fc1(x))), at each position alone."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(inputs)))  # type: ignore[no-any-return]


class GLU(nn.Module):
    """fc3(fc1(x) * act(fc2(x))), at each position alone.

    Source: Shazeer, "GLU variants improve transformer" (2020), equation 5, with biases.
    """

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1, self.fc2, self.fc3 = (
            nn.Linear(*size) for size in ((width, hidden), (width, hidden), (hidden, width))
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.fc3(self.fc1(inputs) * self.activation(self.fc2(inputs)))  # type: ignore[no-any-return]


# norm: the normalised stream itself is added, as in the published sweeps of recall, whose state mixer is an identity.
STATE_MIXERS: dict[str, type[nn.Module] | None] = {"mlp": PositionwiseMLP, "glu": GLU, "norm": None, "none": None}


class MixerList:
    """The sequence mixers of the layers: names, or mappings with `mixer` and its settings."""

    @staticmethod
    def read(where: str, value: object) -> tuple[MixerSettings, ...]:
        """The checked settings of each; a UserError names the wrong one."""
        if not isinstance(value, (list, tuple)) or not value:
            raise UserError(f"{where} must be a list with at least one mixer, such as [base_conv, attention]")
        return tuple(MixerList._one(f"{where} {number}", entry) for number, entry in enumerate(value, 1))

    @staticmethod
    def _one(where: str, entry: object) -> MixerSettings:
        content = entry if isinstance(entry, Mapping) else {"mixer": entry}
        if "mixer" not in content:
            raise UserError(f"{where}: key 'mixer' is missing")
        name = content["mixer"]
        if name not in MIXERS:
            raise UserError(f"{where}: {unknown('mixer', name, MIXERS)}")
        return read(MIXERS[name].Settings, where, content)


class Block(nn.Module):
    """One layer: the residual stream [B, L, d] -> the stream after a sequence mixer and a state mixer.

    r <- r + mixer(norm(r)),   r <- r + state(norm(r))
    """

    def __init__(self, length: int, settings: Any, mixer: MixerSettings) -> None:
        super().__init__()
        width, norm, kind = settings.width, NORMS[settings.norm], STATE_MIXERS[settings.state_mixer]
        self.mixer_norm = norm(width)
        self.mixer = MIXERS[mixer.mixer](width, length, mixer)
        self.state_norm = None if settings.state_mixer == "none" else norm(width)
        self.state = None if kind is None else kind(width, settings.expansion * width, settings.activation)

    def forward(self, stream: Tensor) -> Tensor:
        return self.mixed_states(stream + self.mixer(self.mixer_norm(stream)))

    def step(self, stream: Tensor, state: State) -> tuple[Tensor, State]:
        """The layer at one position, [B, d], with the state of its mixer."""
        mixed, state = self.mixer.step(self.mixer_norm(stream), state)
        return self.mixed_states(stream + mixed), state

    def hooks(self) -> dict[str, Hook]:
        """Where the sites of the layer are, by name, in the order of computation."""
        found = {"input": Hook(self, enters=True), "mixer.input": Hook(self.mixer, enters=True)}
        if (joining := self.mixer.joining) is not None:
            found["mixer.heads"] = Hook(joining, enters=True, heads=self.mixer.heads)
        found["mixer.output"] = Hook(self.mixer, enters=False)
        if self.state is not None:
            found |= {"state.input": Hook(self.state, enters=True), "state.output": Hook(self.state, enters=False)}
        elif self.state_norm is not None:  # the normalised stream is added once more
            found["state.output"] = Hook(self.state_norm, enters=False)
        return found | {"output": Hook(self, enters=False)}

    def mixed_states(self, stream: Tensor) -> Tensor:
        """The second half of the layer, which is at each position alone."""
        if self.state_norm is None:
            return stream
        normed = self.state_norm(stream)
        return stream + (normed if self.state is None else self.state(normed))


class SequenceModel(nn.Module):
    """Sequences [B, L + K] -> outputs [B, K, V] at the K positions that are asked about.

    An input is L tokens and K positions (see StreamSpec.asked), or L vectors [B, L, D] of which the last K are asked
    about; L is that of the shape or smaller. Outputs at a position depend on the inputs up to there,
    unless attention is not causal. The layers take the `mixers` in turn.

        r = E[tokens] + P,   r <- block(r) in each layer,   outputs = U norm(r)

    Source: the networks of Arora et al., "Zoology: measuring and improving recall in efficient language models"
    (2024), appendix.
    """

    can_be_asked = True

    @dataclass(frozen=True)
    class Settings:
        """Settings of a network of sequence mixers."""

        width: int = setting(Range(1, 65536), "values at each position", default=64)
        layers: int = setting(Range(1, 256), "layers", default=2)
        mixers: tuple[MixerSettings, ...] = setting(
            MixerList,
            "sequence mixers of the layers, which take them in turn",
            default=(Attention.Settings("attention"),),
        )
        state_mixer: str = setting(
            tuple(STATE_MIXERS),
            "what follows a sequence mixer in a layer; norm: the normalised stream is added once more",
            default="mlp",
        )
        expansion: int = setting(Range(1, 64), "hidden values of a state mixer, in widths", default=4)
        activation: str = setting(tuple(ACTIVATIONS), "of the hidden values of a state mixer", default="gelu")
        norm: str = setting(tuple(NORMS), "normalisation before each mixer and before the outputs", default="layer")
        embedding: str = setting(
            EMBEDDINGS, "of tokens; one_hot: unit vectors, with sines of the position in the values left, none trained",
            default="learned",
        )  # fmt: skip
        positions: bool = setting(bool, "learned positions are added to the inputs", default=False)
        tied: bool = setting(bool, "the outputs have the weights of the embedding", default=True)
        embedding_std: float = setting(
            Range(0, 100, whole=False, open_low=True), "standard deviation of the first embeddings and positions",
            default=_STD,
        )  # fmt: skip
        dropout: float = setting(
            Range(0, 1, whole=False, open_high=True), "share of embedded values dropped in training", default=0.0
        )
        init: str = setting(
            ("normal", "torch"),
            "first weights of linear layers; normal: of standard deviation 0.02; torch: those of PyTorch",
            default="normal",
        )

    def __init__(self, shape: tuple[int, ...], settings: Settings, outputs: int, asked: int) -> None:
        super().__init__()
        if not asked:
            raise UserError(
                "model: sequence answers at positions that are asked about; the task asks for none: try rnn"
            )
        self.width, self.asked, self.outputs = settings.width, asked, outputs
        self.tokens = len(shape) == 1
        self.length = shape[0] - asked if self.tokens else shape[0]
        self.input_dtype = torch.int64 if self.tokens else torch.float32
        self.embed, self.positions = self._embedding(shape, settings)
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()
        chosen = settings.mixers
        self.blocks = nn.ModuleList(
            Block(self.length, settings, chosen[layer % len(chosen)]) for layer in range(settings.layers)
        )
        self.norm = NORMS[settings.norm](self.width)
        self.unembed = None if settings.tied and self.tokens else nn.Linear(self.width, outputs, bias=False)
        self._initialise(settings.init, settings.embedding_std)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.read(self.streams(inputs), inputs)

    def streams(self, inputs: Tensor) -> Tensor:
        """The residual stream after the last layer at all positions, [B, L, d]."""
        return self.after_layers(self.embedded(inputs))

    def embedded(self, inputs: Tensor) -> Tensor:
        """The residual stream before the first layer at all positions, [B, L, d]."""
        length = inputs.shape[1] - self.asked * self.tokens
        stream = self.embed(inputs[:, :length])
        return self.dropout(stream if self.positions is None else stream + self.positions[:length])  # type: ignore[no-any-return]

    def after_layers(self, stream: Tensor, first: int = 0) -> Tensor:
        """The residual stream after the last layer, [B, L, d], from that before the layer `first`."""
        for block in self.blocks[first:]:
            stream = block(stream)
        return stream

    def read(self, stream: Tensor, inputs: Tensor) -> Tensor:
        """The outputs [B, K, V] where `inputs` ask for them; anywhere for an input that asks fewer times."""
        return self.outputs_at(self.at_asked(stream, inputs))

    def at_asked(self, values: Tensor, inputs: Tensor) -> Tensor:
        """Values at all positions [B, L, D] -> [B, K, D] where `inputs` ask for outputs, as in `read`."""
        if not self.tokens:
            return values[:, -self.asked :]
        places = inputs[:, -self.asked :].clamp_min(0).unsqueeze(-1).expand(-1, -1, values.shape[-1])
        return values.gather(1, places)

    def outputs_at(self, stream: Tensor) -> Tensor:
        """The outputs of the residual stream at any positions, [..., d] -> [..., V]."""
        return F.linear(self.norm(stream), self.unembedding)

    @property
    def unembedding(self) -> Tensor:
        """The weights U that read the outputs, [V, d]."""
        return self.embed.weight if self.unembed is None else self.unembed.weight  # type: ignore[return-value]

    def asked_positions(self, inputs: Tensor) -> Tensor:
        """Where the inputs ask for outputs, a mask [B, L]."""
        if not self.tokens:
            length = inputs.shape[1]
            return (torch.arange(length, device=inputs.device) >= length - self.asked).expand(len(inputs), length)
        places = inputs[:, -self.asked :]
        counts = inputs.new_zeros(len(inputs), inputs.shape[1] - self.asked)
        return counts.scatter_add(1, places.clamp_min(0), (places >= 0).to(counts.dtype)) > 0

    def hooks(self) -> dict[str, Hook]:
        """Where the sites are in the modules, by name, in the order of computation."""
        found = dict[str, Hook]()
        for number, block in enumerate(self.blocks):
            found |= {f"blocks.{number}.{name}": hook for name, hook in block.hooks().items()}  # type: ignore[operator]
        return found

    def sites(self) -> tuple[str, ...]:
        """The names of the sites, see net/sequences/sites.py."""
        return tuple(self.hooks())

    def tapped(self, inputs: Tensor, tap: Tap) -> Tensor:
        """The outputs, where each activation is replaced by what a tap makes of it."""
        with hooked(self.hooks(), tap):
            return self(inputs)  # type: ignore[no-any-return]

    def begin(self, batch: int) -> list[State]:
        """The state of each layer before the first position of so many sequences."""
        return [block.mixer.begin(batch) for block in self.blocks]  # type: ignore[operator,union-attr]

    def step(self, inputs: Tensor, place: int, states: list[State]) -> tuple[Tensor, list[State]]:
        """Outputs [B, V] at one place, from the inputs there ([B], or vectors [B, D]) and the states before it."""
        stream, after = self.embed(inputs), []
        stream = self.dropout(stream if self.positions is None else stream + self.positions[place])
        for block, state in zip(self.blocks, states, strict=True):
            stream, state = block.step(stream, state)  # type: ignore[operator]
            after.append(state)
        return self.outputs_at(stream), after

    def state_size(self, length: int) -> int:
        """Numbers to be remembered of one sequence after `length` positions, in all layers."""
        return sum(block.mixer.state_size(length) for block in self.blocks)  # type: ignore[operator,union-attr]

    def _embedding(self, shape: tuple[int, ...], settings: Settings) -> tuple[nn.Module, Tensor | None]:
        """The embedding, and what is added for positions; UserError if frozen ones do not fit."""
        if settings.embedding == "one_hot":
            if not self.tokens:
                raise UserError("embedding: one_hot is for tokens; the inputs are vectors")
            if settings.positions:
                raise UserError("positions: embedding: one_hot has sines of the position; leave the learned ones out")
            frozen = OneHot(self.outputs, self.width)
            return frozen, nn.Buffer(frozen.sines(self.length), persistent=False)
        positions = nn.Parameter(torch.empty(self.length, self.width)) if settings.positions else None
        if self.tokens:
            return nn.Embedding(self.outputs, self.width), positions
        return nn.Linear(shape[1], self.width, bias=False), positions

    @torch.no_grad()
    def _initialise(self, rule: str, embedding_std: float) -> None:
        """The first weights.

        Weights into the residual stream are smaller the more layers add to it: by 1 / sqrt(2 layers) if normal, by
        1 / sqrt(layers) those of sequence mixers if torch.
        """
        keeping = {layer for block in self.blocks for layer in block.mixer.keeps_init()}  # type: ignore[operator,union-attr]
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and module not in keeping:
                into = name.endswith((".out_proj", ".fc2"))
                if rule == "normal":
                    module.weight.normal_(0, _STD / math.sqrt(2 * len(self.blocks)) if into else _STD)
                elif name.endswith(".out_proj"):
                    module.weight.div_(math.sqrt(len(self.blocks)))
                if module.bias is not None:
                    module.bias.zero_()
        for table in (self.embed.weight, self.positions):
            if isinstance(table, nn.Parameter):
                table.normal_(0, embedding_std)
