"""Model Zoo: in every episode a new small network is trained on the new task and on past tasks, the worse fitted the
likelier, and joins the ensemble.

Ramesh & Chaudhari, "Model Zoo: A Growing Brain That Learns Continually", ICLR 2022, arXiv 2106.03027.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from datasets.task import Episode, Task, TrainSource
from evaluation.members import Learned
from methods.config import KEPT
from methods.ensemble import Ensemble
from methods.memory.audit import Budget, limited
from training.monitor import Monitor
from utils.seeding import generator


def boosting_weights(losses: Tensor) -> Tensor:
    """Probability of drawing each task: larger where the zoo fits it worse.

        w_i = clip(exp((l_i - m) / m), 1e-4, 1e3) / sum,   m = mean of the losses

    `losses`: [T], of the zoo on the kept training examples of each task; equal ones, also all zero, give equal weights.

    Source: Ramesh & Chaudhari (2022); centring and clipping as in the authors' code.
    """
    losses = losses.double()
    mean = losses.mean().clamp_min(torch.finfo(torch.float64).tiny)
    weights = ((losses - mean) / mean).exp().clamp(1e-4, 1e3)
    return weights / weights.sum()


def draw_tasks(weights: Mapping[int, float], count: int, rng: torch.Generator) -> list[int]:
    """`count` different tasks, one after the other, each with probability proportional to its weight."""
    if count == 0:
        return []
    tasks = list(weights)
    probabilities = torch.tensor([weights[task] for task in tasks], dtype=torch.float64)
    return [tasks[i] for i in torch.multinomial(probabilities, count, generator=rng).tolist()]


class ModelZoo(Ensemble):
    """The growing ensemble."""

    options = Ensemble.options | frozenset({
        "rounds", "warm_start", "tasks_per_round", "replay_frac", "selection", *KEPT,
    })  # fmt: skip

    def budget(self) -> Budget:
        # In the multi-task mode no task is past: everything is kept.
        return limited(self.config) or Budget(fraction=self.config.replay_frac if self.config.continual else 1.0)

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Draw past tasks, train a member on them and the new one, and measure the zoo's fit again."""
        new = episode.new
        if not self.config.continual:  # no task is new: all can be drawn
            self._keep(new)
            new = ()
        weights = self.sampling_weights()
        drawn = self._draw(episode, len(new), weights)
        sources: dict[int, TrainSource] = {t: self.memory.source(t, len(drawn) + len(new)) for t in drawn}
        sources.update({task.id: task.train for task in new})
        # A member's weight in the mean for a task is the share of the task's examples that it was trained on.
        seen = {t: self.memory.share(t) for t in drawn} | {task.id: 1.0 for task in new}
        stats = self.grow(episode.number, sources, seen, monitor)
        self._measure_fit({*self._keep(new), *self.new_members[-1].tasks})
        return Learned(tuple(sources), weights, stats, changed=tuple(sources), moments=self.moments)

    def sampling_weights(self) -> dict[int, float]:
        """Probability of each kept task, by task id; one without a member is scored as predicted uninformed."""
        tasks = self.memory.tasks
        if not tasks:
            return {}
        if self.config.selection == "uniform":
            return dict.fromkeys(tasks, 1 / len(tasks))
        losses = torch.tensor([self._train_loss(task) for task in tasks], dtype=torch.float64)
        return dict(zip(tasks, boosting_weights(losses).tolist(), strict=True))

    def _train_loss(self, task: int) -> float:
        if task in self.train_scores:
            return self.train_scores[task]["loss"].value
        return self.spec.objective.uninformed_loss(self._head_sizes[task], self.memory.examples(task).targets)

    def _keep(self, tasks: Sequence[Task]) -> set[int]:
        """Keep examples of new tasks; returns the tasks that lost examples to them."""
        shrunk: set[int] = set()
        for task in tasks:
            for other, stay in self.memory.add(task).items():
                self.cache.restrict(other, "train", stay)
                shrunk.add(other)
        return shrunk

    def _draw(self, episode: Episode, new: int, weights: Mapping[int, float]) -> list[int]:
        if self.config.warm_start and episode.number == 1:
            return list(weights)
        count = min(self.config.tasks_per_round - new, len(weights))
        return draw_tasks(weights, count, generator(self.config.seed, "select", episode.number))

    def _measure_fit(self, tasks: Iterable[int]) -> None:
        """Score the zoo, the newest member included, on the kept examples of some tasks."""
        newest = self.new_members[-1]
        for task_id in tasks:
            self.train_scores.pop(task_id, None)
            if task_id not in self.memory.tasks:
                continue
            kept = self.memory.examples(task_id)
            if task_id in newest.tasks:
                predictions = newest.predictions[task_id, "train"] = self.predictions_of(newest, task_id, kept)
                self.cache.add(task_id, "train", predictions, self._weights[task_id][newest.number])
            average = self.cache.average(task_id, "train")
            self.train_scores[task_id] = self.spec.objective.evaluate(average, kept.targets)
