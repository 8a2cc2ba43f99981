"""Evaluation: measures a method after every episode, in rows of metrics.csv. No data read here reaches it.

method.predict on the tasks seen                   -> scores of the test split
each new network on further splits                 -> running means, by task -> scores of these splits
each new network on test examples of all tasks     -> running means, by task -> scores without the task
each new network on held-out examples of its tasks -> saved, to calibrate and combine members
a network with a shared head on the next task      -> scores before the task is learned
moments of the episode, see evaluation/anytime.py  -> rows as they are
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from typing import Any, Protocol

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Scores
from datasets.task import HELD_OUT, TEST, TRAIN, Episode, Examples, StreamSpec, Task, TaskStream
from evaluation.measurements import ANYTIME, TRAINED, ZERO_SHOT, Measurement
from evaluation.members import Learned, Member, PredictionCache
from evaluation.questions import EVALUATIONS, Scheduled
from evaluation.scenarios import Answer, answer_of, score_without_task
from evaluation.subject import Subject
from net.multihead import MultiHead
from training.prediction import outputs_of_heads
from utils.compute import Compute
from utils.seeding import generator
from utils.trees import Tree

AVERAGES = "averages_"  # opens the names of the parts of a run's state that belong to the evaluation
# Number of test examples of all tasks that each head of each network answers once, so that the cost of an episode does
# not grow with the zoo. Those of future tasks are among them, and are not scored before their tasks are revealed.
MIXED_EXAMPLES = 2_000
_MIXED = "mixed"


class Learner(Protocol):
    """A method, as far as it is measured; see methods.base.Method."""

    spec: StreamSpec
    compute: Compute
    train_scores: dict[int, Scores]
    new_members: list[Member]
    untrained: dict[int, Tensor]

    def predict(self, task: Task) -> Tensor: ...

    def ask(self, net: MultiHead, task_id: int, examples: Examples, where: str) -> Tensor: ...

    def first_network(self) -> MultiHead: ...


class Evaluation:
    """Measures a run; a resumed one has `rows`, those of its last complete episode."""

    def __init__(
        self, stream: TaskStream, method: Learner, seed: int, rows: Iterable[Measurement] = (),
        evaluations: Sequence[str] = (), settings: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._evaluations, self._settings = evaluations, settings or {}
        self._stream, self._method = stream, method
        self._scores: dict[int, dict[tuple[str, str], Scores]] = {}  # by task, split and slice
        self._step = self._examples = 0
        self._scenario = TRAINED[method.spec.scenario]
        for row in rows:
            self._step, self._examples = row.step, row.examples
            if row.scenario == self._scenario and row.split != "train":
                self._scores.setdefault(row.task, {})[row.split, row.slice] = row.scores
        self._cache, self._alone = PredictionCache(), False
        routed = method.spec.heads == "task" and method.spec.objective.energy(torch.zeros(1, 2)) is not None
        self._before = method.spec.scenario == "domain"  # whether a network answers tasks before it learns them
        self._mixed = Mixture(mixed_examples(stream.tasks, seed)) if routed else None

    def after(self, episode: Episode, learned: Learned, seen: Sequence[Task]) -> list[Measurement]:
        """One row per task seen, split, slice and scenario; of the train split where examples were kept.

        Rows of moments within the episode come first.
        """
        moments = [
            Measurement(
                episode.number, self._step + moment.step, self._examples + moment.examples, number,
                self._stream.task(number).name, "test", "", ANYTIME, scores,
            )
            for moment in learned.moments for number, scores in moment.scores.items()
        ]  # fmt: skip
        self._step += learned.stats.steps
        self._examples += learned.stats.images
        for member in self._method.new_members:
            self._add(member)
        rows = []
        for task in seen:
            # Unchanged scores are carried over, so that the cost of an episode does not grow.
            if task.id in learned.changed or task.id not in self._scores:
                self._scores[task.id] = dict(self._scored(task))
            measured = dict(self._scores[task.id])
            if task.id in self._method.train_scores:
                measured["train", ""] = self._method.train_scores[task.id]
            rows += [self._row(episode.number, task, *part, self._scenario, s) for part, s in measured.items()]
        return [
            *moments, *rows, *self._without_task(episode.number, seen), *self._next(episode.number, len(seen)),
            *self._answers(episode.number),
        ]  # fmt: skip

    def _next(self, episode: int, seen: int) -> Iterator[Measurement]:
        """How the network answers the next task before it learns it, where tasks share their head."""
        if not self._before or seen == len(self._stream.tasks):
            return
        task, member = self._stream.tasks[seen], self._method.new_members[-1]
        known = member.tasks[-1]
        with member.net.for_task(member.task_weights.get(known, {})):
            scores = self._scores_as(member.net, known, task, f"episode {episode}, task {task.id} before it is learned")
        yield self._row(episode, task, "test", "", ZERO_SHOT, scores)

    def _scores_as(self, net: MultiHead, known: int, task: Task, where: str) -> Scores:
        """Scores on a task of a network that is asked as about a task that it knows."""
        predictions = self._method.ask(net, known, task.test, where)
        return self._method.spec.objective.evaluate(predictions, task.test.targets)

    def _answers(self, episode: int) -> Iterator[Measurement]:
        """What the evaluations find in the new networks, by task."""
        for member in self._method.new_members if self._evaluations else ():
            for task in map(self._stream.task, member.tasks):
                with member.net.for_task(member.task_weights.get(task.id, {})):
                    subject = Subject(member.net.eval(), task, self._method.spec, self._method.compute)
                    for name in (Scheduled.parsed(text).name for text in self._evaluations):
                        found = EVALUATIONS[name].about(subject, self._settings.get(name))
                        yield self._row(episode, task, "test", "", name, found)

    def untrained(self) -> list[Measurement]:
        """Rows of episode 0: the first network before training, on the tasks that it has a head for."""
        objective, tasks = self._method.spec.objective, {task.id: task for task in self._stream.tasks}
        answers = self._method.untrained
        found: dict[int, Scores] = {n: objective.evaluate(p, tasks[n].test.targets) for n, p in answers.items()}
        if self._before:
            net, known = self._method.first_network(), next(iter(answers))
            later = [task for number, task in tasks.items() if number not in found]
            found |= {task.id: self._scores_as(net, known, task, "the untrained network") for task in later}
        return [Measurement(0, 0, 0, number, tasks[number].name, "test", "", self._scenario, scores)
                for number, scores in found.items()]  # fmt: skip

    def state_dict(self) -> dict[str, Tree]:
        """The running means; None for parts that have not changed since the last call.

        There are none while a single network answers: a resumed run asks it again. Files for every task in every
        episode would cost more than that.
        """
        if self._alone:
            return {}
        return {f"{AVERAGES}{part}": content for part, content in self._cache.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tree], members: Callable[[], Iterable[Member]]) -> None:
        """Continue from what `state_dict` returned; without running means, `members` that answer are asked again."""
        mine = {part.removeprefix(AVERAGES): tree for part, tree in state.items() if part.startswith(AVERAGES)}
        self._cache.load_state_dict(mine)
        averaged = self._mixed is not None or any(further_splits(task) for task in self._stream.tasks)
        for member in members() if averaged and not mine else ():
            self._add(member)

    def _add(self, member: Member) -> None:
        """Predict further splits, held-out examples and those of all tasks; all but the held-out ones are averaged."""
        spec, compute = self._method.spec, self._method.compute
        self._alone = member.replaces
        if member.replaces:
            self._cache = PredictionCache()
        for number, weight in zip(member.tasks, member.weights, strict=True):
            for split, examples in self._stream.task(number).splits.items():
                if split in (TRAIN, TEST):
                    continue
                with member.net.for_task(member.task_weights.get(number, {})):
                    where = f"episode {member.episode}, task {number}, split {split}"
                    predictions = self._method.ask(member.net, number, examples, where)
                member.predictions[number, split] = predictions
                if split != HELD_OUT:
                    self._cache.add(number, split, predictions, weight)
        if self._mixed is None:
            return
        outputs = outputs_of_heads(member.net, member.tasks, self._mixed, spec, compute, member.task_weights)
        for number, weight in zip(member.tasks, member.weights, strict=True):
            answer = answer_of(outputs[number], spec.objective)
            self._cache.add(number, _MIXED, torch.column_stack(astuple(answer)), weight)

    def _scored(self, task: Task) -> Iterator[tuple[tuple[str, str], Scores]]:
        """(split, slice) and scores of the test split, of further splits and of their slices."""
        objective = self._method.spec.objective
        for split, examples in {"test": task.test, **further_splits(task)}.items():
            if split == "test":
                predictions = self._method.predict(task)
            elif (task.id, split) in self._cache:
                predictions = self._cache.average(task.id, split)
            else:
                continue  # no member has learned the task yet
            yield (split, ""), objective.evaluate(predictions, examples.targets)
            for name, positions in examples.slices.items():
                part = positions.to(predictions.device)
                yield (split, name), objective.evaluate(predictions[part], examples.targets[part])

    def _row(self, episode: int, task: Task, split: str, part: str, scenario: str, scores: Scores) -> Measurement:
        return Measurement(episode, self._step, self._examples, task.id, task.name, split, part, scenario, scores)

    def _without_task(self, episode: int, seen: Sequence[Task]) -> list[Measurement]:
        if self._mixed is None:
            return []
        answers = {task.id: self._answer(task) for task in seen}
        same = len({task.output_names for task in self._stream.tasks}) == 1
        scores = score_without_task(answers, self._mixed.task_ids, self._mixed.targets, same_classes=same)
        return [self._row(episode, task, "test", "", scenario, of_task[task.id])
                for scenario, of_task in scores.items() for task in seen]  # fmt: skip

    def _answer(self, task: Task) -> Answer:
        assert self._mixed is not None
        if (task.id, _MIXED) not in self._cache:
            guess = self._method.spec.objective.uninformed((len(self._mixed),), task.num_outputs).to(self._mixed.device)
            return Answer(guess, torch.full_like(guess[:, 0], -torch.inf))  # no member has learned the task
        mean = self._cache.average(task.id, _MIXED)
        return Answer(mean[:, :-1], mean[:, -1])


def further_splits(task: Task) -> dict[str, Examples]:
    """Name -> examples of the evaluation splits other than train, test and held-out."""
    return {name: part for name, part in task.splits.items() if name not in (TRAIN, TEST, HELD_OUT)}


def mixed_examples(tasks: Sequence[Task], seed: int) -> list[tuple[int, Examples]]:
    """The same number of test examples of each task, at least one, and at most MIXED_EXAMPLES together."""
    most = max(1, MIXED_EXAMPLES // len(tasks))
    parts = []
    for task in tasks:
        order = torch.randperm(len(task.test), generator=generator(seed, "mixed", task.id))
        parts.append((task.id, task.test.subset(order[:most].sort().values)))
    return parts
