"""Watching a run: console and TensorBoard. A run does the same with any of them, or with none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tqdm import tqdm


class Row(NamedTuple):
    """One measurement: a line of metrics.csv."""

    episode: int
    task: int
    task_name: str
    split: str
    n: int
    loss: float
    accuracy: float
    ece: float  # see calibration_error in datasets/objectives.py


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


class Monitor:
    """Hears what happens in a run; this one ignores it."""

    def run_begins(self, header: Sequence[tuple[str, str]]) -> None:
        """`header`: names and values that describe the run."""

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

    def run_ends(self, text: str) -> None:
        """`text`: the final table."""

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

    def run_begins(self, header: Sequence[tuple[str, str]]) -> None:
        width = max(len(name) for name, _ in header)
        for name, value in header:
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
        test = [row.accuracy for row in rows if row.split == "test"]
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


class Log(Protocol):
    """A file that grows."""

    def write(self, content: bytes) -> None:
        """To its end."""


class TensorBoard(Monitor):
    """Scalars, live. Steps of train/* are epochs counted over the whole run, all others are episodes.

    Args:
        open_log: opens a new file by its name.
        epochs: how many there were before.
    """

    def __init__(self, open_log: Callable[[str], Log], epochs: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        # The names by which TensorBoard finds its files, in the order of time; a process may begin a second one.
        self._records = RecordWriter(open_log(f"events.out.tfevents.{time.time_ns() // 1000:016d}.{os.getpid()}"))
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._epoch = epochs

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        self._epoch += done

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        self._epoch += 1
        self._write({"train/loss": loss, "train/learning_rate": lr}, self._epoch)

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Row]) -> None:
        test = [row.accuracy for row in rows if row.split == "test"]
        scalars = {"average_accuracy": sum(test) / len(test), "images_per_second": facts.images_per_second}
        tags = {row.task: _tag(row.task, row.task_name) for row in rows}
        for row in rows:
            scalars[f"{row.split}_accuracy/{tags[row.task]}"] = row.accuracy
            scalars[f"{row.split}_loss/{tags[row.task]}"] = row.loss
        for task, weight in facts.sampling_weights.items():
            scalars[f"sampling_weight/{tags[task]}"] = weight
        self._write(scalars, facts.episode)

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        event = self._event(wall_time=time.time(), step=step)
        for tag, value in scalars.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._records.write(event.SerializeToString())


def _tag(task: int, name: str) -> str:
    return f"{task:03d} {name}".replace("/", "-")
