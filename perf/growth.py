"""Cost of an episode in a large zoo, and the memory of a run.

    python perf/growth.py [--device cuda] [--tasks 100]

A stream of 100 tasks, each another permutation of the pixels of 28x28 images; members of five tasks, so all are equally
large. Seconds are wall time from one episode to the next: training, evaluation, files, TensorBoard; medians of ten
episodes. Training is the same work in every episode: the column `corrected` divides by its changes, which are those of
the machine.

Memory is the peak of the process above that of the libraries. It is compared with a run of five tasks, which holds the
data once and trains one full member, plus the cached probabilities of the other tasks.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import common  # before torch: it decides how threads wait
import torch
from common import MNIST, Case, modelzoo_run, use, write_configs

import modelzoo
from datasets import build_stream
from evaluation.measurements import Measurement
from evaluation.members import PredictionCache
from records.console import Console
from records.invocation import parse
from records.monitor import EpisodeFacts
from utils.compute import peak_memory, pick_device

CASE: Case = MNIST._replace(train=20_000, test=1_000)
SAMPLES = 40  # a class and task: 400 images a task, 2,000 a member
WINDOW = 10


class EpisodeRecorder(Console):
    """Records the end of each episode, the peak memory by then, and its seconds of training."""

    marks: list[tuple[float, int, float]]

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Measurement]) -> None:
        self.marks.append((time.perf_counter(), facts.peak_memory_bytes, facts.train_seconds))


def measure(tasks: int, device: str) -> None:
    """Print the figures of a run as JSON; called in a new process, as peak memory never falls."""
    use(CASE, permuted=True)
    marks: list[tuple[float, int, float]] = []
    EpisodeRecorder.marks = marks
    with tempfile.TemporaryDirectory() as folder:
        stream = [[10 * task + digit for digit in range(10)] for task in range(tasks)]
        options = [
            *write_configs(Path(folder), CASE, stream), "--continual", "--samples", str(SAMPLES), "--epochs", "1",
            "--quiet", "--device", device, "--run_dir", f"{folder}/run",
        ]  # fmt: skip
        torch.zeros(1, device=device)
        before = peak_memory(pick_device(device))
        caches: list[PredictionCache] = []
        make = PredictionCache.__init__

        def remember(cache: PredictionCache) -> None:
            make(cache)
            caches.append(cache)

        with patch.object(modelzoo, "Console", EpisodeRecorder), patch.object(PredictionCache, "__init__", remember):
            modelzoo_run(options)
        held = sum(build_stream(parse(options).config.data, 0, pick_device(device)).held().values())
    cached = sum(mean.nbytes for mean, _, _ in caches[0]._means.values())
    print(json.dumps({"before": before, "marks": marks, "data": held, "cached": cached}))


def main() -> None:
    """Print two tables."""
    parser = common.parser(__doc__, repeats=None)
    parser.add_argument("--tasks", type=int, default=100, help="length of the stream (default: 100)")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = str(pick_device(options.device))
    if options.measure:
        measure(options.measure, device)
        return
    few, many = (figures(tasks, device) for tasks in (5, options.tasks))
    seconds = [b[0] - a[0] for a, b in zip(many["marks"], many["marks"][1:], strict=False)]
    print(f"Growth: {options.tasks} tasks, members of 2,000 images. {common.title(torch.device(device))}")
    training = [mark[2] for mark in many["marks"][1:]]
    print("episode     seconds  ratio  in training  ratio  corrected  memory, MB")
    first: list[float] = []
    for episode in sorted({10, options.tasks // 2, options.tasks}):
        last = min(episode + WINDOW // 2, len(seconds))
        now = [statistics.median(column[last - WINDOW : last]) for column in (seconds, training)]
        first = first or now
        whole, part = now[0] / first[0], now[1] / first[1]
        memory = (many["marks"][episode - 1][1] - many["before"]) / 1e6
        line = f"{episode:<10} {now[0]:>8.3f} {whole:>6.3f} {now[1]:>12.3f} {part:>6.3f} {whole / part:>10.3f}"
        print(f"{line} {memory:>11.1f}")
    used, once = (run["marks"][-1][1] - run["before"] for run in (many, few))
    allowed = once + many["cached"] - few["cached"]
    print(f"{'data held':<40} {many['data'] / 1e6:>8.1f} MB")
    print(f"{'cached probabilities':<40} {many['cached'] / 1e6:>8.1f} MB")
    print(f"{'data once, one member, cached':<40} {allowed / 1e6:>8.1f} MB")
    print(f"{'highest memory of the run':<40} {used / 1e6:>8.1f} MB   {used / allowed:.2f} of it")


def figures(tasks: int, device: str) -> dict:
    """The figures of a run, measured in a new process."""
    command = [sys.executable, __file__, "--measure", str(tasks), "--device", device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
