"""Monitors: they are told what happens in a run, and do not change it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.measurements import Measurement
from training.monitor import Monitor


@dataclass(frozen=True)
class EpisodeFacts:
    """A line of episodes.csv: what an episode has trained, and at what cost."""

    episode: int
    tasks: Sequence[int]
    sampling_weights: Mapping[int, float]
    examples: int  # per epoch of training
    images: int  # examples trained on, summed over all epochs
    sample_gradients: int  # gradients of single examples: `images`, and replayed and reference examples
    steps: int
    seconds: float  # the whole episode, in all processes of the run: training, evaluation, writing the members
    train_seconds: float  # inside training loops only
    images_per_second: float  # images / train_seconds; NaN where nothing was trained, in the file empty
    train_loss: float  # mean over the last epoch; NaN where nothing was trained
    peak_memory_bytes: int


@dataclass(frozen=True)
class RunStart:
    """A run at its beginning, or when it is resumed."""

    header: Sequence[tuple[str, str]]  # names and values that describe it to people
    config: Mapping[str, Any]  # config.yaml
    hyperparameters: Mapping[str, bool | float | str]  # by dotted key
    tasks: int
    isolated: Mapping[int, float] | None  # by task, the main metric of a network trained on it alone
    episodes: Sequence[EpisodeFacts]  # of earlier processes
    rows: Sequence[Measurement]  # of earlier processes


class RunMonitor(Monitor):
    """Receives the events of a run and its training; this base class ignores them."""

    def run_begins(self, run: RunStart) -> None:
        """Everything is checked, training begins."""

    def episode_begins(self, episode: int, episodes: int) -> None:
        """`episode`: its number, from 1."""

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Measurement]) -> None:
        """`rows`: all measurements of the episode."""

    def run_measured(self, summary: Mapping[str, Any]) -> None:
        """All episodes are done; `summary`: the final figures, before they are written."""

    def run_ends(self, text: str) -> None:
        """Everything is written; `text`: the final table."""

    def close(self) -> None:
        """The run is over or failed."""


class Monitors(RunMonitor):
    """Passes each event to several monitors."""

    def __init__(self, monitors: Sequence[RunMonitor]) -> None:
        for event in [name for kind in (Monitor, RunMonitor) for name in vars(kind) if not name.startswith("_")]:
            setattr(self, event, _all_of([getattr(monitor, event) for monitor in monitors]))


def _all_of(listeners: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*arguments: object) -> None:
        for listener in listeners:
            listener(*arguments)

    return tell
