"""Winning subnetworks: weights and scores are trained together, a task uses the weights with the largest scores.

Kang et al., "Forget-free Continual Learning with Winning Subnetworks", ICML 2022.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.objectives import Objective
from methods.single import NormRule
from methods.subnets import FixedWeights, Masks, Subnets
from net.multihead import MultiHead, TaskWeights
from training.batches import Batch
from training.recipe import Recipe
from utils.settings import Range, setting
from utils.trees import Tree


def largest(scores: Tensor, share: float) -> Tensor:
    """Mask of a share of a layer's weights, those with the largest |scores|; at least one."""
    size = scores.detach().abs()
    count = max(1, round(share * size.numel()))
    return size >= size.flatten().kthvalue(size.numel() - count + 1).values


class Winning(FixedWeights):
    """Runs the network with the weights W m, m the mask of the largest scores s of each layer.

    With g the gradient of the loss with respect to W m, that of W is g m, zero for weights of earlier tasks, and
    that of s is g W sign(s), as if m were |s| (straight-through; eq. 4-5 of the paper).
    """

    def __init__(self, used: Masks, share: float, score_rate: float) -> None:
        super().__init__(used)
        self.share, self.score_rate = share, score_rate

    def begin(self, net: MultiHead) -> None:
        super().begin(net)
        self.scores = [nn.Parameter(torch.empty_like(weight)) for weight in self.weights]
        for scores in self.scores:
            nn.init.kaiming_uniform_(scores, a=math.sqrt(5))

    def optimizer(self, net: MultiHead, recipe: Recipe, lr: float | Tensor) -> torch.optim.Optimizer:
        optimizer = super().optimizer(net, recipe, lr)
        optimizer.add_param_group({"params": self.scores, "weight_decay": 0.0})
        return optimizer

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        with torch.no_grad():
            self._whole = [weight.clone() for weight in self.weights]
            self._winning = [largest(scores, self.share).to(scores.dtype) for scores in self.scores]
            torch._foreach_mul_(self.weights, self._winning)
        return super().loss(net, batch, objective)

    @torch.no_grad()
    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        for weight, scores, whole in zip(self.weights, self.scores, self._whole, strict=True):
            assert weight.grad is not None
            scores.grad = weight.grad * whole * scores.sign() * self.score_rate
            weight.copy_(whole)
        torch._foreach_mul_([weight.grad for weight in self.weights if weight.grad is not None], self._winning)
        super().adjust(net, batch, objective)

    def state(self) -> Tree:
        return [scores.detach() for scores in self.scores]

    @torch.no_grad()
    def restore(self, state: Tree) -> None:
        torch._foreach_copy_([*self.scores], state)

    def masks(self) -> Masks:
        return {name: largest(scores, self.share) for name, scores in zip(self.names, self.scores, strict=True)}


class WSN(Subnets):
    """Winning subnetworks; a task may use weights of earlier tasks again, but not change them."""

    @dataclass(frozen=True)
    class Settings(Subnets.Settings):
        share: float = setting(Range(0, 1, whole=False, open_low=True), "of each layer's weights that a task uses")
        score_rate: float = setting(Range(0, whole=False), "factor on the learning rate of the scores")

    no_graph_reason = "those of WSN have not been tried as a CUDA graph"

    def weights_in_training(self, rule: NormRule) -> TaskWeights:
        assert isinstance(rule, Winning)
        return rule.masks()

    def rule(self) -> Winning:
        return Winning(self.used, self.settings.share, self.settings.score_rate)
