"""Model Zoo: in every episode a new small network is trained on the new task and on the past tasks that
the ensemble fits worst, and joins the ensemble.

Ramesh & Chaudhari, "Model Zoo: A Growing Brain That Learns Continually", ICLR 2022, arXiv 2106.03027.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from datasets.task import Episode, Task, TrainSource
from methods.base import Learned
from methods.ensemble import Ensemble
from methods.memory.audit import Budget
from training.monitor import Monitor
from utils.seeding import generator


def boosting_weights(losses: Tensor) -> Tensor:
    """Probability of drawing each task: larger where the zoo fits it worse.

        w_i = clip(exp((l_i - m) / m), 1e-4, 1e3) / sum,   m = mean of the losses

    Args:
        losses: [T] mean cross-entropy, in nats, of the zoo on the kept training examples of each task.

    Returns:
        [T] float64, sums to one. Equal losses, also all zero, give equal weights.

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

    options = frozenset(
        {"rounds", "warm_start", "tasks_per_round", "replay_frac", "memory", "memory_per_class", "selection"}
    )

    def budget(self) -> Budget:
        if self.config.memory is not None or self.config.memory_per_class is not None:
            return Budget(total=self.config.memory, per_class=self.config.memory_per_class)
        # What is known from the start is not a past task: the multi-task mode keeps everything.
        return Budget(fraction=self.config.replay_frac if self.config.continual else 1.0)

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Draw past tasks, train a member on them and the new one, update how well each task is fitted."""
        # In the multi-task mode all tasks are there to be drawn and none has to be taken.
        new = episode.new if self.config.continual else ()
        if not self.config.continual:
            self._keep(episode.new)
        weights = self.sampling_weights()
        drawn = self._draw(episode, len(new), weights)
        sources: dict[int, TrainSource] = {t: self.memory.source(t, len(drawn) + len(new)) for t in drawn}
        sources.update({task.id: task.train for task in new})
        # The member that saw all of a task counts for as much more as it saw more.
        seen = {t: self.memory.share(t) for t in drawn} | {task.id: 1.0 for task in new}
        stats = self.grow(episode.number, sources, seen, monitor)
        self._measure_fit({*self._keep(new), *self.new_members[-1].tasks})
        return Learned(tuple(sources), weights, stats, changed=tuple(sources))

    def sampling_weights(self) -> dict[int, float]:
        """Probability of each kept task, by task id; a task that no member saw counts as if predicted uninformed."""
        tasks = self.memory.tasks
        if not tasks:
            return {}
        if self.config.selection == "uniform":
            return dict.fromkeys(tasks, 1 / len(tasks))
        losses = [
            self.train_scores[t]["loss"].value if t in self.train_scores else self._uninformed_loss(t) for t in tasks
        ]
        return dict(zip(tasks, boosting_weights(torch.tensor(losses, dtype=torch.float64)).tolist(), strict=True))

    def _uninformed_loss(self, task: int) -> float:
        kept = self.memory.examples(task).targets
        return self.spec.objective.uninformed_loss(self._head_sizes[task], kept)

    def _keep(self, tasks: Sequence[Task]) -> set[int]:
        """Keep a share of new tasks. Returns of which others some examples had to make room."""
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
        """Loss and accuracy of the zoo on what is kept of some tasks, the newest member included."""
        for task_id in tasks:
            self.train_scores.pop(task_id, None)
            if task_id in self.memory.tasks:
                kept = self.memory.examples(task_id)
                self.count(self.new_members[-1], task_id, "train", kept)
                self.train_scores[task_id] = self.spec.objective.evaluate(
                    self.cache.average(task_id, "train"), kept.targets
                )
