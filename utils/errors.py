"""The ways a run may end before it is finished, each shown to the user as one line."""

from __future__ import annotations

import contextlib
import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

_LONGEST = 5000  # a line; a path may have 4096


class UserError(Exception):
    """The input is wrong: what, in which file and key, and what would be right. Exit code 2."""


class TrainingError(Exception):
    """Training cannot go on: where it stopped and what to try. Exit code 1."""


class SignalError(Exception):
    """A signal asked the run to stop, and everything is saved."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__("; ".join(filter(None, [f"stopped by {signal.Signals(number).name}", advice])))
        self.number = number


def run_program(name: str, body: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run the body of a program and return its exit code; an error becomes one line on stderr.

    Args:
        name: of the program; opens the line.
        body: what it does; returns an exit code, or None for 0.
        interrupted: the line for Ctrl-C.

    Returns:
        What `body` returned; 2 after a UserError, 1 after a TrainingError, 128 + n after signal n.
    """
    print_anything()
    try:
        return body() or 0
    except UserError as error:
        reason, code = str(error), 2
    except TrainingError as error:
        reason, code = str(error), 1
    except SignalError as error:
        reason, code = str(error), 128 + error.number
    except KeyboardInterrupt:
        reason, code = interrupted, 128 + signal.SIGINT
    print(f"{name}: {one_line(reason)}", file=sys.stderr)
    return code


def one_line(text: object) -> str:
    """For the terminal: on one line, and what is no character to be seen as its number. Names of files are not to be
    trusted: they may hold what clears a screen or hides a word.
    """
    line = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in line)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} [...] {shown[-_LONGEST // 2 :]}"


def print_anything() -> None:
    """Names of files that are no text (in POSIX they are bytes) are shown with numbers, not refused by print."""
    with contextlib.suppress(AttributeError):  # not a file of this process
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def missing_file(path: str) -> str:
    """One sentence for a YAML file that does not exist, with those that lie in the same folder."""
    folder = Path(path).parent
    known = sorted(found.name for found in folder.glob("*.yaml")) if folder.is_dir() else []
    return f"{path} does not exist" + (f"; {folder} has {', '.join(known)}" if known else "")


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
