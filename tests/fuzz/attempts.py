"""One case, run in this process, and what is wrong with how it ended."""

import contextlib
import os
import re
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import benchmark
import distill
import export
import forget
import modelzoo
import predict
import report
from records.checkpoints import RunCheckpoints
from tests.fuzz.cases import CANARY, Answer, Case, Link, write
from tests.fuzz.images import CACHE, damage_cache
from training.monitor import Checkpoints

SECONDS = 10  # a case may take
BYTES = 2 << 30  # a case may need, all in all
STEPS = 40  # of training; who has come so far was accepted
PROGRAMS: dict[str, Any] = {
    module.__name__: module for module in (modelzoo, benchmark, report, predict, export, distill, forget)
}


class Enough(BaseException):
    """Training has begun: the input was accepted."""


def seen(root: Path) -> dict[str, tuple]:
    """Everything below a folder, and what tells whether it was changed."""
    found = {}
    for folder, folders, names in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *names)):
            status = path.lstat()
            facts = () if stat.S_ISDIR(status.st_mode) else (status.st_ino, status.st_size, status.st_mtime_ns)
            found[path.relative_to(root).as_posix()] = facts
    return found


def outside(before: dict[str, tuple], after: dict[str, tuple], case: Case) -> list[str]:
    """What appeared, vanished or changed though it is not of the run."""
    runs = {"run", "other", *(["real"] if case.files.get("run") == Link("real") else [])}
    if "--run_dir" not in case.arguments:
        runs.add("runs")
    for option, value in zip(case.arguments, [*case.arguments[1:], ""], strict=True):
        if option.startswith("--run_dir"):
            runs.add(option.removeprefix("--run_dir=") if "=" in option else value)
    runs = runs if case.writes is None else set(case.writes)
    own = [os.path.normpath(f"home/{run}") + "/" for run in runs if run]
    differing = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]

    def admitted(path: str) -> bool:
        of_run = any(f"{path}/".startswith(run) or run.startswith(f"{path}/") for run in own)
        is_folder, below = after.get(path) == (), path.startswith("home/data/")
        return of_run or (below and (is_folder or (path.startswith("home/data/cache/") and path.endswith("tensors"))))

    return sorted(path for path in differing if not admitted(path))


@contextlib.contextmanager
def output_to(*files: Path) -> Iterator[None]:
    """What is written to stdout and stderr, also by libraries in C, goes to two files."""
    opened = [os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC) for file in files]
    kept, streams = [os.dup(1), os.dup(2)], (sys.stdout, sys.stderr)
    for number, descriptor in enumerate(opened, 1):
        os.dup2(descriptor, number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    try:
        yield
    finally:
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
        sys.stdout, sys.stderr = streams
        for descriptor in (*opened, *kept):
            os.close(descriptor)


@contextlib.contextmanager
def at_most(steps: int) -> Iterator[None]:
    """Training that goes on for longer raises Enough."""
    asked: dict[Any, Any] = {kind: kind.due for kind in (Checkpoints, RunCheckpoints)}
    taken = 0

    def counted(self: Checkpoints, *, epoch_ends: bool = False) -> bool:
        nonlocal taken
        taken += 1
        if taken > steps:
            raise Enough
        return asked[type(self)](self, epoch_ends=epoch_ends)

    for kind in asked:
        kind.due = counted
    try:
        yield
    finally:
        for kind, due in asked.items():
            kind.due = due


def ending(case: Case) -> tuple[Any, str]:
    """The exit code of the command, or "accepted"; and the exception that it should not have ended with, if any."""
    try:
        with at_most(STEPS):
            return PROGRAMS[case.program].main(case.arguments), ""
    except Enough:
        return "accepted", ""
    except SystemExit as end:
        return end.code, ""
    except BaseException as error:
        calls = traceback.extract_tb(error.__traceback__)[:0:-1]
        where = " <- ".join(f"{Path(call.filename).name}:{call.lineno}" for call in calls)
        return None, f"{type(error).__name__}: {error!s:.200} in {where:.200}"


def flushed() -> str:
    """Why stdout or stderr cannot be written; "" if they can."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def attempt(case: Case, root: Path) -> Answer:
    """Run a case in this process; the folder `root` is new."""
    home, out, err = root / "home", *(root.with_name(f"{root.name}.out{number}") for number in (1, 2))
    home.mkdir(parents=True)
    os.chdir(home)
    write({path: content for path, content in case.files.items() if path != CACHE})
    warnings.simplefilter("default", UserWarning)  # also makes Python forget which ones were shown
    torch.set_num_threads(1)
    with output_to(out, err):
        if CACHE in case.files:
            damage_cache(case)
        before = seen(root)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        code, wrong = ending(case)
        seconds = time.perf_counter() - begin
        wrong = wrong or flushed()
    stderr = err.read_text(errors="replace")
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    os.chdir(root)
    wrong = wrong or wrong_answer(case, code, stderr, seconds, peak) or wrong_files(case, code, before, seen(root))
    return Answer(case.kind, case.seed, code, wrong, seconds, peak, stderr.strip()[:300])


def wrong_files(case: Case, code: Any, before: dict[str, tuple], after: dict[str, tuple]) -> str:
    """What is wrong with what it left behind; "" if nothing is."""
    new = sorted(after.keys() - before.keys())
    if any(CANARY in path for path in new):
        return "code was run"
    if moved := outside(before, after, case):
        return f"outside of the run: {moved[:5]}"
    left = [path for path in new if path.endswith(".partial")]
    if left and code != "accepted":
        return f"left behind: {left[:5]}"
    if new and code == 2 and case.program in ("predict", "export", "distill", "forget"):
        return f"refused, but written: {new[:5]}"
    return ""


def wrong_answer(case: Case, code: Any, stderr: str, seconds: float, peak: int) -> str:
    """What is wrong with how it ended; "" if nothing is."""
    lines = stderr.splitlines()
    words = ("not finite", "memory for training", "cannot be written")
    training = code == 1 and any(word in stderr for word in words)
    if case.program == "predict" and code == 1 and re.search(r"files were skipped\n\Z", stderr):  # a line for each
        lines, stderr, training = lines[-1:], stderr.splitlines(keepends=True)[-1], True
    if case.kind == "valid" and code != 0:
        return f"exit code {code}: {stderr[:300]}"
    if code not in (0, 2, "accepted") and not training:
        return f"exit code {code}: {stderr[:300]}"
    if code in (0, "accepted"):
        if [line for line in lines if not line.startswith("begun with ")]:
            return f"exit code {code}, but on stderr: {stderr[:300]}"
    elif len(lines) != 1 or not stderr.startswith(f"{case.program}.py: ") or not stderr.endswith("\n"):
        return f"not one line: {stderr[:500]!r}"
    elif re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", stderr[:-1]):
        return f"control characters: {stderr[:300]!r}"
    if seconds > SECONDS:
        return f"{seconds:.0f} s"
    if peak > BYTES and not training:
        return f"{peak >> 20} MiB: {stderr[:100]}"
    return ""
