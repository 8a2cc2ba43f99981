"""Training that is under way, saved every few minutes, and when a signal asks to stop."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

import torch

from records.directory import RunDirectory
from training.checkpoints import Checkpoints
from utils.errors import SignalError, UserError
from utils.trees import Tree, from_bytes, to_bytes


class RunCheckpoints(Checkpoints):
    """In the run directory.

    Args:
        minutes: between two; 0 is every epoch.
        seconds: what the run has taken so far.
        device: where tensors are wanted that were not on the CPU.
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
        """What is found and what is saved belongs to this episode."""
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
        """
        Raises:
            SignalError: a signal asked to stop; the state is saved.
        """
        parts = {**self._finished, name: state}
        self._directory.keep_training(self.seconds(), {part: to_bytes(tree()) for part, tree in parts.items()})
        self._finished = {}
        self._wait()
        self.stop_if_asked()

    def finished(self, name: str, state: Callable[[], Tree]) -> None:
        self._finished[name] = state

    def stop_if_asked(self) -> None:
        """
        Raises:
            SignalError: a signal has asked to stop.
        """
        if self._signal:
            raise SignalError(self._signal)

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask to stop at the next place where it can be gone on; the second one stops at once."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: FrameType | None) -> None:
            if self._signal:
                raise SignalError(number)
            self._signal = number

        try:
            for number in before:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _wait(self) -> None:
        self._next = time.monotonic() + 60 * self._minutes


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM ends what is done here like any error, so that locks are released."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SignalError(number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def load_state(content: bytes, device: torch.device, place: str) -> Tree:
    """A saved state.

    Raises:
        UserError: it is none.
    """
    try:
        return from_bytes(content, device)
    except ValueError as error:
        raise UserError(f"{place}: {error}") from None
