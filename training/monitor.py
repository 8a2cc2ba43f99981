"""The interface through which training reports its progress."""

from __future__ import annotations


class Monitor:
    """Is told of the progress of training; this one ignores it."""

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        """Training of a network begins: `epochs` epochs of `images` examples, the first `done` done before a resume."""

    def step(self, images: int) -> None:
        """One gradient step was launched. Called for every batch: must be quick and must not wait for the device."""

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        """An epoch has ended, with this mean training loss and this learning rate in its last step."""
