"""How long reports take, and how large they are: a run of 20 tasks and 20 members, and 18 methods with five seeds.

    python perf/reports.py

The runs are real ones of one epoch on a few handwritten digits, made first. Each report is a process of its own, as
from the command line; wall time.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from common import PROJECT, title

import modelzoo
from methods import METHODS
from utils.compute import pick_device

LARGE = [[10 * turn + digit for digit in range(10)] for turn in range(20)]
SMALL = ["--samples", "3", "--epochs", "1", "--quiet", "--threads", "1"]


def made(folder: Path, *options: str) -> None:
    """One run."""
    with contextlib.redirect_stdout(io.StringIO()):
        if code := modelzoo.main([*SMALL, *options, "--run_dir", str(folder)]):
            raise SystemExit(code)


def reported(*runs: Path) -> tuple[float, float]:
    """Seconds and megabytes of a report."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(PROJECT / "report.py"), *map(str, runs)], check=True, capture_output=True, text=True
    )
    return time.perf_counter() - begin, Path(done.stdout.strip()).stat().st_size / 1e6


def main() -> None:
    """Print a table."""
    print(title(pick_device("cpu")))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "large.yaml").write_text(yaml.safe_dump({"dataset": "rotated_digits", "tasks": LARGE}))
        made(folder / "large", "--data_config", str(folder / "large.yaml"), "--continual", "--tasks_per_round", "20")
        methods = [name for name in METHODS if name != "joint"]
        for name, seed in itertools.product(methods, range(5)):
            kept = ["--memory_per_class", "2"] if "memory_per_class" in METHODS[name].options else []
            mode = ["--continual", "--method", name, "--seed", str(seed), *kept]
            made(folder / f"many/{name}-{seed}", *mode)
        print("report                          seconds     MB")
        for what, runs in (("20 tasks, 20 members", [folder / "large"]),
                           (f"{len(methods)} methods, 5 seeds", [folder / "many"])):  # fmt: skip
            seconds, size = reported(*runs)
            print(f"{what:<30} {seconds:>8.1f} {size:>6.2f}")


if __name__ == "__main__":
    main()
