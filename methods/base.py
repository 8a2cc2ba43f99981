"""What a continual-learning method is: it learns from episodes and predicts tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from datasets.objectives import Score
from datasets.task import Episode, StreamSpec, Task
from methods.steps import Compute
from methods.training import TrainingStats
from net.multihead import MultiHead
from utils.config import Range, RunConfig
from utils.monitor import Monitor

Accepted = Mapping[str, Range | Sequence[str]]  # values of settings: numbers, or one of some words


@dataclass(frozen=True)
class Learned:
    """What one episode did."""

    tasks: tuple[int, ...]  # trained on, by task id
    weights: Mapping[int, float]  # sampling weight of each task that could be drawn; empty if nothing is drawn
    stats: TrainingStats
    changed: tuple[int, ...]  # tasks whose predictions may differ from before


@dataclass
class Member:
    """A trained network, its tasks, and its predictions until they are written to the run directory."""

    number: int  # from 0, the place in the zoo
    episode: int
    tasks: tuple[int, ...]
    net: MultiHead
    predictions: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # (task id, split) -> [N, C]


@dataclass(frozen=True)
class Storage:
    """What a method holds at the end of an episode."""

    examples: int  # training examples kept for later episodes
    bytes: int  # of these examples
    parameters: int
    members_per_prediction: float  # networks evaluated for one test example, mean over tasks
    parameters_per_prediction: float  # of these networks, and of one head in each


@dataclass(frozen=True)
class Setting:
    """What every method is built from."""

    config: RunConfig
    spec: StreamSpec
    compute: Compute


class Method(ABC):
    """A continual-learning algorithm. It sees a stream only through the episodes it is given.

    Attributes:
        options: the fields of RunConfig that this method reads and others do not.
        settings: what config/method/<name>.yaml holds, and which values it accepts.
        modes: continual, multi-task or both.
        fresh: networks of the last episode, to be saved.
        fits: by task id, how many training examples are kept and how well the method fits them.
    """

    options: ClassVar[frozenset[str]] = frozenset()
    settings: ClassVar[Accepted] = {}
    modes: ClassVar[frozenset[str]] = frozenset({"continual", "multi-task"})

    def __init__(self, setting: Setting) -> None:
        self.config, self.spec, self.compute = setting.config, setting.spec, setting.compute
        self.fresh: list[Member] = []
        self.fits: dict[int, tuple[int, Score]] = {}

    @abstractmethod
    def learn(self, episode: Episode, monitor: Monitor) -> Learned:
        """Train on what the episode reveals and on what was kept of earlier ones."""

    @abstractmethod
    def predict(self, task: Task) -> Tensor:
        """Probabilities on the task's test inputs, [N, C]. Test targets are never looked at."""

    @abstractmethod
    def storage(self) -> Storage:
        """What is held now."""
