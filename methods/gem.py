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
from utils.settings import Range, setting


def dual(products: Tensor, violations: Tensor, margin: float) -> Tensor:
    """Weights v >= margin, float64, of the past tasks' gradients in the projected gradient g + G'v.

        min_v  1/2 v'(GG')v + (Gg)'v,   v >= margin

    Lopez-Paz & Ranzato (2017), eq. 11; `products`: GG' [n, n], `violations`: Gg [n]. A thousandth of the mean
    square on the diagonal keeps P = GG' positive definite. With P = LL' and u = v - margin this is the nonnegative
    least-squares problem min |L'u + L^-1(Gg + P margin)|.
    """
    from scipy.linalg import cholesky, solve_triangular
    from scipy.optimize import nnls

    P, q = products.double().cpu().numpy(), violations.double().cpu().numpy()
    P = P + 1e-3 * max(P.diagonal().mean(), 1e-30) * np.eye(len(P))
    L = cholesky(P, lower=True)
    u, _ = nnls(L.T, -solve_triangular(L, q + P.sum(1) * margin, lower=True))
    return torch.from_numpy(u + margin)


class Constrained(NewTaskLoss):
    """Projects the gradient to the nearest one that makes no obtuse angle with the gradient of any past task."""

    def __init__(self, tasks: int, margin: float) -> None:
        self.tasks, self.margin = tasks, margin

    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        _, past = batch.halves()
        references = []
        size = len(past) // self.tasks
        parts = (tensor.split(size) for tensor in (past.inputs, past.targets, past.task_ids))
        for part in zip(*parts, strict=True):
            _, reference = self.reference(net, Batch(*part), objective)
            references.append(torch.cat([x.flatten() for x in reference]))
        G = torch.stack(references)
        own = [parameter.grad for parameter in trained_parameters(net) if parameter.grad is not None]
        g = torch.cat([gradient.flatten() for gradient in own])
        violations, products = G @ g, G @ G.T
        # Where training has diverged there is no projection; the check of the loss will report it.
        if bool((violations < 0).any() and products.isfinite().all() and violations.isfinite().all()):
            weights = dual(products, violations, self.margin).to(g)
            g = g + weights @ G
            for gradient, values in zip(own, g.split([x.numel() for x in own]), strict=True):
                gradient.copy_(values.view_as(gradient))


class GEM(ReplayNet):
    """`replay_batch` examples of each past task in every step."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(ReplayNet.Settings):
        fill: str = setting(("after",), "its constraints are those of past tasks", default="after")
        margin: float = setting(Range(0, whole=False), "added to the weights of the constraints")

    no_graph_reason = "whether GEM has to project depends on the gradients"

    def past(self, task: Task) -> Sequence[Replays]:
        kept = {other: Mixture([(other, self.memory.examples(other))]) for other in self.memory.tasks}
        return [self.replays(data, self.settings.replay_batch, other) for other, data in kept.items()]

    def rule(self) -> NormRule:
        tasks = len(self.memory.tasks)
        return Constrained(tasks, self.settings.margin) if tasks else NormRule()
