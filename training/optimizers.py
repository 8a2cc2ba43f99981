"""Optimizers and learning-rate schedules. To add a schedule: one line in SCHEDULES."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from net.multihead import MultiHead
from training.recipe import Recipe
from utils.errors import UserError

OPTIMIZERS: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adamw": torch.optim.AdamW,  # Loshchilov & Hutter 2019
    "adam": torch.optim.Adam,  # Kingma & Ba 2015
}
# The factor on the learning rate at a step, counted from 0, of `steps` in all.
SCHEDULES: dict[str, Callable[[int, int, Recipe], float]] = {
    "cosine": lambda step, steps, recipe: 0.5 * (1 + math.cos(math.pi * step / steps)),  # Loshchilov & Hutter 2017
    "linear": lambda step, steps, recipe: 1 - step / steps,
    "constant": lambda step, steps, recipe: 1.0,
    "exponential": lambda step, steps, recipe: recipe.gamma**step,
    "half_exponential": lambda step, steps, recipe: max(0.01 ** (2 * step / steps), 0.01),  # 1 % from half of the steps
}
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)  # layers whose weights decay, decayed: weights
# Schedules that fall during the warm-up as well, which is a factor on them from 0 to 1.
_FROM_THE_BEGINNING = ("half_exponential",)


def recipe_for(net: MultiHead, recipe: Recipe) -> Recipe:
    """The recipe with the learning rate of a network of this width; UserError if it depends on one that is unknown."""
    if recipe.lr_scale == "none":
        return recipe
    width = getattr(net.trunk, "width", None)
    if width is None:
        has = f"{type(net.trunk).__name__} says none"
        raise UserError(f"lr_scale: {recipe.lr_scale} needs a network with a width, such as rnn; {has}")
    return replace(recipe, lr=recipe.lr / math.sqrt(width), lr_scale="none")


def make_optimizer(net: MultiHead, recipe: Recipe, lr: float | Tensor) -> torch.optim.Optimizer:
    """The recipe's optimizer of every trained parameter; `lr` is a tensor where steps are captured."""
    parameters: Any = trained_parameters(net)
    device = parameters[0].device.type
    if recipe.decayed == "weights":
        decayed = {id(module.weight) for module in net.modules() if isinstance(module, _WEIGHTED)} | {id(net.weight)}
        others = [parameter for parameter in parameters if id(parameter) not in decayed]
        parameters = [parameter for parameter in parameters if id(parameter) in decayed]
        parameters = [{"params": parameters}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        options: dict[str, Any] = {"momentum": recipe.momentum, "nesterov": recipe.nesterov and recipe.momentum > 0}
    else:  # capturable: keeps the step count where a CUDA graph can raise it
        options = {"betas": (recipe.beta1, recipe.beta2), "eps": recipe.eps, "capturable": device == "cuda"}
    kind, fused = OPTIMIZERS[recipe.optimizer], device in ("cpu", "cuda")
    return kind(parameters, lr, weight_decay=recipe.l2_reg, fused=fused, **options)  # type: ignore[no-any-return]


def trained_parameters(net: MultiHead) -> list[nn.Parameter]:
    """Parameters that require a gradient."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def learning_rates(recipe: Recipe, steps: int) -> Callable[[int], float]:
    """The learning rate of each step, counted from 0, of `steps` in all.

    In w steps of warm-up it is (step + 1) / (w + 1) of the highest; the schedule covers the other steps. The published
    warm-up of half_exponential is min(step / w, 1) times the schedule of all steps: the first step has the rate 0.
    """
    schedule, lr, warmup = SCHEDULES[recipe.schedule], recipe.lr, recipe.warmup_steps(steps)
    if recipe.schedule in _FROM_THE_BEGINNING:
        return lambda step: lr * (step / warmup if step < warmup else 1.0) * schedule(step, steps, recipe)
    rest = max(1, steps - warmup) if warmup else steps
    return lambda step: lr * ((step + 1) / (warmup + 1) if step < warmup else schedule(step - warmup, rest, recipe))
