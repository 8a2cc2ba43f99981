"""Measuring one network on one task while it is trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from datasets.objectives import Scores
from datasets.task import DEV, HELD_OUT, StreamSpec, Task
from evaluation.measurements import ANYTIME, TRAINED, Measurement
from evaluation.questions import EVALUATIONS, Scheduled
from evaluation.subject import Subject
from net.multihead import MultiHead
from training.loop import Clock
from training.prediction import outputs_on
from utils.compute import Compute
from utils.errors import TrainingError


@dataclass(frozen=True)
class Watching:
    """What is measured of a network on a task, at any time of its training.

    On the way it is evaluated on development examples: the split "dev", or "held_out" of a data set that has examples
    set aside; without either there is none to choose by, and the test examples are watched.
    """

    task: Task
    spec: StreamSpec
    compute: Compute
    evaluations: Sequence[str] = ()  # see evaluation/questions.py
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the evaluations, by name

    @property
    def split(self) -> str:
        """The split that is evaluated on the way."""
        return next((name for name in (DEV, HELD_OUT) if name in self.task.splits), "test")

    def rows(self, net: MultiHead, clock: Clock) -> list[Measurement]:
        """Scores on the split that is watched and its slices.

        TrainingError if an answer of the network is not finite.
        """
        return list(self._scored(net, clock, self.split, ANYTIME))

    def answers(
        self, net: MultiHead, clock: Clock, place: int, last: bool, earlier: Mapping[int, Callable[[], MultiHead]]
    ) -> list[Measurement]:  # fmt: skip
        """What the evaluations find that are due at an evaluation of the network, numbered from 0.

        `earlier`: the network as it was after fewer steps, see Subject.
        """
        task = self.task.with_splits(test=self.task.splits[self.split])
        subject = Subject(net.eval(), task, self.spec, self.compute, clock.steps, earlier)
        due = [asked.name for asked in map(Scheduled.parsed, self.evaluations) if asked.due(place, last)]
        return [
            self._row(clock, self.split, "", name, EVALUATIONS[name].about(subject, self.settings.get(name)))
            for name in due
        ]

    def test(self, net: MultiHead, clock: Clock, *, final: bool) -> list[Measurement]:
        """Scores on the test split and its slices; those of the final network are an entry of R."""
        return list(self._scored(net, clock, "test", TRAINED[self.spec.scenario] if final else ANYTIME))

    def _scored(self, net: MultiHead, clock: Clock, split: str, scenario: str) -> Iterator[Measurement]:
        examples, objective = self.task.splits[split], self.spec.objective
        outputs = outputs_on(net, self.task.id, examples, self.spec, self.compute)
        predictions = (self._finite(objective.predict(part), split, clock) for part in outputs)
        for name, scores in objective.evaluate_parts(predictions, examples.targets, examples.slices).items():
            yield self._row(clock, split, name, scenario, scores)

    def _finite(self, predictions: Tensor, split: str, clock: Clock) -> Tensor:
        if not predictions.isfinite().all():
            what = f"an answer to the {split} examples is not finite after {clock.steps:,} steps"
            raise TrainingError(f"{what}; try a smaller lr")
        return predictions

    def _row(self, clock: Clock, split: str, part: str, scenario: str, scores: Scores) -> Measurement:
        task = self.task
        return Measurement(1, clock.steps, clock.examples, task.id, task.name, split, part, scenario, scores)
