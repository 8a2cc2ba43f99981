"""What interrupts runs of days, many times over: kills, signals, a full disk, a second process.

    python -m tests.fuzz.torture kills --cases 100
    python -m tests.fuzz.torture derived --cases 36   (forget.py and distill.py, which are repeated, not resumed)
    python -m tests.fuzz.torture signals --cases 50
    python -m tests.fuzz.torture disk --cases 50      (as root: on small file systems; else with a limit on file sizes)
    python -m tests.fuzz.torture together --cases 25

In every case a small run of some method is interrupted at moments drawn at random, resumed until it is
finished, and compared with a run that nothing interrupted: metrics.csv, members and predictions bit for bit, and no
file may be left over. A case depends on its number only; a failure prints it, `--only` repeats it.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import tensorboard.compat.proto.event_pb2  # noqa: F401
import torch
import torch._dynamo
from tensorboard.plugins.custom_scalar import layout_pb2  # noqa: F401
from tensorboard.plugins.hparams import plugin_data_pb2  # noqa: F401

import distill
import forget
import modelzoo
from records.lock import LOCK
from records.manifest import verify

PROJECT = Path(__file__).resolve().parents[2]
METHODS = {
    "zoo": ["--tasks_per_round", "3"],
    "er": ["--memory_per_class", "2"],
    "ewc": [],
    "packnet": [],
    "derpp": ["--memory", "20"],
    "isolated": [],
    "zoo-small": ["--method", "zoo", "--memory", "30"],
    "wsn": [],
    "gem": ["--memory_per_class", "2"],
    "si": [],
    "lwf": [],
    "gpm": [],
    "cumulative": [],
}
DERIVED = {
    "forget": (forget, ["--task", "10"]),
    "forget --retrain": (forget, ["--task", "10", "--retrain", "--quiet"]),
    "distill": (distill, ["--epochs", "3", "--quiet"]),
}
MINUTES = ["0", "0.001", "10"]  # every epoch, every 60 ms, never in so short a run


@dataclass(frozen=True)
class Run:
    """A run that is interrupted, and what it must become."""

    arguments: tuple[str, ...]
    reference: Path
    seconds: float  # of the reference
    program: ModuleType = modelzoo
    again: tuple[str, ...] = ("--resume",)  # the options that resume it; none repeats the command


class Reference:
    """Runs that nothing interrupts; each is made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Run] = {}

    def run(self, name: str, minutes: str) -> Run:
        stream = str(PROJECT / "config/dataset/rotated_digits.yaml")
        given = ["--data_config", stream, "--samples", "3", "--epochs", "3", "--continual", "--quiet"]
        given += ["--method", name, *METHODS[name], "--checkpoint_minutes", minutes]
        key = f"{name}-{minutes}"
        return self._run(key, Run(tuple(given), self._folder / key, 0.0))

    def derived(self, name: str) -> Run:
        """What a program makes of a finished zoo."""
        program, given = DERIVED[name]
        zoo = str(self.run("zoo", "10").reference)
        return self._run(name, Run((zoo, *given), self._folder / name, 0.0, program, ()))

    def _run(self, key: str, run: Run) -> Run:
        if key not in self._made:
            begin = time.perf_counter()
            assert finish(start(run, run.reference, again=False)) == 0, log(run.reference.parent)
            self._made[key] = replace(run, seconds=time.perf_counter() - begin)
        return self._made[key]


def start(run: Run, path: Path, folder: Path | None = None, limit: int | None = None, *, again: bool = True) -> int:
    """A process that makes a run, forked because importing torch takes longer; what it says goes to log."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        log = os.open((folder or path.parent) / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        code = run.program.main([*run.arguments, *(run.again if again else ()), "--run_dir", str(path)])
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(child: int) -> int:
    """The exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(run: Path) -> dict[str, bytes | None]:
    """All files by name; of those with times in them only that they are there."""
    timed = ("certificate.json", "config.yaml", "episodes.csv", "manifest.json", "summary.json")
    paths = [path for path in run.rglob("*") if not path.name.startswith("events.")]
    return {
        path.relative_to(run).as_posix(): None if path.name in timed or path.is_dir() else path.read_bytes()
        for path in paths
    }


def compare(run: Path, reference: Path) -> None:
    """
    Raises:
        AssertionError: something is different, or left over.
    """
    here, there = contents(run), contents(reference)
    assert here.keys() == there.keys(), f"files: {sorted(here.keys() ^ there.keys())}"
    different = [name for name in here if here[name] != there[name]]
    assert not different, f"different: {different}"
    wrong, others = verify(run)
    assert not wrong, wrong
    assert not others, others


def kills(run: Run, folder: Path, rng: random.Random) -> str:
    """kill -9, up to four times."""
    path, moments = folder / "run", []
    for _ in range(rng.randint(1, 4)):
        child = start(run, path)
        moments.append(rng.uniform(0, run.seconds))
        time.sleep(moments[-1])
        os.kill(child, signal.SIGKILL)
        finish(child)
    code = finish(start(run, path))
    if code == 2 and not run.again and "already holds a run" in log(folder):  # it was killed after it had finished
        (path / LOCK).unlink(missing_ok=True)
    else:
        assert code == 0, log(folder)
    return "killed after " + ", ".join(f"{moment:.2f}" for moment in moments) + " s"


def signals(run: Run, folder: Path, rng: random.Random) -> str:
    """SIGTERM or SIGINT: the run says how to go on, and then does."""
    path, code, stops = folder / "run", 1, 0
    for _ in range(4):
        child = start(run, path)
        number = rng.choice([signal.SIGTERM, signal.SIGINT])
        time.sleep(rng.uniform(0, run.seconds))
        os.kill(child, number)
        code = finish(child)
        told = log(folder)
        if code == 128 + number and "resume with" in told:
            assert (
                told
                == f"modelzoo.py: stopped by {number.name}; resume with: python modelzoo.py --resume --run_dir {path}\n"
            )
            stops += 1
        else:  # before training, or when it was over
            assert code in (0, 128 + number, -number), (code, told)
            assert "Traceback" not in told, told
        if code == 0:
            break
    assert finish(start(run, path)) == 0, log(folder)
    return f"stopped {stops} times"


def disk(run: Run, folder: Path, rng: random.Random) -> str:
    """The disk is full at some moment; there is room again later."""
    path = folder / "run"
    needed = sum(entry.stat().st_size for entry in run.reference.rglob("*"))
    if os.geteuid() == 0:
        path = folder / "small" / "run"
        path.parent.mkdir()
        size = rng.randint(20_000, 2 * needed)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path.parent)], check=True)
        try:
            code = finish(start(run, path, folder, again=False))
            told = log(folder)
            subprocess.run(["mount", "-o", "remount,size=1g", str(path.parent)], check=True)
            check_told(code, told)
            assert finish(start(run, path, folder)) == 0, log(folder)
            compare(path, run.reference)
            shutil.copytree(path, folder / "run")
        finally:
            subprocess.run(["umount", str(path.parent)], check=True)
        return f"{size:,} bytes: exit code {code}"
    limit = rng.randint(100, 600_000)
    code = finish(start(run, path, folder, limit, again=False))
    check_told(code, log(folder))
    assert finish(start(run, path)) == 0, log(folder)
    return f"files up to {limit:,} bytes: exit code {code}"


def check_told(code: int, told: str) -> None:
    if code:
        assert code in (1, 2), (code, told)
        assert len(told.splitlines()) == 1, told
        assert "cannot be written" in told, told


def together(run: Run, folder: Path, rng: random.Random) -> str:
    """Two processes at once: one has the directory, the other says who."""
    path = folder / "run"
    children = []
    for _ in range(2):
        children.append(start(run, path))
        time.sleep(rng.choice([0, 0, rng.uniform(0, 1.2 * run.seconds)]))
    codes = sorted(finish(child) for child in children)
    assert codes in ([0, 2], [0, 0]), (codes, log(folder))  # both if the first was over when the second began
    return f"exit codes {codes}"


def log(folder: Path) -> str:
    """What the last process said."""
    return (folder / "log").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways: dict[str, Callable[[Run, Path, random.Random], str]] = {
        "kills": kills, "derived": kills, "signals": signals, "disk": disk, "together": together,
    }  # fmt: skip
    parser.add_argument("way", choices=ways)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat one case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failures = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "references").mkdir()
        reference = Reference(Path(place) / "references")
        cases = range(options.first, options.first + options.cases) if options.only is None else [options.only]
        for number in cases:
            rng = random.Random(f"{options.way}/{number}")
            names = list(DERIVED if options.way == "derived" else METHODS)
            name, minutes = names[number % len(names)], rng.choice(MINUTES)
            folder = Path(place) / f"case{number}"
            folder.mkdir()
            run = reference.derived(name) if name in DERIVED else reference.run(name, minutes)
            try:
                told = ways[options.way](run, folder, rng)
                compare(folder / "run", run.reference)
            except AssertionError as error:
                told = f"FAILED: {error}"
                failures.append(number)
            print(f"{options.way} {number}: {name}, checkpoints every {minutes} minutes; {told}", flush=True)
            shutil.rmtree(folder)
    passed = len(cases) - len(failures)
    print(
        f"{passed} of {len(cases)} bit-identical in {time.perf_counter() - begin:.0f} s; failed: {failures or 'none'}"
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
