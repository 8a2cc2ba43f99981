"""One case, run in this process, and what is wrong with how it ended."""

import contextlib
import os
import re
import stat
import sys
import time
import traceback
import warnings
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


def attempt(case: Case, root: Path) -> Answer:
    """Run a case in this process; the folder `root` is new."""
    home, work = root / "home", root.with_name(root.name + ".out")
    home.mkdir(parents=True)
    os.chdir(home)
    write({path: content for path, content in case.files.items() if path != CACHE})
    out = os.open(str(work) + "1", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    err = os.open(str(work) + "2", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    kept = os.dup(1), os.dup(2), sys.stdout, sys.stderr
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    warnings.simplefilter("default", UserWarning)  # also makes Python forget which ones were shown
    torch.set_num_threads(1)
    steps = 0
    asked: dict[Any, Any] = {kind: kind.due for kind in (Checkpoints, RunCheckpoints)}

    def counted(self: Checkpoints, *, epoch_ends: bool = False) -> bool:
        nonlocal steps
        steps += 1
        if steps > STEPS:
            raise Enough
        return asked[type(self)](self, epoch_ends=epoch_ends)

    code: Any = None
    wrong = ""
    programs = (modelzoo, benchmark, report, predict, export, distill, forget)
    program: Any = next(module for module in programs if module.__name__ == case.program)
    try:
        if CACHE in case.files:
            damage_cache(case)
        before = seen(root)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        for checkpoints in asked:
            checkpoints.due = counted
        try:
            code = program.main(case.arguments)
        except Enough:
            code = "accepted"
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            where = " <- ".join(
                f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[:0:-1]
            )
            wrong = f"{type(error).__name__}: {error!s:.200} in {where:.200}"
        finally:
            for checkpoints, due in asked.items():
                checkpoints.due = due
        seconds = time.perf_counter() - begin
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError) as error:
            wrong = wrong or f"{error}"
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        sys.stdout, sys.stderr = kept[2:]
        for number in (out, err, *kept[:2]):
            os.close(number)
    stderr = Path(str(work) + "2").read_text(errors="replace")
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    wrong = wrong or wrong_answer(case, code, stderr, seconds, peak)
    os.chdir(root)
    after = seen(root)
    if not wrong and any(CANARY in path for path in after if path not in before):
        wrong = "code was run"
    if not wrong and (moved := outside(before, after, case)):
        wrong = f"outside of the run: {moved[:5]}"
    new = {path for path in after if path not in before}
    if not wrong and code not in ("accepted",) and (left := [p for p in new if p.endswith(".partial")]):
        wrong = f"left behind: {left[:5]}"
    if not wrong and code == 2 and case.program in ("predict", "export", "distill", "forget") and new:
        wrong = f"refused, but written: {sorted(new)[:5]}"
    return Answer(case.kind, case.seed, code, wrong, seconds, peak, stderr.strip()[:300])


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
