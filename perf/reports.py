"""Time and size of reports: of a run of 20 tasks and 20 members, and of 18 methods with five seeds.

    python perf/reports.py

The runs are made first, with one epoch on a few handwritten digits. Each report is a new process; wall time.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from common import PROJECT, line, modelzoo_run, title

from methods import METHODS

LARGE = [[10 * turn + digit for digit in range(10)] for turn in range(20)]
SMALL = ["--samples", "3", "--epochs", "1", "--threads", "1", "--continual"]


def reported(runs: Path) -> tuple[float, float]:
    """Seconds and megabytes of a report."""
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, PROJECT / "report.py", runs], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - begin, Path(done.stdout.strip()).stat().st_size / 1e6


def main() -> None:
    print(title(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        large = folder / "large.yaml"
        large.write_text(yaml.safe_dump({"dataset": "rotated_digits", "tasks": LARGE}))
        modelzoo_run([*SMALL, "--data_config", str(large), "--tasks_per_round", "20", "--run_dir", f"{folder}/large"])
        methods = [name for name in METHODS if name != "joint"]
        for method, seed in itertools.product(methods, range(5)):
            kept = ["--memory_per_class", "2"] if "memory_per_class" in METHODS[method].options else []
            given = [*SMALL, "--method", method, "--seed", str(seed), *kept]
            modelzoo_run([*given, "--run_dir", f"{folder}/many/{method}-{seed}"])
        line("report", "seconds", "MB")
        for what, runs in (("20 tasks, 20 members", "large"), (f"{len(methods)} methods, 5 seeds", "many")):
            seconds, size = reported(folder / runs)
            line(what, f"{seconds:.1f}", f"{size:.2f}")


if __name__ == "__main__":
    main()
