"""Time of looking at large studies: status and collect, with 100, 1,000 and 10,000 finished runs.

    python perf/scaling.py [--sizes 100,1000,10000] [--report 0]

A run of five tasks is made first, on a few handwritten digits; the others are copies of its tables, summary and
configuration with other seeds, learning rates and scores, ten seeds a cell. Every command is a new process; wall time.
--report 1 makes the reports of up to 500 runs, too; without it collect is given --no_report.
"""

import hashlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from common import PROJECT, line, modelzoo_run, options, title

from records.manifest import SUMMARY, Entry, Manifest, read_manifest
from studies.grid import load_grid
from studies.planned import PlannedRun
from studies.study_file import Study, study_job

SEEDS, EPISODES = 10, 5


def grid_of(runs: int, folder: Path) -> dict[str, Any]:
    """A grid of so many runs: two methods at many learning rates and weight decays."""
    cells = runs // SEEDS // 2
    rates, decays = max(1, cells // 10), min(10, cells)
    return {
        "streams": [str(PROJECT / "config/dataset/split_digits.yaml")],
        "hyperparams": [str(PROJECT / "config/hyperparam/conv.yaml")],
        "methods": ["isolated", "finetune"],
        "vary": {
            "hp.lr": [round(0.1 / (1 + n), 6) for n in range(rates)],
            "hp.l2_reg": [(1 + n) / 1e6 for n in range(decays)],
        },
        "seeds": SEEDS, "samples": 2, "epochs": 1, "threads": 1, "data_dir": str(folder / "data"),
    }  # fmt: skip


def copied(model: Path, run: PlannedRun, number: int) -> None:
    """A finished run like `model`, with the configuration of `run` and another score."""
    config = (model / "config.yaml").read_text()
    hp, own = run.config.hp, run.config
    texts = {"\nseed: 0\n": f"\nseed: {own.seed}\n", "\n  lr: 0.01\n": f"\n  lr: {hp.lr}\n",
             "\n  l2_reg: 1.0e-05\n": f"\n  l2_reg: {yaml.safe_dump(hp.l2_reg).split()[0]}\n",
             "\nmethod: finetune\n": f"\nmethod: {own.method}\n"}  # fmt: skip
    for old, new in texts.items():
        config = config.replace(old, new)
    summary = json.loads((model / SUMMARY).read_text()) | {"method": own.method, "seed": own.seed}
    summary["avg_acc_final"] = 0.5 + 0.4 * (number * 0.618 % 1)
    files = {"config.yaml": config.encode(), SUMMARY: json.dumps(summary).encode()}
    files |= {name: (model / name).read_bytes() for name in ("metrics.csv", "episodes.csv")}
    files |= {path.relative_to(model).as_posix(): path.read_bytes() for path in model.glob("members/*.json")}
    (run.directory / "members").mkdir(parents=True)
    for name, content in files.items():
        (run.directory / name).write_bytes(content)
    manifest = read_manifest(model)
    assert manifest is not None
    entries = {name: Entry(len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}
    Manifest(EPISODES, manifest.members, manifest.seconds, {**manifest.files, **entries}).write(run.directory)


def made(store: Path, model: Path, runs: int) -> float:
    """Fill a store; seconds that planning the grid takes."""
    store.mkdir()
    path = store.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(grid_of(runs, store.parent)))
    begin = time.perf_counter()
    grid = load_grid(str(path), store)
    seconds = time.perf_counter() - begin
    for number, run in enumerate(grid.runs):
        copied(model, run, number)
    command = f"python benchmark.py --config {path} --store {store}"
    jobs = tuple(study_job(job) for job in grid.jobs)
    Study(command, str(path), False, grid.program, "local", jobs).write(store)
    return seconds


def timed(command: str, store: Path, *more: str) -> float:
    """Seconds of a command of benchmark.py."""
    begin = time.perf_counter()
    words = [sys.executable, str(PROJECT / "benchmark.py"), command, "--store", str(store), *more]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=PROJECT)
    return time.perf_counter() - begin


def main() -> None:
    given = options(__doc__, sizes="100,1000,10000", report=0)
    sizes: Sequence[int] = [int(size) for size in given.sizes.split(",")]
    print(title(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), Path(name, "model")
        (grid := load_grid_of_model(folder))
        modelzoo_run([*grid.arguments[:-1], f"--run_dir={model}"])
        line("runs", "planning, s", "status, s", "collect, s", *["with report, s"] * bool(given.report))
        for size in sizes:
            store = folder / f"store{size}"
            planning = made(store, model, size)
            seconds = [timed("status", store), timed("collect", store, "--no_report")]
            seconds += [timed("collect", store)] if given.report else []
            line(str(size), *(f"{each:.2f}" for each in (planning, *seconds)))


def load_grid_of_model(folder: Path) -> PlannedRun:
    """The run that the others are copies of."""
    path = folder / "model.yaml"
    content = grid_of(2 * SEEDS, folder) | {"vary": {}, "methods": ["finetune"], "seeds": 1}
    path.write_text(yaml.safe_dump(content))
    return next(itertools.chain(load_grid(str(path), folder).runs))


if __name__ == "__main__":
    main()
