"""Isolated: one fresh network per task, trained on that task alone. The reference for forward transfer."""

from __future__ import annotations

from datasets.task import Episode
from methods.base import Learned
from methods.ensemble import Ensemble
from methods.training import TrainingStats
from utils.monitor import Monitor


class Isolated(Ensemble):
    """Nothing is kept of a task but its network. Network k is initialised and trained like member k of a zoo."""

    def learn(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train one network for each new task."""
        self.reveal(episode.new)
        stats = TrainingStats()
        for task in episode.new:
            stats += self.grow(episode.number, {task.id: task.train}, {task.id: 1.0}, monitor)
        tasks = tuple(task.id for task in episode.new)
        return Learned(tasks, {}, stats, changed=tasks)
