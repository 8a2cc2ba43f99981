"""Where training that is under way is saved."""

from __future__ import annotations

from collections.abc import Callable

from utils.trees import Tree


class Checkpoints:
    """Where training is saved; this one saves nothing."""

    def found(self, name: str) -> Tree | None:
        """What was saved last of the network `name`, in this episode."""
        return None

    def due(self, *, epoch_ends: bool = False) -> bool:
        """Whether to save now. Called after every step: must be quick."""
        return False

    def save(self, name: str, state: Callable[[], Tree]) -> None:
        """Keep the state of a network that is being trained."""

    def finished(self, name: str, state: Callable[[], Tree]) -> None:
        """A network is trained; its state is to be kept with that of the next one of the episode."""
