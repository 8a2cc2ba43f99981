"""The interfaces through which training reports its progress, is watched, and saves its state and finds it again."""

from collections.abc import Callable
from dataclasses import dataclass

from utils.trees import Tree


class Monitor:
    """Is told of the progress of training; this one ignores it."""

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        """Training of a network begins: `epochs` epochs of `images` examples, the first `done` done before a resume."""

    def step(self, images: int) -> None:
        """One gradient step was launched. Called for every batch: must be quick and must not wait for the device."""

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        """An epoch has ended, with this mean training loss and this learning rate in its last step."""


@dataclass(frozen=True)
class Watch:
    """A question about a network that is asked after every so many steps of its training; answers are plain values."""

    every: int
    ask: Callable[[], Tree]


class Checkpoints:
    """Saves the state of training so that it can be resumed; this one saves nothing."""

    def found(self, name: str) -> Tree | None:
        """The last saved state of the network `name` in this episode; None if there is none."""
        return None

    def due(self, *, epoch_ends: bool = False) -> bool:
        """Whether to save now. Called after every step: must be quick."""
        return False

    def save(self, name: str, state: Callable[[], Tree]) -> None:
        """Save the state of a network in training."""

    def finished(self, name: str, state: Callable[[], Tree]) -> None:
        """Take the final state of a trained network, to be saved together with that of the episode's next network."""
