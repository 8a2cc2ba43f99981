"""Weights by the names in published files of recurrent networks and transformers, from which sizes can be told."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from net.multihead import MultiHead
from net.sequences.attention_only import AttentionOnly
from net.sequences.rnn import RNN
from utils.errors import UserError

_FAMILIES: dict[str, Any] = {"rnn": RNN, "attention_only": AttentionOnly}


class PublishedNetwork(NamedTuple):
    """A network that weights with published names describe; the first four are for `build_net`."""

    model: str
    settings: Any
    shape: tuple[int, ...]
    outputs: int
    state: dict[str, Tensor]  # of a MultiHead with one head


def to_published(net: MultiHead, task: int | None = None) -> dict[str, Tensor]:
    """The weights of a trunk and one head by their published names; `task`: whose head, if there are several."""
    if not hasattr(net.trunk, "head_name"):
        raise UserError(f"{type(net.trunk).__name__} has no published names; {' and '.join(_FAMILIES)} have")
    if task is None and net.kind == "task" and len(net.head_sizes) > 1:
        raise UserError(f"the network has heads of {len(net.head_sizes)} tasks; published ones have a single head")
    rows = net.rows(next(iter(net.head_sizes)) if task is None else task)
    heads = {f"{net.trunk.head_name}.{name}": value[rows] for name, value in net.head_values().items()}
    return {name: value.detach().clone() for name, value in (net.trunk.state_dict() | heads).items()}


def from_published(state: Mapping[str, Tensor], length: int | None = None, heads: int = 1) -> PublishedNetwork:
    """The network that a state dict with published names describes; UserError if names or shapes fit none.

    What weights do not tell must be given: the number of attention `heads`, and the `length` of the sequences of a
    recurrent network with a single output. One with several outputs has as many as numbers, if no length is given.
    """
    model = next((name for name, first in _FIRST.items() if first in state), None)
    if model is None:
        raise UserError(f"not a published network: neither {' nor '.join(_FIRST.values())} is among its weights")
    head = f"{_FAMILIES[model].head_name}."
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    for name in (*_NEEDED[model], f"{head}weight"):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"not a published {model}: {name} is {_size(shapes.get(name))}, not a matrix")
    outputs = shapes[f"{head}weight"][0]
    settings, shape = _sizes(model, shapes, outputs, length, heads)
    with torch.device("meta"):
        trunk = _FAMILIES[model](shape, settings)
        fitting = MultiHead(trunk, trunk.width, {1: outputs})
    expected = {name: tuple(value.shape) for name, value in to_published(fitting).items()}
    for name in sorted({*shapes, *expected}):
        if shapes.get(name) != expected.get(name):
            wrong = f"{name} is {_size(shapes.get(name))}, expected {_size(expected.get(name))}"
            raise UserError(f"not a published {model}: {wrong}")
    renamed = {name.removeprefix(head) if name.startswith(head) else f"trunk.{name}": state[name] for name in state}
    return PublishedNetwork(model, settings, shape, outputs, renamed)


_FIRST = {"rnn": "rnn.weight_ih_l0", "attention_only": "embed.weight"}
_NEEDED = {"rnn": ("rnn.weight_ih_l0",), "attention_only": ("embed.weight", "pos_embed.weight")}


def _sizes(
    model: str, shapes: Mapping[str, tuple[int, ...]], outputs: int, length: int | None, heads: int
) -> tuple[Any, tuple[int, ...]]:
    """The settings, and the shape of one input."""
    if model == "rnn":
        if length is None and outputs == 1:
            raise UserError("the weights of a recurrent network with one output do not tell the length; give it")
        hidden = shapes["rnn.weight_ih_l0"][0]
        return RNN.Settings(hidden_size=hidden, bias="rnn.bias_ih_l0" in shapes), (length or outputs,)
    positions = shapes["pos_embed.weight"][0]
    if length not in (None, positions):
        raise UserError(f"length is {length}; pos_embed.weight has {positions} positions")
    vocabulary, width = shapes["embed.weight"]
    layers = len({"0"} | {match[1] for name in shapes if (match := re.match(r"attns\.(\d+)\.", name))})
    own = None if vocabulary == positions else vocabulary
    return AttentionOnly.Settings(width=width, layers=layers, heads=heads, vocabulary=own), (positions,)


def _size(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"
