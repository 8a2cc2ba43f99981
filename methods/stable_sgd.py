"""Stable SGD: wide minima forget less, so dropout, small batches and a learning rate that falls from task to task.

Mirzadeh et al., "Understanding the Role of Training Regimes in Continual Learning", NeurIPS 2020.
"""

from dataclasses import dataclass, replace

from methods.single import NormRule, SingleNet
from training.recipe import Recipe
from utils.settings import Range, setting


class StableRate(NormRule):
    """Plain momentum and one learning rate for the whole task: max(lr decay^t, min(lr, floor)), t past tasks."""

    def __init__(self, decay: float, floor: float, momentum: float, tasks: int) -> None:
        self.factor, self.floor, self.momentum = decay**tasks, floor, momentum

    def adapt(self, recipe: Recipe) -> Recipe:
        lr = max(recipe.lr * self.factor, min(recipe.lr, self.floor))
        recipe = replace(recipe, lr=lr, schedule="constant", warmup=0)
        return replace(recipe, optimizer="sgd", momentum=self.momentum, nesterov=False)


class StableSGD(SingleNet):
    """The recipe's `lr` is that of the first task; its optimizer, schedule and warm-up are replaced."""

    @dataclass(frozen=True)
    class Settings(SingleNet.Settings):
        decay: float = setting(Range(0, 1, whole=False, open_low=True), "factor on the learning rate with every task")
        floor: float = setting(Range(0, whole=False), "least learning rate")
        momentum: float = setting(Range(0, 1, whole=False, open_high=True), "of SGD")

    def rule(self) -> NormRule:
        settings = self.settings
        return StableRate(settings.decay, settings.floor, settings.momentum, len(self.seen))
