"""Measuring a method after every episode: rows of metrics.csv. What is read of the data here reaches no method.

method.predict on the tasks seen        -> task-incremental scores
each new network on examples of any task -> running means, by task -> scores without the task
each new network on what was held out    -> saved with its predictions, to calibrate and combine members on
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import astuple
from typing import Protocol

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Score
from datasets.task import Episode, Examples, StreamSpec, Task, TaskStream
from evaluation.averages import PredictionCache
from evaluation.measurements import TASK_INCREMENTAL, Row
from evaluation.members import Member
from evaluation.scenarios import Answer, answer_of, score_without_task, untold
from training.prediction import outputs_of_heads, predict_examples
from utils.compute import Compute
from utils.seeding import generator
from utils.trees import Tree

HELD_OUT = "held_out"
UNTOLD = "untold_"  # opens the names of its parts of a run's state
# Test examples of all tasks together on which every head of every network is asked, once: so what an episode costs
# does not grow with the zoo. Future tasks' are among them, and are not looked at before their tasks are revealed.
MIXED_EXAMPLES = 2_000


class Learner(Protocol):
    """What is measured: a method of methods/, seen from outside.

    Attributes:
        fits: by task id, how many training examples are kept and how well they are fitted.
        fresh: the networks of the last episode.
        untrained: by task id, what the first network said on the test inputs before it was trained, [N, C].
    """

    spec: StreamSpec
    compute: Compute
    fits: dict[int, tuple[int, Score]]
    fresh: list[Member]
    untrained: dict[int, Tensor]

    def predict(self, task: Task) -> Tensor:
        """Predictions on the task's test inputs, [N, C]."""


class Evaluation:
    """All that is measured of a run.

    Args:
        seed: of the run.
        rows: of earlier processes.
    """

    def __init__(self, stream: TaskStream, method: Learner, seed: int, rows: Iterable[Row] = ()) -> None:
        self._stream, self._method = stream, method
        self._scores = {row.task: Score(row.loss, row.accuracy, row.ece) for row in rows if row.is_test}
        self._cache = PredictionCache()
        self._classifies = method.spec.objective.energy(torch.zeros(1, 2)) is not None
        parts = mixed_examples(stream.tasks, seed) if self._classifies else []
        self._mixed = Mixture(parts) if parts else None

    def after(self, episode: Episode, changed: Container[int], seen: Sequence[Task]) -> list[Row]:
        """One row per task seen, split and scenario: test, and train where examples were kept.

        Args:
            changed: tasks whose predictions may differ from those of the episode before, by id.
        """
        method, rows = self._method, []
        for task in seen:
            # What the episode has not changed is carried over, so that its cost does not grow.
            if task.id in changed or task.id not in self._scores:
                score = method.spec.objective.evaluate(method.predict(task), task.test.targets)
                self._scores[task.id] = score
            measured = {"test": (len(task.test), self._scores[task.id])}
            if task.id in method.fits:
                measured["train"] = method.fits[task.id]
            for split, (n, score) in measured.items():
                rows.append(Row(episode.number, task.id, task.name, split, TASK_INCREMENTAL, n, *astuple(score)))
        for member in method.fresh:
            self._ask_held_out(member)
            self._ask_without_task(member)
        return rows + self._without_task(episode.number, seen)

    def untrained(self) -> list[Row]:
        """Episode 0: the first network before it was trained, on the tasks that it has heads for."""
        rows = []
        for number, predictions in self._method.untrained.items():
            task = self._stream.task(number)
            score = self._method.spec.objective.evaluate(predictions, task.test.targets)
            rows.append(Row(0, number, task.name, "test", TASK_INCREMENTAL, len(task.test), *astuple(score)))
        return rows

    def state_dict(self) -> dict[str, Tree]:
        """Of the running means; None for parts that are as they were when this was last called."""
        return {f"{UNTOLD}{part}": content for part, content in self._cache.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tree]) -> None:
        """Restore what `state_dict` returned; other parts are left alone."""
        mine = {part.removeprefix(UNTOLD): tree for part, tree in state.items() if part.startswith(UNTOLD)}
        self._cache.load_state_dict(mine)

    def _ask_held_out(self, member: Member) -> None:
        """What a new network says about what was held out of its tasks."""
        spec, compute = self._method.spec, self._method.compute
        for number in member.tasks:
            held = self._stream.task(number).held_out
            if held is not None:
                with member.net.for_task(member.own.get(number, {})):
                    predictions = predict_examples(member.net, number, held, spec, compute)
                member.predictions[number, HELD_OUT] = predictions

    def _ask_without_task(self, member: Member) -> None:
        """What a network says about examples of any task."""
        if self._mixed is None:
            return
        spec, compute = self._method.spec, self._method.compute
        if member.replaces:
            self._cache = PredictionCache()
        outputs = outputs_of_heads(member.net, member.tasks, self._mixed, spec, compute, member.own)
        for number, weight in zip(member.tasks, member.weights, strict=True):
            answer = answer_of(outputs[number], spec.objective)
            self._cache.add(number, "mixed", torch.column_stack(astuple(answer)), weight)

    def _without_task(self, episode: int, seen: Sequence[Task]) -> list[Row]:
        if self._mixed is None:
            return []
        answers = {task.id: self._answer(task) for task in seen}
        same = len({task.output_names for task in self._stream.tasks}) == 1
        scores = score_without_task(answers, self._mixed.task_ids, self._mixed.targets, same_classes=same)
        counts = self._mixed.task_ids.bincount().tolist()
        return [
            Row(episode, task.id, task.name, "test", scenario, counts[task.id], *astuple(of_task[task.id]))
            for scenario, of_task in scores.items() for task in seen
        ]  # fmt: skip

    def _answer(self, task: Task) -> Answer:
        assert self._mixed is not None
        if not self._cache.members(task.id, "mixed"):
            guess = self._method.spec.objective.guess(len(self._mixed), task.num_outputs)
            return untold(len(self._mixed), guess.to(self._mixed.device))
        mean = self._cache.average(task.id, "mixed")
        return Answer(mean[:, :-1], mean[:, -1])


def mixed_examples(tasks: Sequence[Task], seed: int) -> list[tuple[int, Examples]]:
    """As many test examples of each task, at most MIXED_EXAMPLES of all; at least one of each."""
    most = max(1, MIXED_EXAMPLES // len(tasks))
    parts = []
    for task in tasks:
        order = torch.randperm(len(task.test), generator=generator(seed, "mixed", task.id))
        parts.append((task.id, task.test.subset(order[:most].sort().values)))
    return parts
