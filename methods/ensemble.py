"""Members and the average of their predictions: what the zoo and Isolated have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from datasets.task import Episode, Examples, Task, TrainSource
from evaluation.averages import PredictionCache
from evaluation.members import Member
from methods.base import Method, Setting, Storage
from net import count_parameters
from training.loop import TrainingStats, train_member
from training.monitor import Monitor
from utils.errors import TrainingError
from utils.seeding import seeded
from utils.trees import Tree


class Ensemble(Method):
    """Networks that are never changed once trained; a task is answered by the mean of those that saw it."""

    lasting: ClassVar[tuple[str, ...]] = ("_weights", "_members", "_parameters", "_used", "_head_sizes")

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.cache = PredictionCache()
        self._weights: dict[int, dict[int, float]] = {}  # by task: the weight of each member that saw it
        self._members = 0
        self._parameters = 0
        self._used = 0  # parameters that answer a task, summed over tasks
        self._head_sizes: dict[int, int] = {}
        self._revealed: Sequence[Task] = ()

    def grow(
        self, episode: int, sources: Mapping[int, TrainSource], weights: Mapping[int, float], monitor: Monitor
    ) -> TrainingStats:
        """Train one more member on the tasks of `sources`, each seen with that weight in later averages."""
        tasks = tuple(sources)
        name = ("member", self._members)
        head_sizes = {task: self._head_sizes[task] for task in tasks}
        with seeded(self.config.seed, *name):
            net = self.new_network(head_sizes)
            if not self._members:
                known = [task for task in self._revealed if task.id in head_sizes]
                self.untrained = {t.id: self.ask(net, t.id, t.test, _place(episode, 0, tasks)) for t in known}
            try:
                stats = train_member(
                    net, list(sources.items()), self.spec, self.recipe, self.compute, self.config.seed, name,
                    monitor, checkpoints=self.checkpoints,
                )  # fmt: skip
            except TrainingError as error:
                raise TrainingError(f"{_place(episode, self._members, tasks)}: {error}") from None
        shares = tuple(weights[task] for task in tasks)
        self.fresh.append(Member(self._members, episode, tasks, net, shares, replaces=not self._weights))
        for task in tasks:
            self._weights.setdefault(task, {})[self._members] = weights[task]
        self._members += 1
        self._parameters += count_parameters(net)
        self._used += count_parameters(net.trunk) * len(tasks) + sum(map(net.head_parameters, tasks))
        return stats

    def reveal(self, tasks: Sequence[Task]) -> None:
        """Note the heads that new tasks need, and let go of the networks of the episode before."""
        for member in self.fresh:
            for task in member.tasks:
                if self.cache.members(task, "test") < len(self._weights[task]):
                    raise RuntimeError(f"task {task} was not predicted after member {member.number} joined")
        self.fresh = []
        self._head_sizes.update({task.id: task.num_outputs for task in tasks})
        self._revealed = tasks

    def restart(self, number: int) -> None:
        """Go on as if the next member were that one."""
        self._members = number

    def forget(self) -> None:
        """Drop all members and what they predicted."""
        self.cache, self._weights, self._parameters, self._used = PredictionCache(), {}, 0, 0

    def answer(self, task: Task) -> Tensor:
        """Weighted mean over the members that saw the task; a uniform guess if none has. [N, C]

        Members of the last episode are evaluated here, once; earlier ones are in the running mean.
        """
        for member in self.fresh:
            self.count(member, task.id, "test", task.test)
        if task.id not in self._weights:
            return self.spec.objective.guess(len(task.test), task.num_outputs).to(self.compute.device)
        return self.cache.average(task.id, "test")

    def count(self, member: Member, task_id: int, split: str, examples: Examples) -> None:
        """Add the member's predictions to the average, once, if it saw the task."""
        if task_id in member.tasks and (task_id, split) not in member.predictions:
            place = _place(member.episode, member.number, member.tasks)
            predictions = self.ask(member.net, task_id, examples, place)
            member.predictions[task_id, split] = predictions
            self.cache.add(task_id, split, predictions, self._weights[task_id][member.number])

    def state_dict(self) -> dict[str, Tree]:
        return {**super().state_dict(), **self.cache.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tree], episodes: Sequence[Episode]) -> None:
        super().load_state_dict(state, episodes)
        self.cache.load_state_dict(state)

    def storage(self) -> Storage:
        """All members are stored; one prediction asks those that saw the task."""
        tasks = max(1, len(self._head_sizes))
        mean = sum(map(len, self._weights.values())) / tasks
        return Storage(*self.memory.size(), self._parameters, mean, self._used / tasks)


def _place(episode: int, member: int, tasks: Sequence[int]) -> str:
    return f"episode {episode}, member {member} (tasks {', '.join(map(str, tasks))})"
