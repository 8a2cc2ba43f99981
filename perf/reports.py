"""Time and size of reports: of a run of 20 tasks and 20 members, and of 18 methods with five seeds.

    python perf/reports.py

The runs are made first, with one epoch on a few handwritten digits. Each report is a new process; wall time.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from common import PROJECT, modelzoo_run, title

from methods import METHODS
from utils.compute import pick_device

LARGE = [[10 * turn + digit for digit in range(10)] for turn in range(20)]
SMALL = ["--samples", "3", "--epochs", "1", "--quiet", "--threads", "1"]


def made(folder: Path, *options: str) -> None:
    """Make one run."""
    modelzoo_run([*SMALL, *options, "--run_dir", str(folder)])


def reported(*runs: Path) -> tuple[float, float]:
    """Seconds and megabytes of a report."""
    begin = time.perf_counter()
    command = [sys.executable, str(PROJECT / "report.py"), *map(str, runs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - begin, Path(done.stdout.strip()).stat().st_size / 1e6


def main() -> None:
    """Print a table."""
    print(title(pick_device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.yaml").write_text(yaml.safe_dump({"dataset": "rotated_digits", "tasks": LARGE}))
        made(folder / "large", "--data_config", str(folder / "large.yaml"), "--continual", "--tasks_per_round", "20")
        methods = [name for name in METHODS if name != "joint"]
        for method, seed in itertools.product(methods, range(5)):
            kept = ["--memory_per_class", "2"] if "memory_per_class" in METHODS[method].options else []
            mode = ["--continual", "--method", method, "--seed", str(seed), *kept]
            made(folder / f"many/{method}-{seed}", *mode)
        print("report                          seconds     MB")
        for what, runs in (("20 tasks, 20 members", [folder / "large"]),
                           (f"{len(methods)} methods, 5 seeds", [folder / "many"])):  # fmt: skip
            seconds, size = reported(*runs)
            print(f"{what:<30} {seconds:>8.1f} {size:>6.2f}")


if __name__ == "__main__":
    main()
