"""The references of every comparison: networks for one task alone, networks of all tasks at once, and finetuning.

Isolated networks are the reference for forward transfer. Networks that see all tasks at once are the usual upper
bounds, finetuning is the usual lower one.
"""

from collections.abc import Mapping

from datasets.scenarios import SCENARIOS
from datasets.task import Episode, TrainSource
from evaluation.members import Learned
from methods.ensemble import Ensemble
from methods.memory.audit import Budget
from methods.single import SingleNet
from training.loop import TrainingStats
from training.monitor import Monitor


class Isolated(Ensemble):
    """One network for each task. Network k is initialised and trained like member k of a zoo."""

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        stats = TrainingStats()
        for task in episode.new:
            for _ in range(self.networks(episode)):
                stats += self.grow(episode.number, {task.id: task.train}, {task.id: 1.0}, monitor)
        tasks = tuple(task.id for task in episode.new)
        return Learned(tasks, {}, stats, changed=tasks, moments=self.moments)

    def networks(self, episode: Episode) -> int:
        """How many networks are trained on each new task."""
        return 1


class IsolatedEnsemble(Isolated):
    """Isolated with the training budget of the zoo: in episode k, min(b, k) networks for the new task.

    A zoo with b tasks per round trains one network on min(b, k) tasks there. The zoo's gain over this one does not
    come from averaging networks.
    """

    options = Isolated.options | {"tasks_per_round"}
    modes = frozenset({"continual"})

    def networks(self, episode: Episode) -> int:
        return min(self.config.tasks_per_round, episode.number)


class Joint(Ensemble):
    """One network, trained once on all tasks together."""

    modes = frozenset({"multi-task"})
    scenarios = frozenset(SCENARIOS)

    def train(self, episode: Episode, monitor: Monitor) -> Learned:
        sources = self.sources(episode)
        stats = self.grow(episode.number, sources, dict.fromkeys(sources, 1.0), monitor)
        return Learned(tuple(sources), {}, stats, changed=tuple(sources), moments=self.moments)

    def sources(self, episode: Episode) -> Mapping[int, TrainSource]:
        """What the network is trained on, by task."""
        return {task.id: task.train for task in episode.new}


class Cumulative(Joint):
    """In every episode a new network is trained on all tasks so far and replaces the last one. Keeps all examples."""

    modes = frozenset({"continual"})

    def budget(self) -> Budget:
        return Budget(fraction=1.0)

    def sources(self, episode: Episode) -> Mapping[int, TrainSource]:
        for task in episode.new:
            self.memory.add(task)
        self.forget()
        return {task: self.memory.source(task, len(self.memory.tasks)) for task in self.memory.tasks}


class Finetune(SingleNet):
    """Training continues on the new task without regard to earlier ones."""
