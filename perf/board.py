"""The cost of TensorBoard's file: imports, and each episode of streams of 10 and 100 tasks.

Nothing is trained: measurements are drawn at random. Processor time, medians over the last ten episodes.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.objectives import Scored
from evaluation.measurements import TASK_INCREMENTAL, Measurement
from records.configuration import hyperparameter_kinds
from records.monitor import EpisodeFacts, RunStart
from records.tensorboard import TensorBoard


class Nowhere:
    """A file that only counts bytes."""

    size = 0

    def write(self, content: bytes) -> None:
        self.size += len(content)


def imports() -> float:
    """Milliseconds that the first event of a run spends on imports, after those of the driver."""
    modules = "compat.proto.event_pb2", "plugins.custom_scalar.layout_pb2", "plugins.hparams.plugin_data_pb2"
    program = "import time, modelzoo; begin = time.perf_counter(); "
    program += f"import {', '.join(f'tensorboard.{name}' for name in modules)}; print(time.perf_counter() - begin)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return 1000 * float(done.stdout)


def episode(number: int) -> tuple[EpisodeFacts, list[Measurement]]:
    """Random measurements of an episode of a zoo that keeps all training examples."""
    weights = dict.fromkeys(range(1, number), 1 / max(1, number - 1))
    facts = EpisodeFacts(number, range(1, number + 1), weights, 1, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1 << 30)
    rows = [Measurement(number, number, number, task, f"rotated by {task}", split, "", TASK_INCREMENTAL,
                        {name: Scored(random.random(), None, 100) for name in ("accuracy", "loss", "ece")})
            for task in range(1, number + 1) for split in ("test", "train")]  # fmt: skip
    return facts, rows


def measure(tasks: int) -> tuple[float, float]:
    """Milliseconds and kilobytes of an episode at the end of a stream."""
    log = Nowhere()
    board = TensorBoard(lambda name: log, hyperparameter_kinds())
    board.run_begins(RunStart([], {"continual": True, "higher_is_better": True}, {}, tasks, [0.5] * tasks, [], []))
    times, before = [], 0
    for number in range(1, tasks + 1):
        board.episode_begins(number, tasks)
        facts, rows = episode(number)
        before, begin = log.size, time.process_time()
        board.episode_ends(facts, rows)
        times.append(time.process_time() - begin)
    return 1000 * statistics.median(times[-10:]), (log.size - before) / 1000


if __name__ == "__main__":
    print(f"imports: {statistics.median(imports() for _ in range(5)):.0f} ms")
    for tasks in (10, 100):
        milliseconds, kilobytes = measure(tasks)
        print(f"{tasks} tasks: {milliseconds:.1f} ms and {kilobytes:.0f} kB an episode at the end")
