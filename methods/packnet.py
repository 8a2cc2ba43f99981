"""PackNet: each task trains the free weights, keeps the largest of them, and leaves the others to later tasks.

Mallya & Lazebnik, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning", CVPR 2018.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Context
from methods.subnets import FixedWeights, Masks, Subnets
from training.optimizers import learning_rates
from training.recipe import Recipe
from utils.errors import UserError
from utils.settings import Range, setting
from utils.trees import Tree


class Packing(FixedWeights):
    """Prunes to a `share` of each layer's free weights after two thirds of the steps; then the schedule restarts."""

    def __init__(self, used: Masks, share: float) -> None:
        super().__init__(used)
        self.share = share
        self.kept: list[Tensor] = []

    def rates(self, recipe: Recipe, steps: int) -> Callable[[int], float]:
        cut = pruning_step(steps)
        before, after = learning_rates(recipe, cut), learning_rates(recipe, steps - cut)
        return lambda step: before(step) if step < cut else after(step - cut)

    @torch.no_grad()
    def before(self, step: int, steps: int) -> None:
        if step != pruning_step(steps):
            return
        for weight, taken, free in zip(self.weights, self.taken, self.free, strict=True):
            size = torch.where(taken, -1.0, weight.abs()).flatten()
            chosen = size.topk(round(self.share * int((~taken).sum()))).indices
            kept = torch.zeros_like(size, dtype=torch.bool).index_fill_(0, chosen, True).view_as(weight)
            # In place: a captured step reads these tensors.
            free.copy_(kept)
            weight.mul_(kept | taken)
            self.kept.append(kept | taken)

    def state(self) -> Tree:
        return {"kept": self.kept, "free": self.free}

    def restore(self, state: Tree) -> None:
        self.kept, self.free = state["kept"], state["free"]

    def masks(self) -> Masks:
        return dict(zip(self.names, self.kept, strict=True))


def pruning_step(steps: int) -> int:
    """The step, counted from 0, before which weights are pruned."""
    return 2 * steps // 3


class PackNet(Subnets):
    """A network that `tasks` tasks share in equal parts."""

    @dataclass(frozen=True)
    class Settings(Subnets.Settings):
        tasks: int = setting(Range(1), "how many tasks there is room for, in equal shares")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        room, tasks = self.settings.tasks, len(self.config.data.numbers)
        if room < tasks:
            raise UserError(f"--method packnet: its setting tasks is {room}; the stream has {tasks}")

    def rule(self) -> Packing:
        return Packing(self.used, 1 / (self.settings.tasks - len(self.seen)))
