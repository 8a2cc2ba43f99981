"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from net.multihead import MultiHead
from training.recipe import Recipe

MOMENTUM = 0.9


def cosine(step: int, steps: int) -> float:
    """Learning-rate factor at a step from 0: 1 at the start, towards 0 after the last (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def make_optimizer(
    net: MultiHead, hyper: Recipe, lr: float | Tensor, momentum: float = MOMENTUM, nesterov: bool = True
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum and weight decay `l2_reg` on every parameter that is trained."""
    parameters = trained_parameters(net)
    return torch.optim.SGD(
        parameters,
        lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=hyper.l2_reg,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def trained_parameters(net: MultiHead) -> list[nn.Parameter]:
    """Those that the optimizer changes."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]
