"""Gradient episodic memory: no step may raise the loss on what is kept of any past task.

Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Objective
from datasets.task import Task
from methods.base import Accepted
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch, Joined, Replays
from training.optimizers import trained_parameters
from utils.config import Range
from utils.seeding import generator


def nonnegative_quadratic(P: Tensor, q: Tensor) -> Tensor:
    """u >= 0 that minimises 1/2 u'Pu + q'u, for a positive definite P, [n, n] float64.

    The active-set method of Lawson & Hanson (1974) for nonnegative least squares; n is the number of past
    tasks, so every system is tiny.
    """
    n = len(q)
    u, free = torch.zeros_like(q), torch.zeros(n, dtype=torch.bool)
    tolerance = 1e-12 * max(1.0, float(q.abs().max()))
    for _ in range(10 * n + 10):
        slope = -(P @ u + q)
        slope[free] = -torch.inf
        if free.all() or slope.max() <= tolerance:
            break
        free[slope.argmax()] = True
        while True:
            trial = torch.zeros_like(u)
            trial[free] = torch.linalg.solve(P[free][:, free], -q[free])
            if (trial[free] > 0).all():
                break
            # Go as far towards the trial as all stay nonnegative; those that reach zero stay there.
            blocked = free & (trial <= 0)
            ratio = (u[blocked] / (u[blocked] - trial[blocked])).min()
            u = u + ratio * (trial - u)
            free &= u > tolerance
            u[~free] = 0
            if not free.any():
                trial = u
                break
        u = trial
    return u


def dual(products: Tensor, violations: Tensor, margin: float) -> Tensor:
    """Weights v >= margin of the past tasks' gradients in the projected one, g + G'v.

        min_v  1/2 v'(GG')v + (Gg)'v,   v >= margin

    Lopez-Paz & Ranzato (2017), eq. 11; `products`: GG' [n, n], `violations`: Gg [n]. A thousandth of the mean
    square on the diagonal keeps GG' invertible.
    """
    P, q = products.double().cpu(), violations.double().cpu()
    P = P + 1e-3 * P.diagonal().mean().clamp_min(1e-30) * torch.eye(len(P), dtype=P.dtype)
    shift = torch.full_like(q, margin)
    return nonnegative_quadratic(P, q + P @ shift) + shift


class Constrained(NormRule):
    """One reference gradient per past task, and the nearest gradient that makes an obtuse angle with none."""

    def __init__(self, tasks: int, margin: float) -> None:
        self.tasks, self.margin = tasks, margin

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        new, _ = batch.halves()
        return objective.loss(net(new.inputs, new.task_ids), new.targets)

    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        if not batch.replayed:
            return
        _, past = batch.halves()
        parameters = trained_parameters(net)
        size = len(past) // self.tasks
        references = []
        for start in range(0, len(past), size):
            part = slice(start, start + size)
            with self.autocast():
                loss = objective.loss(net(past.inputs[part], past.task_ids[part]), past.targets[part])
            references.append(torch.cat([x.flatten() for x in torch.autograd.grad(loss, parameters)]))
        G = torch.stack(references)
        own = [parameter.grad for parameter in parameters if parameter.grad is not None]
        g = torch.cat([gradient.flatten() for gradient in own])
        violations = G @ g
        if bool((violations < 0).any()):
            weights = dual(G @ G.T, violations, self.margin).to(g)
            g = g + weights @ G
            for gradient, values in zip(own, g.split([x.numel() for x in own]), strict=True):
                gradient.copy_(values.view_as(gradient))


class GEM(ReplayNet):
    """`replay_batch` examples of each past task in every step."""

    settings: ClassVar[Accepted] = {**ReplayNet.settings, "margin": Range(0, whole=False)}
    waits = "whether GEM has to project depends on the gradients"

    def past(self, task: Task) -> Joined | None:
        if not self.memory.tasks:
            return None
        size = self.config.settings["replay_batch"]
        streams = [
            Replays(
                Mixture([(other, self.memory.examples(other))]), self.spec, size,
                generator(self.config.seed, "member", len(self._seen), "replay", other), augment=self.recipe.augments,
            )
            for other in self.memory.tasks
        ]  # fmt: skip
        return Joined(streams)

    def rule(self, task: Task) -> NormRule:
        return Constrained(len(self.memory.tasks), self.config.settings["margin"])
