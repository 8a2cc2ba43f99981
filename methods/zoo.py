"""Model Zoo: in every episode a new small network is trained on the new task and on past tasks, the worse fitted the
likelier, and joins the ensemble.

Ramesh & Chaudhari, "Model Zoo: A Growing Brain That Learns Continually", ICLR 2022, arXiv 2106.03027.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from datasets.task import Episode, Examples, Task, TrainSource
from evaluation.members import Learned
from methods.base import Context
from methods.config import KEPT
from methods.ensemble import Ensemble
from methods.memory.audit import Budget, limited
from methods.selection import SELECTORS, Fit
from training.monitor import Monitor
from utils.seeding import generator
from utils.trees import Tree


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

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._fits: dict[int, Fit] = {}  # by task that has a member and kept examples

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
        fits = [self._fits.get(task) or Fit(self._loss(task, self.memory.examples(task))) for task in tasks]
        return dict(zip(tasks, SELECTORS[self.config.selection](fits).tolist(), strict=True))

    def state_dict(self) -> dict[str, Tree]:
        return {**super().state_dict(), "fits": {task: tuple(fit) for task, fit in self._fits.items()}}

    def load_state_dict(self, state: Mapping[str, Tree], episodes: Sequence[Episode]) -> None:
        super().load_state_dict(state, episodes)
        self._fits = {task: Fit(*values) for task, values in state["fits"].items()}

    def _loss(self, task: int, kept: Examples) -> float:
        """The loss of the zoo on the kept examples of a task; of the uninformed prediction without a member."""
        if (task, "train") in self.cache:
            return self.spec.objective.evaluate(self.cache.average(task, "train"), kept.targets)["loss"].value
        return self.spec.objective.uninformed_loss(self._head_sizes[task], kept.targets)

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
        newest, evaluate = self.new_members[-1], self.spec.objective.evaluate
        for task_id in tasks:
            self.train_scores.pop(task_id, None)
            if task_id not in self.memory.tasks:
                self._fits.pop(task_id, None)
                continue
            kept = self.memory.examples(task_id)
            before = self._loss(task_id, kept)
            fit = self._fits.get(task_id) or Fit(before)
            if joins := task_id in newest.tasks:
                predictions = newest.predictions[task_id, "train"] = self.predictions_of(newest, task_id, kept)
                weight = self._weights[task_id][newest.number]
                self.cache.add(task_id, "train", predictions, weight)
            self.train_scores[task_id] = evaluate(self.cache.average(task_id, "train"), kept.targets)
            loss = self.train_scores[task_id]["loss"].value
            if joins:
                fit = fit.joined(before, loss, evaluate(predictions, kept.targets)["loss"].value, weight)
            self._fits[task_id] = fit._replace(loss=loss)
