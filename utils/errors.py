"""The ways a run may end before it is finished, each shown to the user as one line."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """The input is wrong: what, in which file and key, and what would be right. Exit code 2."""


class TrainingError(Exception):
    """Training cannot go on: where it stopped and what to try. Exit code 1."""


class SignalError(Exception):
    """A signal asked the run to stop, and everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def unknown(kind: str, name: object, known: Iterable[str], list_limit: int = 30) -> str:
    """One sentence for a name that does not exist, with the nearest name that does.

    >>> unknown("method", "zoom", ["zoo", "isolated"])
    "unknown method 'zoom'; did you mean 'zoo'? (known: isolated, zoo)"
    """
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f" (known: {', '.join(choices)})" if len(choices) <= list_limit else ""
    return f"unknown {kind} {str(name)!r}{hint}{listed}"
