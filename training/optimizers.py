"""Optimizers and learning-rate schedules. To add one: a function and a line in OPTIMIZERS or SCHEDULES."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from net.multihead import MultiHead
from training.recipe import Recipe

Parameters = list[nn.Parameter]
Rate = float | Tensor


def sgd(parameters: Parameters, recipe: Recipe, lr: Rate) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum, in Nesterov's form unless the recipe says otherwise."""
    nesterov, fused = recipe.nesterov and recipe.momentum > 0, _fused(parameters)
    return torch.optim.SGD(parameters, lr, recipe.momentum, weight_decay=recipe.l2_reg, nesterov=nesterov, fused=fused)


def adam(parameters: Parameters, recipe: Recipe, lr: Rate, *, decoupled: bool = False) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015), or AdamW: weight decay `decoupled` from the moments (Loshchilov & Hutter 2019)."""
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    cuda = parameters[0].device.type == "cuda"  # capturable: keeps the step count where a CUDA graph can raise it
    return kind(
        parameters, lr, (recipe.beta1, recipe.beta2), recipe.eps, recipe.l2_reg, fused=_fused(parameters),
        capturable=cuda,
    )  # fmt: skip


def _fused(parameters: Parameters) -> bool:
    return parameters[0].device.type in ("cpu", "cuda")


OPTIMIZERS: dict[str, Callable[[Parameters, Recipe, Rate], torch.optim.Optimizer]] = {
    "sgd": sgd, "adamw": partial(adam, decoupled=True), "adam": adam,
}  # fmt: skip


def make_optimizer(net: MultiHead, recipe: Recipe, lr: Rate) -> torch.optim.Optimizer:
    """The recipe's optimizer of every trained parameter; `lr` is a tensor where steps are captured."""
    return OPTIMIZERS[recipe.optimizer](trained_parameters(net), recipe, lr)


def trained_parameters(net: MultiHead) -> Parameters:
    """Parameters that require a gradient."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


# Schedules: the factor on the learning rate at a step, counted from 0, of `steps` in all.


def cosine(step: int, steps: int, recipe: Recipe | None = None) -> float:
    """1 at the start, towards 0 after the last step, as half a period of a cosine (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def linear(step: int, steps: int, recipe: Recipe | None = None) -> float:
    """1 at the start, towards 0 after the last step, in a straight line."""
    return 1 - step / steps


def constant(step: int, steps: int, recipe: Recipe | None = None) -> float:
    """1 in every step."""
    return 1.0


def exponential(step: int, steps: int, recipe: Recipe) -> float:
    """gamma^step."""
    return recipe.gamma**step


SCHEDULES: dict[str, Callable[[int, int, Recipe], float]] = {
    "cosine": cosine, "linear": linear, "constant": constant, "exponential": exponential,
}  # fmt: skip


def learning_rates(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """The learning rate of each step, counted from 0, of `steps` in all.

    In w steps of warm-up it is (step + 1) / (w + 1) of the highest; the schedule covers the other steps.
    """
    schedule, lr, warmup = SCHEDULES[recipe.schedule], recipe.lr, recipe.warmup_steps(steps)
    rest = max(1, steps - warmup) if warmup else steps
    return lambda step: lr * ((step + 1) / (warmup + 1) if step < warmup else schedule(step - warmup, rest, recipe))
