"""An ensemble of members that answers with the mean of their predictions: the base of the zoo and of Isolated."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from datasets.task import Episode, Examples, Task, TrainSource
from evaluation.members import Member, PredictionCache
from methods.base import Context, Method, Storage
from net import count_parameters
from training.loop import Training, TrainingStats
from training.monitor import Monitor
from utils.errors import TrainingError
from utils.seeding import seeded
from utils.trees import Tree


class Ensemble(Method):
    """Networks that never change once trained; a task is answered by the mean of those trained on it."""

    saved_attributes: ClassVar[tuple[str, ...]] = ("_weights", "_members", "_parameters", "_used", "_head_sizes")

    _weights: dict[int, dict[int, float]]  # by task and member trained on it: the member's weight in the mean
    _head_sizes: dict[int, int]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._members = 0
        self.forget()

    def forget(self) -> None:
        """Drop all members and their predictions."""
        self.cache, self._weights, self._parameters = PredictionCache(), {}, 0
        self._used = 0  # parameters that answer a task, summed over tasks

    def grow(
        self, episode: int, sources: Mapping[int, TrainSource], weights: Mapping[int, float], monitor: Monitor
    ) -> TrainingStats:
        """Train one more member on the tasks of `sources`; `weights` are its weights in the mean for each task."""
        member, stats = self._trained(self._members, episode, sources, weights, self.config.seed, monitor)
        for task in member.tasks:
            self._weights.setdefault(task, {})[member.number] = weights[task]
            self.cache.add(task, "test", member.predictions[task, "test"], weights[task])
        self.new_members.append(member)
        self._members += 1
        self._parameters += count_parameters(member.net)
        trunk = count_parameters(member.net.trunk)
        self._used += sum(trunk + member.net.head_parameters(task) for task in sources)
        return stats

    def train_member_on(
        self, tasks: Sequence[int], number: int, episode: int, seed: int, monitor: Monitor
    ) -> tuple[Member, TrainingStats]:
        """A network to replace a member, trained on the kept examples of some tasks, outside the ensemble."""
        sources = {task: self.memory.source(task, len(tasks)) for task in tasks}
        shares = {task: self.memory.share(task) for task in tasks}
        return self._trained(number, episode, sources, shares, seed, monitor)

    def _trained(
        self, number: int, episode: int, sources: Mapping[int, TrainSource], weights: Mapping[int, float], seed: int,
        monitor: Monitor,
    ) -> tuple[Member, TrainingStats]:  # fmt: skip
        tasks, name = tuple(sources), ("member", number)
        with seeded(seed, *name):
            net = self.new_network({task: self._head_sizes[task] for task in tasks})
            shares = tuple(weights[task] for task in tasks)
            member = Member(number, episode, tasks, net, shares, replaces=not self._weights)
            if not number:
                asked = {task: inputs for task, inputs in self.test_inputs.items() if task in tasks}
                self.untrained = {task: self.predictions_of(member, task, inputs) for task, inputs in asked.items()}
            try:
                stats = Training(
                    net, list(sources.items()), self.spec, self.recipe, self.compute, seed, name, monitor=monitor,
                    checkpoints=self.checkpoints,
                ).complete()  # fmt: skip
            except TrainingError as error:
                raise TrainingError(f"{_where(member)}: {error}") from None
        for task in tasks:
            member.predictions[task, "test"] = self.predictions_of(member, task, self.test_inputs[task])
        return member, stats

    def reveal(self, episode: Episode) -> None:
        super().reveal(episode)
        self._head_sizes.update({task.id: task.num_outputs for task in episode.new})

    def answer(self, task: Task) -> Tensor:
        """Weighted mean over the members trained on the task; the uninformed prediction if there are none. [N, C]"""
        if task.id in self._weights:
            return self.cache.average(task.id, "test")
        kept = self.memory.examples(task.id).targets if task.id in self.memory.tasks else None
        guess = self.spec.objective.uninformed(task.test.targets.shape, task.num_outputs, kept)
        return guess.to(self.compute.device)

    def predictions_of(self, member: Member, task_id: int, examples: Examples) -> Tensor:
        """Predictions of a member on examples of one of its tasks, [N, C]; see `ask` for the error raised."""
        return self.ask(member.net, task_id, examples, _where(member))

    def state_dict(self) -> dict[str, Tree]:
        return {**super().state_dict(), **self.cache.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tree], episodes: Sequence[Episode]) -> None:
        super().load_state_dict(state, episodes)
        self.cache.load_state_dict(state)

    def storage(self) -> Storage:
        """All members are stored; one prediction asks those trained on the task."""
        tasks = len(self._head_sizes)
        mean = sum(map(len, self._weights.values())) / tasks
        return Storage(*self.memory.size(), self._parameters, mean, self._used / tasks)


def _where(member: Member) -> str:
    return f"episode {member.episode}, member {member.number} (tasks {', '.join(map(str, member.tasks))})"
