"""A subnetwork for each task: the weights that a task uses are never changed again, so nothing is forgotten."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from datasets.objectives import Objective
from datasets.task import Task
from methods.base import Requirements
from methods.single import NormRule, SingleNet
from net import BatchNorm
from net.multihead import MultiHead, TaskWeights
from training.batches import Batch
from utils.settings import setting

Masks = dict[str, Tensor]  # bool, by name of the weight
MASKED = (nn.modules.conv._ConvNd, nn.Linear)


def layer_weights(trunk: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of the convolutions and linear maps of a trunk, by name."""
    return {
        f"{name}.weight": cast(nn.Parameter, module.weight)
        for name, module in trunk.named_modules()
        if isinstance(module, MASKED)
    }


def freeze_others(trunk: nn.Module, trained: Collection[str]) -> None:
    """Freeze all parameters except these and those of batch normalisation: biases, embeddings and the like."""
    norms = {id(p) for module in trunk.modules() if isinstance(module, BatchNorm) for p in module.parameters()}
    for name, parameter in trunk.named_parameters():
        if name not in trained and id(parameter) not in norms:
            parameter.requires_grad_(False)


class FixedWeights(NormRule, ABC):
    """Keeps the weights that earlier tasks use to the bit, whatever momentum and weight decay would do.

    Parameters other than weights of layers and batch normalisation are trained in the first task only.
    """

    def __init__(self, used: Masks) -> None:
        self.used = used

    def begin(self, net: MultiHead) -> None:
        super().begin(net)
        layers = layer_weights(net.trunk)
        if self.used:
            freeze_others(net.trunk, layers)
        self.names = list(layers)
        self.weights: list[Tensor] = list(layers.values())
        self.taken = [self.used.get(name, torch.zeros_like(w, dtype=torch.bool)) for name, w in layers.items()]
        with torch.no_grad():
            self.free = [(~taken).to(weight.dtype) for taken, weight in zip(self.taken, self.weights, strict=True)]
            self.fixed = [weight * taken for taken, weight in zip(self.taken, self.weights, strict=True)]

    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        torch._foreach_mul_([weight.grad for weight in self.weights if weight.grad is not None], self.free)

    @torch.no_grad()
    def finish(self, net: MultiHead, rate: float | Tensor) -> None:
        torch._foreach_mul_(self.weights, self.free)
        torch._foreach_add_(self.weights, self.fixed)

    @abstractmethod
    def masks(self) -> Masks:
        """The weights that the task uses, after it has been learned."""


class Subnets(SingleNet):
    """A mask of the weights for each task; a task is answered with all other weights set to zero."""

    @dataclass(frozen=True)
    class Settings(SingleNet.Settings):
        bn: str = setting(("per_task", "freeze_after_first"), "with shared statistics old answers would change")

    # A shared head would be changed by later tasks.
    scenarios = frozenset({"task"})
    requires = Requirements(layers=MASKED, own_heads=True)
    saved_attributes = (*SingleNet.saved_attributes, "masks")

    masks: dict[int, Masks]  # by task

    @property
    def used(self) -> Masks:
        """The weights that any task uses."""
        names = next(iter(self.masks.values()), {})
        return {name: torch.stack([masks[name] for masks in self.masks.values()]).any(0) for name in names}

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        assert isinstance(rule, FixedWeights)
        self.masks[task.id] = rule.masks()
        return 0

    def task_weights(self, task_id: int) -> TaskWeights:
        return {**super().task_weights(task_id), **self.masks[task_id]}

    def extra_parameters(self) -> int:
        """The masks: a bit per weight and task, 32 bits to a parameter."""
        return -(-sum(mask.numel() for masks in self.masks.values() for mask in masks.values()) // 32)
