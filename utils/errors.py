"""Errors that end a program, each shown to the user as one line and an exit code."""

import contextlib
import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

_LONGEST = 5000  # characters of a line; a path may have 4096


class UserError(Exception):
    """Wrong input; the message names the file and key and what would be right. Exit code 2."""

    code = 2


class TrainingError(Exception):
    """Training failed; the message says where and what to try. Exit code 1."""

    code = 1


class SignalError(BaseException):
    """A signal stopped the program; no Exception, as it would be taken for an error of a library. Exit code 128 + n."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__("; ".join(filter(None, [f"stopped by {signal.Signals(number).name}", advice])))
        self.number, self.code = number, 128 + number


class OutputError(BaseException):
    """stdout cannot be written; not an Exception, so that nothing takes it for an error of another file."""


class _Output:
    """stdout or stderr of a program: a failure ends the output, and for stdout is an OutputError."""

    def __init__(self, stream: Any, results: bool) -> None:
        self._stream, self._results = stream or io.StringIO(), results  # None if the process was started without one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        # Progress bars on stderr move the cursor; what has names goes there through one_line.
        self._try(self._stream.write, printable(text) if self._results else text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Callable[..., object], *given: str) -> None:
        try:
            do(*given)
        except (OSError, ValueError) as error:  # ValueError: it is closed
            with contextlib.suppress(OSError, ValueError):  # Python's own flush at exit must not fail again
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self._results:
                raise OutputError(error) from None


def run_program(name: str, body: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run the body of a program and return its exit code (None is 0); an error becomes one line on stderr.

    If nobody reads stdout any more, the program ends without a word, as other tools do.
    """
    with contextlib.suppress(AttributeError):  # stdout may be replaced, as in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files may be no text
    leaves = [signal.SIGINT] if signal.getsignal(signal.SIGINT) is leave else []
    out, told = _Output(sys.stdout, results=True), _Output(sys.stderr, results=False)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):  # type: ignore[type-var]
        try:
            with handling(signal.default_int_handler, *leaves), contextlib.ExitStack() as at_end:
                at_end.callback(out.flush)
                return body() or 0
        except BaseException as error:
            if (ending := ending_of(error, interrupted)) is None:
                raise
        if ending[0]:
            print(f"{name}: {one_line(ending[0])}", file=sys.stderr)
        return ending[1]


def ending_of(error: BaseException, interrupted: str = "interrupted") -> tuple[str, int] | None:
    """What is said about an error that ends a program, and the exit code; None for an error in the program itself."""
    if isinstance(error, (UserError, TrainingError, SignalError)):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return interrupted, 128 + signal.SIGINT
    if isinstance(error, OutputError):
        if isinstance(error.args[0], BrokenPipeError):  # nobody reads it any more
            return "", 128 + signal.SIGPIPE
        return f"stdout cannot be written: {getattr(error.args[0], 'strerror', None) or error}", 1
    if lack := shortage(error):
        return lack, 1
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None), 1
    return None


def shortage(error: BaseException, of: str = "") -> str:
    """What the machine lacks if that is the reason of an error, and for what (`of`); else an empty text."""
    text = " ".join(str(error).split())
    # Allocation on the host raises a plain RuntimeError; libraries that do not fit into memory are not found.
    if isinstance(error, MemoryError) or re.search("(?i)out of memory|allocate.*memory|failed to map segment", text):
        asked = re.search(r"(?i)allocate (\d[\d.,]* ?[A-Za-z]+)", text)
        return f"not enough memory{of}" + (f" (it asked for {asked[1]} more)" if asked else "")
    return f"no more threads can be started{of}; ulimit -u limits them" if "start new thread" in text else ""


@contextlib.contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn out-of-memory errors into a TrainingError that says what needs memory, how much, and the remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (lack := shortage(error, f" for {what}")):
            raise
        raise TrainingError(f"{lack}; {remedy}") from None


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], object], *numbers: int) -> Iterator[None]:
    """Handle signals by `handler` for a while."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def leave(number: int, frame: object) -> None:
    """Handle Ctrl-C while a program loads its modules or has ended, when nothing can be lost: one line, and the end."""
    with contextlib.suppress(OSError):
        os.write(2, f"{Path(sys.argv[0]).name}: interrupted\n".encode())
    os._exit(128 + number)


def printable(text: str) -> str:
    """The text with control characters, bidirectional marks and the like escaped, but for line ends and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def one_line(text: object) -> str:
    """The text on one line, unprintable characters escaped: a file name may hold codes that clear the screen."""
    shown = printable(" ".join(str(text).split()))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST // 2]} [...] {shown[-_LONGEST // 2 :]}"


def expanded(path: str) -> str:
    """The path with ~ replaced by the home folder."""
    return os.path.expanduser(path)  # noqa: PTH111  # Path.expanduser raises for ~unknown


def missing_file(path: str) -> str:
    """One sentence for a YAML file that does not exist; lists the YAML files of its folder."""
    folder = Path(path).parent
    known = sorted(found.name for found in folder.glob("*.yaml")) if folder.is_dir() else []
    return f"{path} does not exist" + (f"; {folder} has {', '.join(known)}" if known else "")


def unknown(kind: str, name: object, known: Iterable[str], labels: Sequence[str] = ()) -> str:
    """One sentence for an unknown name, with the nearest known one; `labels`: what is listed, if not the known names.

    >>> unknown("method", "zoom", ["zoo", "isolated"])
    "unknown method 'zoom'; did you mean 'zoo'? (known: isolated, zoo)"
    """
    choices = sorted(known)
    near = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = labels or choices
    listed = f" (known: {', '.join(shown)})" if len(shown) <= 30 else ""
    return f"unknown {kind} {str(name)!r}{hint}{listed}"
