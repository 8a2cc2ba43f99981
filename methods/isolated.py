"""Isolated: fresh networks for every task, trained on that task alone. One is the reference for forward transfer."""

from __future__ import annotations

from datasets.task import Episode
from methods.base import Learned
from methods.ensemble import Ensemble
from training.loop import TrainingStats
from training.monitor import Monitor


class Isolated(Ensemble):
    """Nothing is kept of a task but its network. Network k is initialised and trained like member k of a zoo."""

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train one network for each new task."""
        stats = TrainingStats()
        for task in episode.new:
            stats += self.grow(episode.number, {task.id: task.train}, {task.id: 1.0}, monitor)
        tasks = tuple(task.id for task in episode.new)
        return Learned(tasks, {}, stats, changed=tasks)


class IsolatedEnsemble(Ensemble):
    """Isolated with the training budget of the zoo: in episode k, min(b, k) networks for the new task.

    A zoo trains one network on min(b, k) tasks there, b the tasks per round. What it gains over this is
    not gained by averaging networks.
    """

    options = frozenset({"tasks_per_round"})
    modes = frozenset({"continual"})

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train several networks for the new task."""
        (task,) = episode.new
        stats = TrainingStats()
        for _ in range(min(self.config.tasks_per_round, episode.number)):
            stats += self.grow(episode.number, {task.id: task.train}, {task.id: 1.0}, monitor)
        return Learned((task.id,), {}, stats, changed=(task.id,))
