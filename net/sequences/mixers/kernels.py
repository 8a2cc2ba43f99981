"""Kernels of flash-linear-attention in place of the pure forms, where they can run.

They compute what the pure forms of `scans.py` do, to the precision of their products of matrices. Not measured, and
tried only where the tests find a GPU and the package.
"""

import inspect
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., tuple[Tensor, Any]]  # inputs [B, L, H, ...] -> outputs [B, L, H, d_v], last state
NAMES = {  # module and function
    "gla": ("fla.ops.gla", "chunk_gla"),
    "delta_rule": ("fla.ops.delta_rule", "chunk_delta_rule"),
    "gated_delta_rule": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule"),
}


def kernel_for(name: str, inputs: Tensor) -> Kernel | None:
    """The kernel of this name, or None: without the package, for tensors not on CUDA and for float64."""
    return _kernel(name) if inputs.is_cuda and inputs.dtype != torch.float64 else None


@cache
def _kernel(name: str) -> Kernel | None:
    if find_spec("fla") is None:
        return None
    module, function = NAMES[name]
    kernel = getattr(import_module(module), function)
    parameters = inspect.signature(kernel).parameters
    if "cu_seqlens" not in parameters:  # the first versions, which take the heads before the positions
        return None
    return partial(kernel, head_first=False) if "head_first" in parameters else kernel
