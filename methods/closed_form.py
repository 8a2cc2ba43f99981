"""Heads in closed form on an untrained or frozen trunk: sums over examples decide, so that no order of them matters.

Nearest class mean: Mensink et al., "Distance-Based Image Classification", TPAMI 2013. Linear discriminant analysis:
Hayes & Kanan, "Lifelong Machine Learning with Deep Streaming LDA", CVPR workshops 2020. Ridge regression on random
features: McDonnell et al., "RanPAC", NeurIPS 2023. Linear discriminant analysis on random cosine features: Prabhu et
al., "RanDumb", NeurIPS 2024.
"""

import contextlib
import time
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import Episode, Examples, Task
from evaluation.members import Learned
from methods.base import Requirements
from methods.single import SingleNet
from net.multihead import MultiHead, grown
from net.random_features import RandomFeatureSettings
from training.loop import TrainingStats
from training.monitor import Monitor
from training.prediction import evaluation_batches
from utils.errors import UserError
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
    """One pass over each task adds to the sums of its head, and the head is solved anew; no gradient steps.

    With `random_features` the heads act on these, see RandomFeatures.
    """

    @dataclass(frozen=True, kw_only=True)
    class Settings(RandomFeatureSettings):  # not those of SingleNet, which are about training
        head: str = setting(HEADS, "nearest class mean, linear discriminant analysis or ridge regression, see `solve`")
        regularisation: float = setting(Range(0, whole=False, open_low=True), "r of `solve`")

    options = frozenset[str]()  # nothing can be asked on the way
    requires = Requirements(classes=True, biases=True)
    no_graph_reason = "there are no steps"
    saved_attributes = (*SingleNet.saved_attributes, "sums", "_gone")

    sums: dict[int, Sums]  # by head: 0 where tasks share one
    _gone: dict[int, list[int]]  # by task, its classes that were unlearned

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        (task,) = episode.new
        with seeded(self.config.seed, "member", episode.number - 1):
            net = self.network((), {task.id: task.num_outputs})
        if not self.seen:
            self.untrained = {task.id: self.ask(net, task.id, task.test, "the untrained network")}
        begin, head = time.perf_counter(), self.head_of(task.id)
        self._sizes.update(net.head_sizes)
        found = self.sums_of(net, task.train_eval, net.head_sizes[task.id])
        before = self.sums.get(head, {})
        self.sums[head] = {name: value + grown(before.get(name), value) for name, value in found.items()}
        self._solve(head)
        count = len(task.train_eval)
        return self.learned(episode, TrainingStats(count, count, seconds=time.perf_counter() - begin))

    def unlearn(self, task: Task, classes: Collection[int] | None = None) -> None:
        """Take the training examples of a task that was learned, or those of some of its classes, out of its head.

        Afterwards the head is that of a stream which never had them: exactly, if the task has a head of its own and no
        classes are given, which removes it; else up to the order of summation in float64. Classes without examples are
        never the answer; classes that were taken out before change nothing. UserError if the task is not known (any
        more), or no example of any class would be left.
        """
        if task.id not in self._sizes:
            raise UserError(f"task {task.id} was not learned, or was unlearned before")
        head, examples, gone = self.head_of(task.id), task.train_eval, self._gone.get(task.id, [])
        chosen = set(examples.targets.tolist() if classes is None else classes) - set(gone)
        if classes is not None or any(self.head_of(other) == head for other in self.seen if other != task.id):
            out = torch.isin(examples.targets, examples.targets.new_tensor(sorted(chosen)))
            sums = self.sums[head]
            found = self.sums_of(self.network([task.id]), examples.subset(out.nonzero().flatten()), len(sums["n"]))
            left = {name: value - found[name] for name, value in sums.items()}
            if not left["n"].any():
                raise UserError(f"task {task.id}: no class would be left; unlearn the task as a whole")
            left["sum"][left["n"] == 0] = 0.0  # without the rounding of what was there
            self.sums[head], self._gone[task.id] = left, [*gone, *sorted(chosen)]
            self._solve(head)
        else:
            del self.sums[head], self._heads[head]
        if classes is None:
            del self._sizes[task.id]
            self._gone.pop(task.id, None)
        self.new_members = []  # the predictions of the last network have changed

    @torch.no_grad()
    def sums_of(self, net: MultiHead, examples: Examples, width: int) -> Sums:
        """The sums over examples of `width` classes; in float64, so that the order of summation hardly matters."""
        size = net.weight.shape[1]
        shapes = {"n": (width,), "sum": (width, size), "square": (size, size)}
        sums = {name: net.weight.new_zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        data = Mixture([(0, examples)])
        for inputs, part in evaluation_batches(net, data, self.spec, self.compute):
            with self.compute.autocast():
                h = net.trunk(inputs).double()
            targets = data.targets[part]
            sums["n"] += torch.bincount(targets, minlength=width)
            sums["sum"].index_add_(0, targets, h)
            sums["square"] += h.T @ h
        return sums

    def _solve(self, head: int) -> None:
        """Solve a head anew for its sums; UserError if that has no finite solution."""
        with contextlib.suppress(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            weight, bias = solve(self.sums[head], self.settings.head, self.settings.regularisation)
            if weight.float().isfinite().all() and not bias.isnan().any():
                self._heads[head] = weight.float(), bias.float()
                return
        value = f"settings.regularisation: {self.settings.regularisation:g}"
        raise UserError(f"{value} is too small: no finite head solves the equations")

    def extra_parameters(self) -> int:
        """The sums."""
        return sum(value.numel() for sums in self.sums.values() for value in sums.values())
