"""Options and checks that the programs for a saved zoo share."""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from records.checkpoints import ending_on_sigterm
from records.directory import check_free
from records.lock import locked
from records.summary import read_summary
from records.task_config import METHOD
from utils.errors import SignalError, TrainingError, UserError
from utils.options import whole
from utils.settings import Range
from zoo.combine import COMBINE, TEMPERATURES
from zoo.saved import Zoo

REPEAT = "repeat the command"  # what to do when a program was stopped: RUN is as it was


def add_machine(parser: argparse.ArgumentParser, threads: str) -> None:
    """--device and --threads; `threads`: how many without the option."""
    add = parser.add_argument
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    count = partial(whole, "--threads", accepted=Range(1, 1024))
    add("--threads", metavar="N", type=count, help=f"CPU threads (default: {threads})")


def add_new_run(parser: argparse.ArgumentParser, what: str, default: str) -> None:
    """--run_dir and --overwrite; `what` goes there, by default to `default`."""
    add = parser.add_argument
    add("--run_dir", metavar="DIR", help=f"where {what} goes, a run directory as well (default: {default})")
    add("--overwrite", action="store_true", help="replace the run that is in --run_dir (default: refuse)")


def add_combination(
    parser: argparse.ArgumentParser, budget: str = "at most K members answer, chosen on held-out data (default: all)"
) -> None:
    """--combine, --temperature and --budget, of which `budget` is the help; see `combined`."""
    add = parser.add_argument
    add("--combine", metavar="NAME", default="mean", help=f"how members become one answer: {', '.join(COMBINE)}; all "
        "but mean are fitted on held-out examples (default: mean)")  # fmt: skip
    add("--temperature", metavar="NAME", default="none",
        help=f"calibrate on held-out examples: {', '.join(TEMPERATURES)} (default: none)")  # fmt: skip
    add("--budget", metavar="K", type=partial(whole, "--budget"), help=budget)


def finished(path: str, device: str) -> Zoo:
    """The zoo of classes of a finished run; a UserError if it cannot be read, or is no such zoo."""
    zoo = Zoo.load(path, device)
    if zoo.config.method == METHOD:
        raise UserError(f"{path} is a run of train_task.py, one network of one task; name a run of modelzoo.py")
    zoo.check_classes()
    if read_summary(zoo.path) is None:
        raise UserError(f"{path} is not finished; resume it first (modelzoo.py --resume)")
    return zoo


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """SIGTERM stops the program with a line that says what to do, and releases its locks."""
    with ending_on_sigterm():
        try:
            yield
        except SignalError as error:
            raise SignalError(error.number, REPEAT) from None


@contextlib.contextmanager
def new_run(path: Path, overwrite: bool, reads: Sequence[Path]) -> Iterator[None]:
    """Lock a folder while a new run is made in it from the runs `reads`.

    A run that is not written to its end is nobody's zoo (see `half_made`), and the same command makes it again.
    """
    with locked(path, "--run_dir "):
        check_free(path, overwrite, reads)  # another process may have begun a run there meanwhile
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{error.filename or path} cannot be written: {error.strerror or error}") from None


def check_new(out: Path, kind: str) -> None:
    """Check that nothing is at `out`, where a "file" or "folder" (`kind`) goes, unless that is an empty folder."""
    try:
        out.lstat()
        if kind != "folder" or not out.is_dir() or any(out.iterdir()):
            raise UserError(f"--out {out} exists; remove it, or name another {kind}")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
        raise UserError(f"--out {out} cannot be used: {getattr(error, 'strerror', None) or error}") from None
