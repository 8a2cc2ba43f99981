"""Synaptic intelligence: a parameter is held back by its contribution to the fall of the loss on past tasks.

Zenke, Poole & Ganguli, "Continual Learning Through Synaptic Intelligence", ICML 2017.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.objectives import Objective
from datasets.task import Task
from methods.ewc import PENALTIES, Springs, Values, proximal
from methods.single import NormRule, SingleNet, shared_parameters
from net.multihead import MultiHead, grown
from training.batches import Batch
from utils.settings import Range, setting
from utils.trees import Tree


class PathIntegral(Springs):
    """Springs that also sum -g_i (theta_i after - theta_i before) over steps, g the gradient of the loss alone.

    With momentum a step also contains older gradients, which are counted with the newest one.
    """

    def begin(self, net: MultiHead) -> None:
        super().begin(net)
        trained = shared_parameters(net)
        self.names, self._all = list(trained), list(trained.values())
        self.start = [parameter.detach().clone() for parameter in self._all]
        self.work = [torch.zeros_like(parameter) for parameter in self.start]

    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        self._gradients = [p.grad.clone() for p in self._all if p.grad is not None]
        self._before = [parameter.detach().clone() for parameter in self._all]
        super().adjust(net, batch, objective)

    def finish(self, net: MultiHead, rate: float | Tensor) -> None:
        super().finish(net, rate)
        moved = torch._foreach_sub([parameter.detach() for parameter in self._all], self._before)
        torch._foreach_addcmul_(self.work, self._gradients, moved, value=-1.0)

    def state(self) -> Tree:
        return self.work

    def restore(self, state: Tree) -> None:
        self.work = state

    def importance(self, damping: float) -> Values:
        """max(0, work / (distance^2 + damping)) of every parameter, by name."""
        rows = zip(self.names, self.work, self._all, self.start, strict=True)
        return {name: (work / ((end.detach() - start) ** 2 + damping)).clamp_min(0) for name, work, end, start in rows}


class SI(SingleNet):
    """Adds strength sum_i Omega_i (theta_i - theta*_i)^2: Omega a sum over tasks, theta* the end of the last one."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(SingleNet.Settings):
        strength: float = setting(Range(0, whole=False), "c of the paper")
        penalty: str = setting(PENALTIES, "how it is minimised, see Springs", default="proximal")
        damping: float = setting(Range(0, whole=False, open_low=True), "xi of the paper")

    saved_attributes = (*SingleNet.saved_attributes, "importance", "_pull")

    importance: Values
    _pull: Values

    def rule(self) -> PathIntegral:
        # Springs has a factor 1/2 that this penalty has not.
        held = self.common(self.importance), self.common(self._pull)
        return PathIntegral(2 * self.settings.strength, *held, proximal(self.settings, self.recipe))

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        assert isinstance(rule, PathIntegral)
        for name, value in rule.importance(self.settings.damping).items():
            self.importance[name] = grown(self.importance.get(name), value) + value
        place = shared_parameters(net)
        self._pull = {name: value * place[name].detach() for name, value in self.importance.items()}
        return 0

    def extra_parameters(self) -> int:
        """Importance and pull: two values a parameter."""
        return sum(value.numel() for value in [*self.importance.values(), *self._pull.values()])
