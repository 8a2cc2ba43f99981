"""The short convolution of several sequence mixers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class ShortConvolution(nn.Conv1d):
    """Causal depthwise convolution, [B, L, C] -> [B, L, C], with the usual initialisation of torch.

    y_t = sum_{j < kernel} w_j * u_{t - kernel + 1 + j} (+ b), where u is 0 before the first position
    """

    def __init__(self, width: int, kernel: int, bias: bool = False) -> None:
        super().__init__(width, width, kernel, groups=width, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        mixed = _Convolution.apply(inputs, self.weight[:, 0].mT.contiguous().to(inputs.dtype))
        return mixed if self.bias is None else mixed + self.bias.to(inputs.dtype)  # type: ignore[no-any-return]

    def begin(self, batch: int) -> Tensor:
        """The inputs before the first position, [B, kernel - 1, C]."""
        return self.weight.new_zeros(batch, self.kernel_size[0] - 1, self.in_channels)

    def step(self, inputs: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs at one position [B, C] and the ones before it -> outputs [B, C], the inputs before the next."""
        window = torch.cat([seen, inputs.unsqueeze(1)], 1)
        mixed = torch.einsum("bkc,ck->bc", window, self.weight[:, 0])
        return mixed if self.bias is None else mixed + self.bias, window[:, 1:]


class _Convolution(Function):
    """Inputs [B, L, C], weights [k, C] -> [B, L, C]; on a CPU at half the cost of torch's own, its gradients above all.

    Weight w_{k - 1 - j} belongs to the input j positions earlier.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        mixed = inputs * weights[-1]
        for j in _earlier(inputs, weights):
            mixed[:, j:].addcmul_(inputs[:, :-j], weights[-1 - j])
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weights = ctx.saved_tensors
        of_inputs, of_weights = gradient * weights[-1], torch.zeros_like(weights)
        of_weights[-1] = (gradient * inputs).sum((0, 1))
        for j in _earlier(inputs, weights):
            of_inputs[:, :-j].addcmul_(gradient[:, j:], weights[-1 - j])
            of_weights[-1 - j] = (gradient[:, j:] * inputs[:, :-j]).sum((0, 1))
        return of_inputs, of_weights


def _earlier(inputs: Tensor, weights: Tensor) -> range:
    """How many positions earlier the other inputs of a convolution are."""
    return range(1, min(len(weights), inputs.shape[1]))
