"""Watching a run: what is told, and the console. A run does the same with any monitor, or with none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tqdm import tqdm

# The scenarios of van de Ven et al. (2022), and which task it is as a question of its own.
TASK_INCREMENTAL = "task-incremental"
CLASS_INCREMENTAL = "class-incremental"
DOMAIN_INCREMENTAL = "domain-incremental"
TASK_IDENTIFICATION = "task-identification"


class Row(NamedTuple):
    """One measurement: a line of metrics.csv."""

    episode: int
    task: int
    task_name: str
    split: str
    scenario: str  # what has to be told, see methods/scenarios.py
    n: int
    loss: float
    accuracy: float
    ece: float  # see calibration_error in datasets/objectives.py

    @property
    def is_test(self) -> bool:
        """Whether it is the accuracy that R is made of: on test examples whose task is known."""
        return self.split == "test" and self.scenario == TASK_INCREMENTAL


def mean_accuracy(rows: Sequence[Row], scenario: str) -> float | None:
    """Mean over tasks, on test examples; None where the scenario was not measured."""
    found = [row.accuracy for row in rows if row.split == "test" and row.scenario == scenario]
    return sum(found) / len(found) if found else None


@dataclass(frozen=True)
class EpisodeFacts:
    """What an episode did: a line of episodes.csv."""

    episode: int
    tasks: Sequence[int]
    sampling_weights: Mapping[int, float]
    examples: int  # in one epoch of training
    images: int  # single examples trained on, over all epochs
    sample_gradients: int  # of single examples: those of `images`, and of replayed and reference examples
    steps: int
    seconds: float  # the whole episode: training, evaluation, writing the members
    train_seconds: float  # inside training loops only
    images_per_second: float  # images / train_seconds
    train_loss: float  # mean over the last epoch
    peak_memory_bytes: int


@dataclass(frozen=True)
class RunStart:
    """What is known of a run when it begins or is gone on with."""

    header: Sequence[tuple[str, str]]  # names and values that describe it to people
    config: Mapping[str, Any]  # config.yaml
    hyperparameters: Mapping[str, bool | float | str]  # what tells it from other runs
    tasks: int
    isolated: Sequence[float] | None  # accuracy of a network trained on each task alone
    episodes: Sequence[EpisodeFacts]  # what earlier processes did, and measured
    rows: Sequence[Row]


class Monitor:
    """Hears what happens in a run; this one ignores it."""

    def run_begins(self, run: RunStart) -> None:
        """Everything is checked, and training begins."""

    def episode_begins(self, episode: int, episodes: int) -> None:
        """An episode, counted from 1."""

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        """A network will be trained for `epochs` epochs of `images` images; an earlier process did `done` of them."""

    def step(self, images: int) -> None:
        """One gradient step was launched. Called for every batch: must be quick and must not ask the device."""

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        """Mean training loss of the epoch and learning rate of its last step."""

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Row]) -> None:
        """`rows`: all measurements of the episode."""

    def run_measured(self, summary: Mapping[str, Any]) -> None:
        """All episodes are done; `summary`: the final figures, before they are written."""

    def run_ends(self, text: str) -> None:
        """Everything is written; `text`: the final table."""

    def close(self) -> None:
        """The run is over or failed."""


class Monitors(Monitor):
    """Several monitors as one."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        for event in [name for name in vars(Monitor) if not name.startswith("_")]:
            setattr(self, event, _all_of([getattr(monitor, event) for monitor in monitors]))


def _all_of(listeners: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*arguments: object) -> None:
        for listener in listeners:
            listener(*arguments)

    return tell


class Console(Monitor):
    """Header, progress, one line an episode, final table.

    On a terminal a bar shows rate and remaining time while a member trains; elsewhere a plain line
    appears every `plain_seconds`.
    """

    def __init__(self, quiet: bool = False, plain_seconds: float = 30.0) -> None:
        self._quiet = quiet
        self._plain_seconds = plain_seconds
        self._bar: tqdm[object] | None = None
        self._episodes = 0
        self._title = ""

    def run_begins(self, run: RunStart) -> None:
        width = max(len(name) for name, _ in run.header)
        for name, value in run.header:
            self._say(f"{name:<{width}}  {value}")
        self._say()

    def episode_begins(self, episode: int, episodes: int) -> None:
        self._title, self._episodes = f"episode {episode}/{episodes}", episodes

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        self._epochs, self._total = epochs, (epochs - done) * images
        self._done = 0
        self._begin = self._last_line = time.perf_counter()
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._close_bar()
            self._bar = tqdm(total=self._total, desc=self._title, unit=" images", unit_scale=True, leave=False)

    def step(self, images: int) -> None:
        if self._bar is not None:
            self._bar.update(images)
        else:
            self._done += images

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        if self._bar is not None:
            self._bar.set_description(f"{self._title} · epoch {epoch}/{self._epochs} · loss {loss:.4f}", refresh=False)
            if epoch == self._epochs:
                self._close_bar()
            return
        now = time.perf_counter()
        if now - self._last_line >= self._plain_seconds and epoch < self._epochs and self._done:
            self._last_line = now
            rate = self._done / (now - self._begin)
            left = (self._total - self._done) / rate
            self._say(f"  epoch {epoch}/{self._epochs}: loss {loss:.4f}, {rate:,.0f} images/s, {left:,.0f} s left")

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Row]) -> None:
        self._close_bar()
        test = [row.accuracy for row in rows if row.is_test]
        tasks = ", ".join(map(str, facts.tasks))
        width = 2 * len(str(self._episodes)) + 1
        counter = f"{facts.episode}/{self._episodes}"
        self._say(
            f"episode {counter:>{width}}  accuracy {sum(test) / len(test):.4f} on tasks seen ({len(test)})"
            f"  {facts.seconds:6.1f} s  {facts.images_per_second:8,.0f} images/s  trained on {tasks}"
        )

    def run_ends(self, text: str) -> None:
        print(text, flush=True)

    def close(self) -> None:
        self._close_bar()

    def _say(self, line: str = "") -> None:
        if not self._quiet:
            print(line, flush=True)

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
