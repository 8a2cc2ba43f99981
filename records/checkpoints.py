"""RunCheckpoints: saves training under way in the run directory, every few minutes and when a signal stops the run."""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import FrameType

import torch

from records.directory import RunDirectory
from training.monitor import Checkpoints
from utils.errors import SignalError, handling
from utils.files import side_by_side
from utils.trees import Tree, from_bytes, to_bytes

ENDING = (signal.SIGTERM, signal.SIGUSR1)  # what queues send before they end a job
_EPISODE = "episode"  # names the saved duration of the episode so far


class RunCheckpoints(Checkpoints):
    """Checkpoints in the run directory, every few `minutes` (0: after every epoch).

    `seconds` returns the wall time of the run so far; tensors that were not on the CPU come back on `device`.
    """

    def __init__(
        self, directory: RunDirectory, minutes: float, seconds: Callable[[], float], device: torch.device
    ) -> None:
        self._directory, self._minutes, self.seconds, self._device = directory, minutes, seconds, device
        self._signal = 0
        self.episode_begins()

    def episode_begins(self) -> None:
        """Forget the finished networks of the last episode, and take the time."""
        self._finished: dict[str, Callable[[], Tree]] = {}
        earlier = self.found(_EPISODE) or {"seconds": 0.0}
        self._begun = self.seconds() - earlier["seconds"]
        self._last = time.monotonic()

    def episode_seconds(self) -> float:
        """Wall time of the episode so far, in all processes of the run."""
        return self.seconds() - self._begun

    def found(self, name: str) -> Tree | None:
        content = self._directory.training(name)
        return None if content is None else from_bytes(content, self._device)

    def due(self, *, epoch_ends: bool = False) -> bool:
        if self._signal or (epoch_ends and not self._minutes):
            return True
        return self._minutes > 0 and time.monotonic() >= self._last + 60 * self._minutes

    def save(self, name: str, state: Callable[[], Tree]) -> None:
        parts = {**self._finished, name: state, _EPISODE: lambda: {"seconds": self.episode_seconds()}}
        self._directory.keep_training(self.seconds(), {part: to_bytes(tree()) for part, tree in parts.items()})
        self._finished = {}
        self._last = time.monotonic()
        self.stop_if_asked()

    def finished(self, name: str, state: Callable[[], Tree]) -> None:
        self._finished[name] = state

    def stop_if_asked(self) -> None:
        """Raise a SignalError if a signal has asked to stop."""
        if self._signal:
            raise SignalError(self._signal)

    def catching(self) -> AbstractContextManager[None]:
        """A signal stops the run at the next place where it can be resumed; a second one stops it at once."""
        return handling(self._ask, signal.SIGINT, *ENDING)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._signal:
            raise SignalError(number)
        self._signal = number


class TaskCheckpoints(RunCheckpoints):
    """Checkpoints of runs whose networks train together: each run keeps the state of its own network."""

    def __init__(
        self, directories: Sequence[RunDirectory], minutes: float, seconds: Callable[[], float], device: torch.device
    ) -> None:
        super().__init__(directories[0], minutes, seconds, device)
        self._directories = directories

    def save(self, name: str, state: Callable[[], Tree]) -> None:
        states, seconds = state(), self.seconds()
        pairs = zip(self._directories, states if isinstance(states, list) else [states], strict=True)
        side_by_side(lambda pair: pair[0].keep_training(seconds, {name: to_bytes(pair[1])}), pairs)
        self._last = time.monotonic()
        self.stop_if_asked()


def ending_on_sigterm() -> AbstractContextManager[None]:
    """SIGTERM and SIGUSR1 raise a SignalError, so that locks are released."""
    return handling(_end, *ENDING)


def _end(number: int, frame: FrameType | None) -> None:
    raise SignalError(number)
