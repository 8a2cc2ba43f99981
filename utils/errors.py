"""Errors that end a program, each shown to the user as one line and an exit code."""

import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

_LONGEST = 5000  # characters of a line; a path may have 4096


class UserError(Exception):
    """Wrong input; the message names the file and key and what would be right. Exit code 2."""


class TrainingError(Exception):
    """Training failed; the message says where and what to try. Exit code 1."""


class SignalError(Exception):
    """A signal stopped the run, and its state is saved. Exit code 128 + the number of the signal."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__("; ".join(filter(None, [f"stopped by {signal.Signals(number).name}", advice])))
        self.number = number


def run_program(name: str, body: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run the body of a program and return its exit code (None is 0); an error becomes one line on stderr.

    The line begins with the name of the program; `interrupted` is the text for Ctrl-C.
    """
    with contextlib.suppress(AttributeError):  # stdout may be replaced, as in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files may be no text
    try:
        return body() or 0
    except (UserError, TrainingError) as error:
        reason, code = str(error), 2 if isinstance(error, UserError) else 1
    except SignalError as error:
        reason, code = str(error), 128 + error.number
    except KeyboardInterrupt:
        reason, code = interrupted, 128 + signal.SIGINT
    print(f"{name}: {one_line(reason)}", file=sys.stderr)
    return code


def one_line(text: object) -> str:
    """The text on one line, unprintable characters escaped: a file name may hold codes that clear the screen."""
    line = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in line)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} [...] {shown[-_LONGEST // 2 :]}"


def expanded(path: str) -> str:
    """The path with ~ replaced by the home folder."""
    return os.path.expanduser(path)  # noqa: PTH111  # Path.expanduser raises for ~unknown


def missing_file(path: str) -> str:
    """One sentence for a YAML file that does not exist; lists the YAML files of its folder."""
    folder = Path(path).parent
    known = sorted(found.name for found in folder.glob("*.yaml")) if folder.is_dir() else []
    return f"{path} does not exist" + (f"; {folder} has {', '.join(known)}" if known else "")


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """One sentence for an unknown name, with the nearest known one.

    >>> unknown("method", "zoom", ["zoo", "isolated"])
    "unknown method 'zoom'; did you mean 'zoo'? (known: isolated, zoo)"
    """
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f" (known: {', '.join(choices)})" if len(choices) <= 30 else ""
    return f"unknown {kind} {str(name)!r}{hint}{listed}"
