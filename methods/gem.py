"""Gradient episodic memory: no step may raise the loss on the kept examples of any past task.

Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Objective
from datasets.task import Task
from methods.agem import NewTaskLoss
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch, Replays
from training.optimizers import trained_parameters
from training.recipe import BATCH_SIZE, FULL
from utils.settings import Range, setting
from utils.trees import Tree


def dual(products: Tensor, violations: Tensor, margin: float, ridge: str = "relative") -> Tensor:
    """Weights v >= margin, float64, of the past tasks' gradients in the projected gradient g + G'v.

        min_v  1/2 v'(GG')v + (Gg)'v,   v >= margin

    Lopez-Paz & Ranzato (2017), eq. 11; `products`: GG' [n, n], `violations`: Gg [n]. A thousandth, where the ridge is
    relative of the mean square, is added to the diagonal, which keeps P = GG' positive definite. With P = LL' and
    u = v - margin this is the nonnegative least-squares problem min |L'u + L^-1(Gg + P margin)|.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    P, q = products.double().cpu().numpy(), violations.double().cpu().numpy()
    P = P + 1e-3 * (max(P.diagonal().mean(), 1e-30) if ridge == "relative" else 1.0) * np.eye(len(P))
    L = cholesky(P, lower=True)
    u, _ = nnls(L.T, -solve_triangular(L, q + P.sum(1) * margin, lower=True))
    return torch.from_numpy(u + margin)


class Constrained(NewTaskLoss):
    """Projects the gradient to the nearest one that makes no obtuse angle with the gradient of any past task.

    `kept`: all that is kept of each of the `tasks` past ones; if it is empty, batches have as many examples of each.
    """

    def __init__(self, tasks: int, margin: float, ridge: str = "relative", kept: Sequence[Batch] = ()) -> None:
        self.tasks, self.margin, self.ridge, self.kept = tasks, margin, ridge, kept
        self.asked = 0  # gradients of kept examples so far

    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        references = []
        for part in self.kept or self._parts(batch):
            _, reference = self.reference(net, part, objective)
            references.append(torch.cat([x.flatten() for x in reference]))
        self.asked += sum(map(len, self.kept))
        G = torch.stack(references)
        own = [parameter.grad for parameter in trained_parameters(net) if parameter.grad is not None]
        g = torch.cat([gradient.flatten() for gradient in own])
        violations, products = G @ g, G @ G.T
        # Where training has diverged there is no projection; the check of the loss will report it.
        if bool((violations < 0).any() and products.isfinite().all() and violations.isfinite().all()):
            weights = dual(products, violations, self.margin, self.ridge).to(g)
            g = g + weights @ G
            for gradient, values in zip(own, g.split([x.numel() for x in own]), strict=True):
                gradient.copy_(values.view_as(gradient))

    def state(self) -> Tree:
        return {"asked": self.asked}

    def restore(self, state: Tree) -> None:
        self.asked = state["asked"]

    def _parts(self, batch: Batch) -> list[Batch]:
        """The replayed examples of each past task."""
        _, past = batch.halves()
        size = len(past) // self.tasks
        parts = (tensor.split(size) for tensor in (past.inputs, past.targets, past.task_ids))
        return [Batch(*part) for part in zip(*parts, strict=True)]


class GEM(ReplayNet):
    """`replay_batch` examples of each past task in every step, or all that are kept, without augmentation."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(ReplayNet.Settings):
        fill: str = setting(("after",), "its constraints are those of past tasks", default="after")
        margin: float = setting(Range(0, whole=False), "added to the weights of the constraints")
        replay_batch: int | str = setting(
            BATCH_SIZE, "examples of each past task in every step; full: all that are kept"
        )
        ridge: str = setting(
            ("relative", "absolute"), "what is added to the dual problem, see `dual`", default="relative"
        )

    no_graph_reason = "whether GEM has to project depends on the gradients"

    def past(self, task: Task) -> Sequence[Replays]:
        if self._full:
            return ()
        kept = {other: Mixture([(other, self.memory.examples(other))]) for other in self.memory.tasks}
        return [self.replays(data, self.settings.replay_batch, other) for other, data in kept.items()]

    def rule(self) -> NormRule:
        tasks, settings = self.memory.tasks, self.settings
        kept = [self._whole(task) for task in tasks] if self._full else []
        return Constrained(len(tasks), settings.margin, settings.ridge, kept) if tasks else NormRule()

    @property
    def _full(self) -> bool:
        return bool(self.settings.replay_batch == FULL)

    def _whole(self, task: int) -> Batch:
        data = Mixture([(task, self.memory.examples(task))])
        return Batch(self.spec.preprocess(data.inputs(slice(0, len(data)))), data.targets, data.task_ids)

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        return super().after(task, net, rule) + (rule.asked if isinstance(rule, Constrained) else 0)
