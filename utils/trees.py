"""Nested containers of tensors and plain values as one safetensors file; reading it runs no code."""

import json
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from utils.files import tensor_bytes

Tree = Any  # None, bool, int, float, str, Tensor; list, tuple and dict of them


def to_bytes(tree: Tree) -> bytes:
    """A safetensors file whose metadata hold the tree; TypeError if the tree has a value of another type."""
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_described(tree, tensors), separators=(",", ":"))
    return tensor_bytes(tensors, {"tree": skeleton})


def from_bytes(content: bytes, device: torch.device) -> Tree:
    """The tree that `to_bytes` wrote, bit for bit, with the strides of its tensors; ValueError if damaged.

    Tensors that were on an accelerator go to `device`, the others to the CPU.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        tensors = safetensors.torch.load(content)
        skeleton = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["tree"])
        return _rebuilt(skeleton, tensors, device)
    except (SafetensorError, KeyError, IndexError, TypeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"not a saved state: {error}") from None


def _described(tree: Tree, tensors: dict[str, Tensor]) -> Any:
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        # Fused optimizers need a momentum with the strides of its parameter; empty_like closes gaps in memory.
        strides = torch.empty_like(tree, device="meta").stride()
        usual = torch.empty(tree.shape, device="meta").stride()
        tensors[name] = tree
        return {"tensor": name, "strides": None if strides == usual else strides, "host": tree.device.type == "cpu"}
    if isinstance(tree, (list, tuple)):
        return {type(tree).__name__: [_described(value, tensors) for value in tree]}
    if isinstance(tree, dict):
        return {"dict": [[_described(key, tensors), _described(value, tensors)] for key, value in tree.items()]}
    raise TypeError(f"{type(tree).__name__} cannot be part of a state")


def _rebuilt(skeleton: Any, tensors: dict[str, Tensor], device: torch.device) -> Tree:
    if not isinstance(skeleton, dict):
        return skeleton
    if "tensor" in skeleton:
        tensor, strides = tensors[skeleton["tensor"]], skeleton["strides"]
        if strides is not None:
            tensor = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
        return tensor if skeleton["host"] else tensor.to(device)
    if "dict" in skeleton:
        pairs = [[_rebuilt(part, tensors, device) for part in pair] for pair in skeleton["dict"]]
        return dict(pairs)
    kind = list if "list" in skeleton else tuple
    return kind(_rebuilt(value, tensors, device) for value in skeleton[kind.__name__])
