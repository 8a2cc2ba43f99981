"""Kernels of flash-linear-attention in place of the pure forms, where they can run.

They compute what the pure forms of `scans.py` and `delta.py` do, to the precision of their products of matrices. Not
measured, and tried only where the tests find a GPU and the package.
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
HALF = (torch.bfloat16, torch.float16)
NAMES = {  # module, function, and the types of its values: those of the delta rule refuse single precision
    "gla": ("fla.ops.gla", "chunk_gla", (torch.float32, *HALF)),
    "scalar_decay": ("fla.ops.simple_gla", "chunk_simple_gla", (torch.float32, *HALF)),
    "delta_rule": ("fla.ops.delta_rule", "chunk_delta_rule", HALF),
    "gated_delta_rule": ("fla.ops.gated_delta_rule", "chunk_gated_delta_rule", HALF),
    "generalised_delta_rule": ("fla.ops.generalized_delta_rule", "chunk_dplr_delta_rule", HALF),
}
KEYS = range(16, 257)  # widths of keys: products of matrices on a GPU begin at 16, some kernels end at 256
DECAYS = ("g", "gk")  # logarithms, which stay in single precision


def fused(name: str, values: Tensor, keys: Tensor, queries: Tensor, **more: Tensor) -> Tensor | None:
    """The outputs of the kernel of this name, [B, L, H, d_v] in float32, not scaled; None where it cannot run.

    Without the package, for tensors not on CUDA, for keys of a width it does not take, and for float64; the kernels of
    the delta rule for float32 too. Under autocast values have half precision, and so has then what is not a decay.

    Args:
        values: [B, L, H, d_v].
        keys, queries: [B, L, H, d_k].
        more: the other inputs, by the name that the kernel gives them.
    """
    if not runs_on(values) or values.dtype not in NAMES[name][2] or keys.shape[-1] not in KEYS:
        return None
    if (kernel := kernel_of(name)) is None:
        return None
    parts = {"q": queries, "k": keys, "v": values, **more}
    parts = {key: part.to(torch.float32 if key in DECAYS else values.dtype) for key, part in parts.items()}
    return kernel(**parts, scale=1.0)[0].float()


def runs_on(values: Tensor) -> bool:
    """Whether kernels run where a tensor lies."""
    return values.is_cuda


@cache
def kernel_of(name: str) -> Kernel | None:
    """The function of the package, for inputs with the positions first; None without one."""
    if find_spec("fla") is None:
        return None
    module, function, _ = NAMES[name]
    kernel = getattr(import_module(module), function)
    parameters = inspect.signature(kernel).parameters
    if "cu_seqlens" not in parameters:  # the first versions, which take the heads before the positions
        return None
    return partial(kernel, head_first=False) if "head_first" in parameters else kernel
