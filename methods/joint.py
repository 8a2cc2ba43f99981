"""Networks that see all tasks at once: once at the start, or anew in every episode. The usual upper bounds."""

from __future__ import annotations

from datasets.task import Episode
from methods.base import Learned
from methods.ensemble import Ensemble
from methods.memory.audit import Budget
from training.monitor import Monitor


class Joint(Ensemble):
    """One network, trained once on all tasks together."""

    modes = frozenset({"multi-task"})

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train on everything."""
        sources = {task.id: task.train for task in episode.new}
        stats = self.grow(episode.number, sources, dict.fromkeys(sources, 1.0), monitor)
        return Learned(tuple(sources), {}, stats, changed=tuple(sources))


class Cumulative(Ensemble):
    """In every episode a fresh network is trained on all tasks seen so far, and answers alone. Keeps all examples."""

    modes = frozenset({"continual"})

    def budget(self) -> Budget:
        return Budget(fraction=1.0)

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train on the new task and all before it; the network of the episode before is let go."""
        for task in episode.new:
            self.memory.add(task)
        self.forget()
        tasks = self.memory.tasks
        sources = {task: self.memory.source(task, len(tasks)) for task in tasks}
        stats = self.grow(episode.number, sources, dict.fromkeys(sources, 1.0), monitor)
        return Learned(tasks, {}, stats, changed=tasks)
