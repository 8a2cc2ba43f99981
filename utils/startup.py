"""The start of a program, before it loads torch (seconds): nothing here imports anything heavy."""

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from utils import machine
from utils.errors import ending_of, expanded, leave, missing_file, one_line

_FILES = ("--data_config", "--hp_config", "--method_config", "--config")
_RUNS = ("--extend", "--isolated", "--verify")
_RUN_COMES_FIRST = ("predict.py", "distill.py", "export.py", "forget.py")


def prepare(name: str, *, computes: bool = True) -> None:
    """Refuse what cannot work (one line, exit code 2) and choose how threads wait; call before loading torch.

    The command line is read only if `name` is "__main__". A program that only starts others has `computes` false.
    """
    if name == "__main__":
        _guard()
        program = Path(sys.argv[0]).name
        if wrong := wrong_path(program, sys.argv[1:]):
            print(f"{program}: {one_line(wrong)}", file=sys.stderr)
            sys.exit(2)
    # Loading torch creates half a million permanent objects: full garbage collections would take a tenth of that time.
    gc.set_threshold(700, 10, 1000)
    if computes and "torch" not in sys.modules:
        machine.choose_waiting()


def _guard() -> None:
    """Let what goes wrong while modules load, or after the program, end it in one line too."""
    if hasattr(sys, "ps1"):  # %run in a notebook, which outlives the program
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)
    sys.excepthook = _tell
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed: the next file that is opened would take its place
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, "w" if number else "r"))  # noqa: SIM115


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if (ending := ending_of(error)) is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"{Path(sys.argv[0]).name}: {one_line(ending[0])}", file=sys.stderr)


def wrong_path(program: str, argv: Sequence[str]) -> str | None:
    """An error message for a system without locks or for the first given path that does not exist, or None."""
    if importlib.util.find_spec("fcntl") is None:
        return "this system has no fcntl, which locks run directories: use Linux, macOS, or WSL on Windows"
    if {"-h", "--help"} & set(argv):
        return None
    given = _given(argv)
    for option in (*_FILES, *_RUNS):
        if option in given and not os.path.lexists(given[option]):
            return missing_file(given[option]) if option in _FILES else f"{option} {given[option]} does not exist"
    if argv and not argv[0].startswith("-"):
        first = expanded(argv[0])
        if program in _RUN_COMES_FIRST and not os.path.lexists(Path(first, "config.yaml")):
            return f"{argv[0]} is not the directory of a run (it has no config.yaml)"
        if program == "describe.py" and not os.path.lexists(first):
            return missing_file(first)
        if program == "report.py" and not os.path.lexists(first):
            return f"{argv[0]} is not the directory of a run, and has no runs in it"
    return None


def _given(argv: Sequence[str]) -> dict[str, str]:
    """The values of the options that name a path; the last one counts."""
    values = {}
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):  # without arguments one longer
        option, equals, value = argument.partition("=")
        if option in (*_FILES, *_RUNS) and (equals or following):
            values[option] = expanded(value if equals else following)
    return values
