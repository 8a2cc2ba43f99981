"""Cost of an episode in a large zoo, and the memory of a run.

    python perf/growth.py [--device cuda] [--tasks 100]

A stream of 100 tasks, each another permutation of the pixels of 28x28 images; members of five tasks, so all are equally
large. Seconds are wall time from one episode to the next: training, evaluation, files, TensorBoard; medians of ten
episodes. Training is the same work in every episode: the column `corrected` divides by its changes, which are those of
the machine.

Memory is the peak of the process above that of the libraries. It is compared with a run of five tasks, which holds the
data once and trains one full member, plus the cached probabilities of the other tasks.
"""

import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common  # before torch: it decides how threads wait
import torch
from common import MNIST, line, modelzoo_run, use

import modelzoo
from evaluation.measurements import Measurement
from records.monitor import EpisodeFacts, Monitors, RunMonitor
from records.session import Session
from utils.compute import peak_memory, pick_device

CASE = MNIST._replace(train=20_000, test=1_000)
SAMPLES = 40  # a class and task: 400 images a task, 2,000 a member
WINDOW = 10


class EpisodeRecorder(RunMonitor):
    """Records the end of each episode, the peak memory by then, and its seconds of training."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, int, float]] = []

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Measurement]) -> None:
        self.marks.append((time.perf_counter(), facts.peak_memory_bytes, facts.train_seconds))


def measure(tasks: int, device: str) -> dict[str, Any]:
    """The figures of a run; called in a new process, as peak memory never falls."""
    recorder, learn = EpisodeRecorder(), modelzoo.learn
    figures: dict[str, Any] = {}

    def recorded(session: Session, monitor: RunMonitor) -> None:
        learn(session, Monitors([monitor, recorder]))
        figures["data"] = sum(session.stream.held().values())
        figures["cached"] = sum(mean.nbytes for mean, _ in session.method.cache._means.values())  # type: ignore[attr-defined]

    torch.zeros(1, device=device)
    before = peak_memory(pick_device(device))
    with tempfile.TemporaryDirectory() as folder, patch.object(modelzoo, "learn", recorded):
        configs = use(Path(folder), CASE, [[10 * task + digit for digit in range(10)] for task in range(tasks)])
        modelzoo_run([*configs, "--continual", "--samples", str(SAMPLES), "--epochs", "1", "--device", device,
                      "--run_dir", f"{folder}/run"])  # fmt: skip
    return {"before": before, "marks": recorder.marks, **figures}


def main() -> None:
    options = common.options(__doc__, device="auto", tasks=100)
    runs = []
    for tasks in (5, options.tasks):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            runs.append(pool.submit(measure, tasks, str(options.device)).result())
    few, many = runs
    print(f"Growth: {options.tasks} tasks, members of 2,000 images. {common.title(options.device)}")
    ends, memory, training = zip(*many["marks"], strict=True)
    columns = [after - before for before, after in itertools.pairwise(ends)], training[1:]
    line("episode", "seconds", "ratio", "in training", "ratio", "corrected", "memory, MB")
    first: list[float] = []
    for episode in sorted({10, options.tasks // 2, options.tasks}):
        last = min(episode + WINDOW // 2, options.tasks - 1)
        now = [statistics.median(column[last - WINDOW : last]) for column in columns]
        first = first or now
        whole, part = now[0] / first[0], now[1] / first[1]
        cells = f"{now[0]:.3f}", f"{whole:.3f}", f"{now[1]:.3f}", f"{part:.3f}", f"{whole / part:.3f}"
        line(episode, *cells, f"{(memory[episode - 1] - many['before']) / 1e6:.1f}")
    used, once = (run["marks"][-1][1] - run["before"] for run in (many, few))
    allowed = once + many["cached"] - few["cached"]
    line("data held", f"{many['data'] / 1e6:.1f} MB")
    line("cached probabilities", f"{many['cached'] / 1e6:.1f} MB")
    line("data once, one member, cached", f"{allowed / 1e6:.1f} MB")
    line("highest memory of the run", f"{used / 1e6:.1f} MB", f"{used / allowed:.2f} of it")


if __name__ == "__main__":
    main()
