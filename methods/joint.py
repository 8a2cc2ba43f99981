"""Networks that see all tasks at once: once at the start, or anew in every episode. The usual upper bounds."""

from __future__ import annotations

from collections.abc import Mapping

from datasets.task import Episode, TrainSource
from methods.base import Learned
from methods.ensemble import Ensemble
from methods.memory.audit import Budget
from training.monitor import Monitor


class Joint(Ensemble):
    """One network, trained once on all tasks together."""

    modes = frozenset({"multi-task"})

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        return self._train_together({task.id: task.train for task in episode.new}, episode.number, monitor)

    def _train_together(self, sources: Mapping[int, TrainSource], episode: int, monitor: Monitor) -> Learned:
        stats = self.grow(episode, sources, dict.fromkeys(sources, 1.0), monitor)
        return Learned(tuple(sources), {}, stats, changed=tuple(sources))


class Cumulative(Joint):
    """In every episode a new network is trained on all tasks so far and replaces the last one. Keeps all examples."""

    modes = frozenset({"continual"})

    def budget(self) -> Budget:
        return Budget(fraction=1.0)

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        for task in episode.new:
            self.memory.add(task)
        self.forget()
        tasks = self.memory.tasks
        sources = {task: self.memory.source(task, len(tasks)) for task in tasks}
        return self._train_together(sources, episode.number, monitor)
