"""ReLU followed by dropout, as one operation on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 1 << 16


class ReluDropout(nn.Module):
    """dropout(relu(x)), which overwrites x: no other gradient may need it.

    torch draws 64 random bits a value and multiplies twice: on two cores a sixth of a wide residual network's step.
    Here a value costs 16 bits, so the dropped share `p` is rounded to a multiple of 1/65536. The gradient needs no
    mask: a value that was dropped is 0, like one that ReLU cut off.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return F.relu(x, inplace=True)
        if x.device.type != "cpu":
            return F.dropout(F.relu(x, inplace=True), self.p)
        return _ReluDropout.apply(x, round(self.p * _LEVELS))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"p={self.p}"


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped_levels: int) -> Tensor:
        scale = _LEVELS / (_LEVELS - dropped_levels)
        # Random bits for four values in each word, in the order in which x lies in memory.
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
        bits = words.view(torch.int16)[: x.numel()].as_strided(x.shape, x.stride())
        kept = (bits >= dropped_levels - _LEVELS // 2).to(x.dtype).mul_(scale)
        x.clamp_min_(0).mul_(kept)
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        ctx.scale = scale
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(gradient, x, 0).mul_(ctx.scale), None
