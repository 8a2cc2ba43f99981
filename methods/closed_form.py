"""Heads in closed form on an untrained trunk: sums over examples decide, so the order of tasks does not matter.

Nearest class mean: Mensink et al., "Distance-Based Image Classification", TPAMI 2013. Linear discriminant analysis:
Hayes & Kanan, "Lifelong Machine Learning with Deep Streaming LDA", CVPR workshops 2020. Ridge regression on random
features: McDonnell et al., "RanPAC", NeurIPS 2023.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import Episode, Task
from evaluation.members import Learned
from methods.base import Requirements
from methods.single import SingleNet
from net.multihead import MultiHead, grown
from net.random_features import RandomFeatureSettings
from training.loop import TrainingStats
from training.monitor import Monitor
from training.prediction import evaluation_batches
from utils.seeding import seeded
from utils.settings import Range, setting

HEADS = ("mean", "lda", "ridge")
Sums = dict[str, Tensor]  # "n": examples of each class [C], "sum": of their features [C, D], "square": of h h' [D, D]


def solve(sums: Sums, head: str, regularisation: float) -> tuple[Tensor, Tensor]:
    """Weight [C, D] and bias [C], float64, of the head for sums over the examples, with class means m and N examples.

    mean    w_c = m_c,  b_c = -|m_c|^2 / 2: the nearest mean has the largest output
    lda     w_c = S^-1 m_c,  b_c = -m_c' S^-1 m_c / 2 + log(n_c / N),  S the covariance within classes + r I
    ridge   the minimum of 1/N sum |W h + b - y|^2 + r |W|^2, y one-hot; b is not held down

    A class without examples is never the answer.
    """
    n, total, square = sums["n"], sums["sum"], sums["square"]
    means, count = total / n.clamp_min(1).unsqueeze(1), n.sum()
    if head == "mean":
        return means, torch.where(n > 0, -means.square().sum(1) / 2, -torch.inf)
    identity = torch.eye(len(square), dtype=square.dtype, device=square.device)
    if head == "lda":
        within = (square - total.T @ means) / count + regularisation * identity
        weight = torch.linalg.solve(within, means.T).T
        return weight, -(weight * means).sum(1) / 2 + (n / count).log()
    centre = total.sum(0) / count
    shares = n / count
    covariance = square / count - torch.outer(centre, centre) + regularisation * identity
    weight = torch.linalg.solve(covariance, (total / count - torch.outer(shares, centre)).T).T
    return weight, shares - weight @ centre


class ClosedForm(SingleNet):
    """One pass over each task adds to the sums of its head, and the head is solved anew; no gradient steps."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(RandomFeatureSettings):  # not those of SingleNet, which are about training
        head: str = setting(HEADS, "nearest class mean, linear discriminant analysis or ridge regression, see `solve`")
        regularisation: float = setting(Range(0, whole=False, open_low=True), "r of `solve`")

    options = frozenset[str]()  # nothing can be asked on the way
    requires = Requirements(classes=True, biases=True)
    no_graph_reason = "there are no steps"
    saved_attributes = (*SingleNet.saved_attributes, "sums")

    sums: dict[int, Sums]  # by head: 0 where tasks share one

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        (task,) = episode.new
        with seeded(self.config.seed, "member", episode.number - 1):
            net = self.network((), {task.id: task.num_outputs})
        if not self.seen:
            self.untrained = {task.id: self.ask(net, task.id, task.test, "the untrained network")}
        begin = time.perf_counter()
        sums = self.sums[self.head_of(task.id)] = self._with(task, net)
        weight, bias = solve(sums, self.settings.head, self.settings.regularisation)
        with torch.no_grad():
            rows = net.rows(task.id)
            net.weight[rows], net.bias[rows] = weight.to(net.weight), bias.to(net.bias)
        count = len(task.train_eval)
        stats = TrainingStats(count, count, seconds=time.perf_counter() - begin)
        self.keep_heads(net)
        return self.learned(episode, stats)

    @torch.no_grad()
    def _with(self, task: Task, net: MultiHead) -> Sums:
        """The sums of a task's head with its training examples added, float64, so that their order hardly matters."""
        width, features = net.head_sizes[task.id], net.weight.shape[1]
        shapes = {"n": (width,), "sum": (width, features), "square": (features, features)}
        before, like = self.sums.get(self.head_of(task.id), {}), net.weight.detach().double()
        sums = {name: grown(before.get(name), like.new_zeros(shape)).clone() for name, shape in shapes.items()}
        data = Mixture([(task.id, task.train_eval)])
        for inputs, part in evaluation_batches(net, data, self.spec, self.compute):
            with self.compute.autocast():
                h = net.trunk(inputs).double()
            targets = data.targets[part]
            sums["n"] += torch.bincount(targets, minlength=width)
            sums["sum"].index_add_(0, targets, h)
            sums["square"] += h.T @ h
        return sums

    def extra_parameters(self) -> int:
        """The sums."""
        return sum(value.numel() for sums in self.sums.values() for value in sums.values())
