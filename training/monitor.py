"""Watching training: what is told while a network is trained."""

from __future__ import annotations


class Monitor:
    """Hears what happens while a network is trained; this one ignores it."""

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        """A network will be trained for `epochs` epochs of `images` images; an earlier process did `done` of them."""

    def step(self, images: int) -> None:
        """One gradient step was launched. Called for every batch: must be quick and must not ask the device."""

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        """Mean training loss of the epoch and learning rate of its last step."""
