"""An ensemble of members that answers with the mean of their predictions: the base of the zoo and of Isolated."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from datasets.objectives import Scores
from datasets.task import Episode, Examples, Task, TrainSource
from evaluation.anytime import Moment
from evaluation.members import Member, PredictionCache
from methods.base import Context, Method, Storage, plain_scores, scores_from
from net import count_parameters
from training.loop import Training, TrainingStats
from training.monitor import Monitor, Watch
from utils.errors import TrainingError
from utils.seeding import seeded
from utils.trees import Tree


class Ensemble(Method):
    """Networks that never change once trained; a task is answered by the mean of those trained on it."""

    options: ClassVar[frozenset[str]] = frozenset({"evaluate_every"})
    saved_attributes: ClassVar[tuple[str, ...]] = ("_weights", "_members", "_parameters", "_used", "_head_sizes")

    _weights: dict[int, dict[int, float]]  # by task and member trained on it: the member's weight in the mean
    _head_sizes: dict[int, int]

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._members = 0
        self.moments: list[Moment] = []  # of this episode, with --evaluate_every
        self._spent = TrainingStats()  # in this episode
        self.forget()

    def forget(self) -> None:
        """Drop all members and their predictions."""
        self.cache, self._weights, self._parameters = PredictionCache(), {}, 0
        self._used = 0  # parameters that answer a task, summed over tasks

    def grow(
        self, episode: int, sources: Mapping[int, TrainSource], weights: Mapping[int, float], monitor: Monitor
    ) -> TrainingStats:
        """Train one more member on the tasks of `sources`; `weights` are its weights in the mean for each task."""
        watched: list[tuple[int, int, Tree]] = []
        member, stats = self._trained(self._members, episode, sources, weights, self.config.seed, monitor, watched)
        for task in member.tasks:
            self._weights.setdefault(task, {})[member.number] = weights[task]
            self.cache.add(task, "test", member.predictions[task, "test"], weights[task])
        self.new_members.append(member)
        self._members += 1
        self._parameters += count_parameters(member.net)
        trunk = count_parameters(member.net.trunk)
        self._used += sum(trunk + member.net.head_parameters(task) for task in sources)
        self._note(watched, stats)
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
        monitor: Monitor, watched: list[tuple[int, int, Tree]] | None = None,
    ) -> tuple[Member, TrainingStats]:  # fmt: skip
        """A network that was trained; `watched` receives what it was asked on the way, if it is to join."""
        tasks, name = tuple(sources), ("member", number)
        with seeded(seed, *name):
            net = self.new_network({task: self._head_sizes[task] for task in tasks})
            shares = tuple(weights[task] for task in tasks)
            member = Member(number, episode, tasks, net, shares, replaces=not self._weights)
            if not number:
                asked = {task: inputs for task, inputs in self.test_inputs.items() if task in tasks}
                self.untrained = {task: self.predictions_of(member, task, inputs) for task, inputs in asked.items()}
            try:
                training = Training(
                    net, list(sources.items()), self.spec, self.recipe, self.compute, seed, name, monitor=monitor,
                    checkpoints=self.checkpoints, watch=None if watched is None else self._watch(member),
                )  # fmt: skip
                stats = training.complete()
            except TrainingError as error:
                raise TrainingError(f"{_where(member)}: {error}") from None
        if watched is not None:
            watched += training.watched
        for task in tasks:
            member.predictions[task, "test"] = self.predictions_of(member, task, self.test_inputs[task])
        return member, stats

    def _watch(self, member: Member) -> Watch | None:
        """Asks the ensemble with a member in training about every task seen; None without --evaluate_every."""
        if (anytime := self.anytime) is None:
            return None
        others = {task: self._scores_now(task) for task in self.test_inputs if task not in member.tasks}
        inputs = {task: self.test_inputs[task].subset(anytime.chosen(task)) for task in member.tasks}

        def ask() -> Tree:
            found = dict(others)
            for (task, examples), weight in zip(inputs.items(), member.weights, strict=True):
                predictions = self.predictions_of(member, task, examples)
                average = self.cache.joined(task, anytime.chosen(task), predictions, weight)
                found[task] = anytime.scores(task, average)
            return plain_scores(dict(sorted(found.items())))

        return Watch(anytime.every, ask)

    def _note(self, watched: Iterable[tuple[int, int, Tree]], stats: TrainingStats) -> None:
        """Note what was answered while a member was trained and when it has joined, with --evaluate_every."""
        before = self._spent
        self._spent += stats
        if self.anytime is None:
            return
        self.moments += [
            Moment(before.steps + steps, before.images + examples, scores_from(found))
            for steps, examples, found in watched
        ]
        end = {task: self._scores_now(task) for task in sorted(self.test_inputs)}
        self.moments.append(Moment(self._spent.steps, self._spent.images, end))

    def _scores_now(self, task: int) -> Scores:
        assert self.anytime is not None
        return self.anytime.scores(task, self._average(task)[self.anytime.chosen(task).to(self.compute.device)])

    def reveal(self, episode: Episode) -> None:
        super().reveal(episode)
        self.moments, self._spent = [], TrainingStats()
        self._head_sizes.update({task.id: task.num_outputs for task in episode.new})

    def answer(self, task: Task) -> Tensor:
        """Weighted mean over the members trained on the task; the uninformed prediction if there are none. [N, C]"""
        return self._average(task.id)

    def _average(self, task: int) -> Tensor:
        if task in self._weights:
            return self.cache.average(task, "test")
        kept = self.memory.examples(task).targets if task in self.memory.tasks else None
        shape = self.test_inputs[task].targets.shape
        return self.spec.objective.uninformed(shape, self._head_sizes[task], kept).to(self.compute.device)

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
