"""RunCheckpoints: saves training under way in the run directory, every few minutes and when a signal stops the run."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import torch

from records.directory import RunDirectory
from training.monitor import Checkpoints
from utils.errors import SignalError, UserError
from utils.trees import Tree, from_bytes, to_bytes


class RunCheckpoints(Checkpoints):
    """Checkpoints in the run directory.

    Args:
        minutes: between two checkpoints; 0 saves after every epoch.
        seconds: returns the wall time of the run so far.
        device: of the tensors that were not on the CPU when they were saved.
    """

    def __init__(
        self, directory: RunDirectory, minutes: float, seconds: Callable[[], float], device: torch.device
    ) -> None:
        self._directory, self._minutes, self.seconds, self._device = directory, minutes, seconds, device
        self._finished: dict[str, Callable[[], Tree]] = {}
        self._signal = 0
        self._next = 0.0
        self.episode_begins()

    def episode_begins(self) -> None:
        """Forget the finished networks of the last episode."""
        self._finished = {}
        self._wait()

    def found(self, name: str) -> Tree | None:
        content = self._directory.training(name)
        return None if content is None else load_state(content, self._device, f"{self._directory.path}: {name}")

    def due(self, *, epoch_ends: bool = False) -> bool:
        if self._signal or (epoch_ends and not self._minutes):
            return True
        return self._minutes > 0 and time.monotonic() >= self._next

    def save(self, name: str, state: Callable[[], Tree]) -> None:
        parts = {**self._finished, name: state}
        self._directory.keep_training(self.seconds(), {part: to_bytes(tree()) for part, tree in parts.items()})
        self._finished = {}
        self._wait()
        self.stop_if_asked()

    def finished(self, name: str, state: Callable[[], Tree]) -> None:
        self._finished[name] = state

    def stop_if_asked(self) -> None:
        """Raise a SignalError if a signal has asked to stop."""
        if self._signal:
            raise SignalError(self._signal)

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the run at the next place where it can be resumed; a second one stops at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self._signal:
                raise SignalError(number)
            self._signal = number

        with _handling(ask, signal.SIGINT, signal.SIGTERM):
            yield

    def _wait(self) -> None:
        self._next = time.monotonic() + 60 * self._minutes


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM raises a SignalError, so that locks are released."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SignalError(number)

    with _handling(end, signal.SIGTERM):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def load_state(content: bytes, device: torch.device, place: str) -> Tree:
    """The tree of a saved state; `place` opens the error message."""
    try:
        return from_bytes(content, device)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
