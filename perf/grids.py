"""A study on this machine: how well two runs at a time use two cores, and that killing everything changes nothing.

    python perf/grids.py [--seeds 6] [--kills 5] [--ray]

The grid: ten methods on rotated digits, `--seeds` seeds. It is run three times: one run at a time; two at a time; and
two at a time while its processes are killed with signal 9, first benchmark.py, then the runs that it left behind,
`--kills` times, and the command repeated. Efficiency: sum of the times of the runs one at a time, each from the start
of its process to its end, / (2 × wall time of two at a time, from the start of benchmark.py to its report). The killed
study must have the results of the others to the bit, and no run that had finished may be touched again. With --ray it
is run once more, on a Ray cluster of two machines of one core each that are started on this one, of which one is killed
in the middle.
"""

import argparse
import contextlib
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from common import PROJECT, title

from records.lock import holder

GRID: dict[str, Any] = {
    "streams": ["config/dataset/rotated_digits.yaml"], "hyperparams": ["config/hyperparam/conv.yaml"], "samples": 10,
    "epochs": 20,
    "methods": ["zoo", "isolated", "finetune", "ewc", "si", "lwf", "cumulative", *(
        {"method": name, "memory_per_class": 2} for name in ("er", "der", "derpp"))],
}  # fmt: skip
# What depends on the clock alone.
_TIMES = re.compile(r"(?m)^.*(seconds|per_second).*$")


def start(folder: Path, store: str, *more: str) -> subprocess.Popen[bytes]:
    """benchmark.py on the grid in a folder."""
    command = [sys.executable, str(PROJECT / "benchmark.py"), "--config", "grid.yaml", "--store", store, *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, start_new_session=True)


def complete(folder: Path, store: str, *more: str) -> tuple[float, float]:
    """Seconds of a study from its beginning to its report, and the sum of those of its runs."""
    begin = time.perf_counter()
    study = start(folder, store, *more)
    told = study.communicate()[0].decode()
    if study.returncode:
        raise SystemExit(f"{store}: a run failed")
    return time.perf_counter() - begin, sum(map(float, re.findall(r", ([\d.]+) s; \d+ remain", told)))


def run_folders(store: Path) -> list[Path]:
    return sorted(path.parent for path in store.glob("*/config.yaml"))


def results(store: Path) -> dict[str, str]:
    """Checksums of what must not depend on how a run was computed, by run and file."""
    found = {}
    for run in run_folders(store):
        files = [*run.glob("members/*"), *run.glob("predictions/*"), run / "metrics.csv", run / "summary.json"]
        for path in files:
            content = path.read_bytes()
            if path.suffix == ".json":
                content = _TIMES.sub("", content.decode()).encode()
            found[f"{run.name}/{path.relative_to(run)}"] = hashlib.sha256(content).hexdigest()
    return found


def killed(folder: Path, store: str, kills: int, wall: float) -> None:
    """Run the study, kill it so many times, and print how many runs that had finished before were touched again."""
    draw, seen, workers_killed = random.Random(0), dict[Path, int](), 0
    for _ in range(kills):
        study = start(folder, store, "--jobs", "2")
        time.sleep(draw.uniform(0.4, 1.2) * wall / (kills + 1) + 3)
        study.kill()
        study.wait()
        runs = run_folders(folder / store)
        for owner in [holder(run) for run in runs]:
            if owner:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(str(owner["process"])), signal.SIGKILL)
                workers_killed += 1
        seen |= {path: path.stat().st_mtime_ns for run in runs if (path := run / "summary.json").exists()
                 and path not in seen}  # fmt: skip
    complete(folder, store, "--jobs", "2")
    touched = sum(path.stat().st_mtime_ns != before for path, before in seen.items())
    print(f"killed {kills} times, with {workers_killed} runs that it had left behind; {len(seen)} runs had finished by "
          f"then, of which {touched} were touched again")  # fmt: skip


def lost(folder: Path, store: str, wall: float) -> None:
    """Run the study on a Ray cluster of two machines of one core, of which one dies in the middle."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster  # an optional requirement

    own = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_log_monitor": False}
    cluster = Cluster(initialize_head=True, head_node_args={**own, "include_dashboard": False})
    try:
        doomed = cluster.add_node(**own)
        begin = time.perf_counter()
        study = start(folder, store, "--engine", "ray", "--address", cluster.address)
        time.sleep(wall / 2)
        done = sum((run / "summary.json").exists() for run in run_folders(folder / store))
        doomed.all_processes["raylet"][0].process.kill()
        study.communicate()
        finished = sum((run / "summary.json").exists() for run in run_folders(folder / store))
        print(f"on Ray, one of two machines killed when {done} runs had finished: {finished} finished, "
              f"{time.perf_counter() - begin:.0f} s, exit code {study.returncode}")  # fmt: skip
    finally:
        cluster.shutdown()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    print(title(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grid.yaml").write_text(yaml.safe_dump({**GRID, "seeds": options.seeds}))
        _, alone = complete(folder, "alone", "--jobs", "1", "--cpus", "1")
        wall, shared = complete(folder, "two", "--jobs", "2")
        count = len(run_folders(folder / "alone"))
        print(f"{count} runs, one at a time: {alone:.0f} s in all")
        print(f"two at a time: {shared:.0f} s in all, {wall:.0f} s wall, efficiency {alone / (2 * wall):.2f}")
        killed(folder, "killed", options.kills, wall)
        if options.ray:
            lost(folder, "lost", wall)
        alike = {name: results(folder / name) for name in ("alone", "two", "killed", *["lost"] * options.ray)}
        same = all(found == alike["alone"] for found in alike.values())
        print(f"{len(alike['alone'])} files of {', '.join(alike)}: the same to the bit: {same}")


if __name__ == "__main__":
    main()
