"""Isolated: new networks for every task, trained on that task alone. One is the reference for forward transfer."""

from __future__ import annotations

from datasets.task import Episode
from methods.base import Learned
from methods.ensemble import Ensemble
from training.loop import TrainingStats
from training.monitor import Monitor


class Isolated(Ensemble):
    """One network for each task. Network k is initialised and trained like member k of a zoo."""

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        return self._train_alone(episode, 1, monitor)

    def _train_alone(self, episode: Episode, networks: int, monitor: Monitor) -> Learned:
        """Train some networks on each new task alone."""
        stats = TrainingStats()
        for task in episode.new:
            for _ in range(networks):
                stats += self.grow(episode.number, {task.id: task.train}, {task.id: 1.0}, monitor)
        tasks = tuple(task.id for task in episode.new)
        return Learned(tasks, {}, stats, changed=tasks)


class IsolatedEnsemble(Isolated):
    """Isolated with the training budget of the zoo: in episode k, min(b, k) networks for the new task.

    A zoo with b tasks per round trains one network on min(b, k) tasks there. The zoo's gain over this one does not
    come from averaging networks.
    """

    options = frozenset({"tasks_per_round"})
    modes = frozenset({"continual"})

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        return self._train_alone(episode, min(self.config.tasks_per_round, episode.number), monitor)
