"""What people see of a run of train_task.py: lines and a progress bar on the terminal, and TensorBoard."""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from evaluation.measurements import ANYTIME, Measurement
from records.monitor import RunStart
from records.tensorboard import TensorBoard, scalars_of
from training.loop import Clock
from training.monitor import Monitor
from utils.errors import one_line


class TaskBoard(TensorBoard):
    """The event file of one run; its step is the number of gradient steps."""

    def trained(self, clock: Clock, loss: float, lr: float) -> None:
        """The mean training loss of the last examples, and the learning rate in their last step."""
        self._write(clock.steps, scalars_of({"train/loss": loss, "train/learning_rate": lr}))

    def measured(self, rows: Sequence[Measurement]) -> None:
        """What was measured after some step."""
        for row in rows:
            begin = row.split if row.scenario == ANYTIME or row.is_test else row.scenario
            end = f"/{row.slice}" if row.slice else ""
            self._write(row.step, scalars_of({f"{begin}_{name}{end}": s.value for name, s in row.scores.items()}))


class TaskConsole:
    """Prints the header, progress with the remaining time, a line for each evaluation, and the final table."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: tqdm[object] = tqdm(disable=True)  # it is not shown

    def begins(self, run: RunStart, seeds: Sequence[int], rates: Sequence[float]) -> None:
        """Print what is trained: one network for each of the seeds and rates side by side."""
        together = [
            (name, f"{', '.join(values)}, trained together")
            for name, found in (("seeds", seeds), ("rates", rates))
            if len(values := list(dict.fromkeys(map(str, found)))) > 1
        ]
        header = [*run.header, *together]
        width = max(len(name) for name, _ in header)
        for name, value in header:
            self._say(f"{name:<{width}}  {one_line(value)}")
        self._say()

    def training(self, total: int, done: int) -> None:
        """Show progress from `done` of `total` examples on."""
        self._total, self._done, self._begin = total, done, time.perf_counter()
        self._first = done
        hidden = self._quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit=" examples", unit_scale=True, leave=False, disable=hidden)

    def step(self, examples: int) -> None:
        """Count the examples of a step."""
        self._done += examples
        self._bar.update(examples)

    def measured(self, clock: Clock, rows: Sequence[Measurement]) -> None:
        """A line for an evaluation of one or several networks: the best one, and the range."""
        values = [row.main for row in rows]
        metric = f"{rows[0].split} {rows[0].metric}"
        if len(values) == 1:
            shown = f"{metric} {values[0]:.4f}"
        else:
            low, high = min(values), max(values)
            shown = f"{metric} {low:.4f} to {high:.4f}, median {statistics.median(values):.4f}"
        seconds = time.perf_counter() - self._begin
        trained = self._done - self._first
        left = f", {seconds * (self._total - self._done) / trained:,.0f} s left" if trained else ""
        self._say(f"{clock.steps:>12,} steps  {clock.examples:>15,} examples  {shown}  {seconds:,.0f} s{left}")

    def ends(self, text: str) -> None:
        """Print the final table."""
        print(text, flush=True)

    def close(self) -> None:
        """Remove the progress bar."""
        self._bar.close()

    def _say(self, line: str = "") -> None:
        if not self._quiet:
            self._bar.clear()
            print(line, flush=True)


class TaskMonitor(Monitor):
    """Tells the terminal and the event files of a group of runs what happens."""

    def __init__(self, console: TaskConsole, boards: Sequence[TaskBoard]) -> None:
        self.console, self._boards = console, boards
        self.clock: Callable[[], Clock] = lambda: Clock(0, 0, None)
        self.losses: Callable[[], Sequence[float]] | None = None  # of several networks

    def step(self, images: int) -> None:
        self.console.step(images)

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        own = [loss] if self.losses is None else self.losses()
        for board, value in zip(self._boards, own, strict=True):
            board.trained(self.clock(), value, lr)

    def measured(self, by_run: Sequence[Sequence[Measurement]]) -> None:
        """What was measured of each network at one time; nothing of one that has failed."""
        for board, rows in zip(self._boards, by_run, strict=True):
            board.measured(rows)
        self.console.measured(self.clock(), [rows[0] for rows in by_run if rows])

    def finished(self, number: int, rows: Sequence[Measurement], summary: dict[str, Any]) -> None:
        """The results of one run."""
        self._boards[number].measured(rows)
        self._boards[number].run_measured(summary)

    def close(self) -> None:
        """The runs are over or failed."""
        self.console.close()
        for board in self._boards:
            board.close()
