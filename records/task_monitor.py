"""What people see of a run of train_task.py: lines and a progress bar on the terminal, and TensorBoard."""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets.task import DEV, HELD_OUT, TEST, Table
from evaluation.measurements import ANYTIME, Measurement
from evaluation.watching import Watching
from records.task_summary import in_ranges
from records.tensorboard import TensorBoard, board_values, scalars_of
from training.loop import Clock, Training
from training.monitor import Monitor
from utils.compute import describe_device
from utils.errors import one_line
from utils.machine import notice

_SPLITS = {
    DEV: "development examples",
    HELD_OUT: "held-out examples",
    TEST: "test examples, as none were held out: they cannot choose a checkpoint or a seed",
}
_ALL, _SPARSE = 100, 1.02  # epochs that all have events; then the ratio of one to the next that has
_SILENCE = 10.0  # seconds without a line while networks are evaluated
_ENOUGH = 2.0  # seconds of gradient steps from which the remaining time is told


def task_header(
    watching: Watching, network: str, training: Training, seeds: Sequence[int], rates: Sequence[float], folder: Path,
    evaluate_only: bool,
) -> list[tuple[str, str]]:  # fmt: skip
    """Names and values that describe runs to people, before they are trained."""
    task, spec, compute = watching.task, watching.spec, watching.compute
    source = f"{len(task.train):,} training examples" if isinstance(task.train, Table) else "fresh examples"
    shape, split = " x ".join(map(str, spec.input_shape)), watching.split
    watched = f"{len(task.splits[split]):,} {_SPLITS[split]}"
    total, now = training.clock_after(0 if evaluate_only else training.length), training.clock
    several = {"seeds": in_ranges(sorted(set(seeds))), "rates": ", ".join(dict.fromkeys(map(str, rates)))}
    together = [
        (name, f"{several[name]}, trained together")
        for name, found in (("seeds", seeds), ("rates", rates)) if len(set(found)) > 1
    ]  # fmt: skip
    precision = "bf16" if compute.bf16 else "fp32"
    return [
        ("task", f"{task.name}: {shape} inputs, {task.num_outputs} outputs, {source}"),
        ("watched", watched),
        ("network", network),
        ("length", f"{total.steps:,} steps, {total.examples:,} examples"),
        *(together or [("seed", str(seeds[0]))]),
        ("device", f"{describe_device(compute.device)}, {precision}"),
        *([("machine", text)] if (text := notice()) else []),
        ("folder", f"{folder}, resumed after {now.steps:,} steps" if now.steps else str(folder)),
    ]


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
            self._write(
                row.step, scalars_of({f"{begin}_{name}{end}": value for name, value in board_values(row).items()})
            )


class TaskConsole:
    """Prints the header, progress with the remaining time, a line for each evaluation, and the final table."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: tqdm[object] = tqdm(disable=True)  # it is not shown
        self._told = time.perf_counter()  # when the last line was printed

    def begins(self, header: Sequence[tuple[str, str]]) -> None:
        """Print what is trained, names and values."""
        width = max(len(name) for name, _ in header)
        for name, value in header:
            self._say(f"{name:<{width}}  {one_line(value)}")
        self._say()

    def training(self, training: Training, evaluate_only: bool) -> None:
        """Show progress from the training's present state on."""
        total = 0 if evaluate_only else training.clock_after(training.length).examples
        done = training.clock.examples
        self._training, self._begin = training, time.perf_counter()
        self._first, self._asked = training.stats, 0
        hidden = self._quiet or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit=" examples", unit_scale=True, leave=False, disable=hidden)

    def step(self, examples: int) -> None:
        """Count the examples of a step."""
        self._bar.update(examples)

    def measured(self, clock: Clock, rows: Sequence[Measurement], more: int) -> None:
        """A line for an evaluation of one or several networks: their range; `more` evaluations are to come."""
        self._asked += 1
        values = [row.main for row in rows]
        metric = f"{rows[0].split} {rows[0].metric}"
        if len(values) == 1:
            shown = f"{metric} {values[0]:.4f}"
        else:
            low, high = min(values), max(values)
            shown = f"{metric} {low:.4f} to {high:.4f}, median {statistics.median(values):.4f}"
        seconds = time.perf_counter() - self._begin
        left = self._left(seconds, more)
        told = "" if left is None else f", {left:,.0f} s left"
        self._say(f"{clock.steps:>12,} steps  {clock.examples:>15,} examples  {shown}  {seconds:,.0f} s{told}")

    def asked(self, networks: int, of: int) -> None:
        """A line every ten seconds in which evaluations go on, so that nobody waits without a word."""
        now = time.perf_counter()
        if networks < of and now - self._told > _SILENCE:
            self._say(f"{networks:,} of {of:,} networks are asked")
            self._told = now

    def _left(self, seconds: float, more: int) -> float | None:
        """The seconds until the end, of which the steps and the evaluations take shares of their own.

        None before there are a few seconds of steps to tell from, and at the end.
        """
        stats = self._training.stats
        trained, steps = stats.seconds - self._first.seconds, stats.steps - self._first.steps
        if trained < _ENOUGH or stats.steps == self._training.length:
            return None
        return trained / steps * (self._training.length - stats.steps) + (seconds - trained) / self._asked * more

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
        self._told = time.perf_counter()


class TaskMonitor(Monitor):
    """Tells the terminal and the event files of a group of runs what happens."""

    def __init__(self, console: TaskConsole, boards: Sequence[TaskBoard]) -> None:
        self.console, self._boards, self._written = console, boards, 0

    def trains(self, training: Training) -> None:
        """The training whose clock is told."""
        self._training = training

    def step(self, images: int) -> None:
        self.console.step(images)

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        # Where epochs are single steps the events of many seeds would take longer than the training.
        if epoch > _ALL and epoch < _SPARSE * self._written:
            return
        self._written = epoch
        for board, value in zip(self._boards, self._training.losses, strict=True):
            board.trained(self._training.clock, value, lr)

    def asked(self, networks: int, of: int) -> None:
        """So many networks of a group have been evaluated at one time."""
        self.console.asked(networks, of)

    def measured(self, by_run: Sequence[Sequence[Measurement]], more: int) -> None:
        """What was measured of each network at one time, nothing of one that has failed; `more` times are to come."""
        for board, rows in zip(self._boards, by_run, strict=True):
            board.measured(rows)
        self.console.measured(self._training.clock, [rows[0] for rows in by_run if rows], more)

    def finished(self, number: int, rows: Sequence[Measurement], summary: dict[str, Any]) -> None:
        """The results of one run; of an earlier checkpoint they would be a point before those that are there."""
        self._boards[number].measured([row for row in rows if row.step == self._training.clock.steps])
        self._boards[number].run_measured(summary)

    def close(self) -> None:
        """The runs are over or failed."""
        self.console.close()
        for board in self._boards:
            board.close()
