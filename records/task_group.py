"""Runs of train_task.py whose networks train together: what is recorded on the way, and their results."""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from datasets.task import TEST, TaskStream
from evaluation.measurements import ANYTIME, Measurement
from evaluation.watching import Watching
from methods.base import new_network
from net.multihead import MultiHead
from records.checkpoints import TaskCheckpoints
from records.directory import RunDirectory
from records.manifest import SUMMARY
from records.monitor import EpisodeFacts, RunStart
from records.summary import summarize
from records.task_config import TaskRunConfig
from records.task_monitor import TaskMonitor
from records.writing import main_metric, saved_member, task_facts
from training.loop import Clock, Training
from training.times import times
from utils.compute import peak_memory
from utils.errors import TrainingError
from utils.files import side_by_side

_SECONDS = 10.0  # between two savings of the state of training when something was recorded, at least
NAME = ("member", 0)  # of the network's random streams, as in a run of modelzoo.py on this task alone


@dataclass
class OneRun:
    """A run under way."""

    config: TaskRunConfig
    stream: TaskStream
    directory: RunDirectory
    net: MultiHead
    watching: Watching
    start: RunStart
    failure: str = ""  # why it cannot go on
    reached: int | None = None  # the step after which its score was good enough to stop (--until)

    def __post_init__(self) -> None:
        self.look(self.directory.rows)

    def look(self, rows: Sequence[Measurement]) -> None:
        """See whether one of these measurements is good enough to stop."""
        until, higher = self.config.until, main_metric(self.stream).higher_is_better
        if until is not None and self.reached is None:
            good = (row.step for row in _watched(rows, self.watching.split)
                    if (row.main >= until if higher else row.main <= until))  # fmt: skip
            self.reached = next(good, None)

    @property
    def over(self) -> bool:
        """Whether nothing more is to be recorded, although the training goes on for others."""
        return bool(self.failure) or (self.reached is not None and self.directory.has_checkpoint(self.reached))

    def measured(self, step: int) -> bool:
        """Whether it was evaluated at this step, the latest one."""
        rows = self.directory.rows
        return bool(rows) and rows[-1].step == step


class TaskGroup:
    """Runs whose networks train together: their state, and what is done at which step."""

    def __init__(
        self, runs: Sequence[OneRun], training: Training, checkpoints: TaskCheckpoints, monitor: TaskMonitor
    ) -> None:  # fmt: skip
        self.runs, self.training, self.checkpoints, self.monitor = runs, training, checkpoints, monitor
        first = runs[0].config
        length = 0 if first.evaluate_only else training.length
        self._kept = set(times(first.checkpoints, length))
        self._in_order = times(first.evaluations, length)
        self._watched = set(self._in_order)
        self._saved = time.monotonic()

    def moments(self) -> Iterator[int]:
        """The steps at which something is still to be recorded, in their order."""
        begun = self.training.clock.steps
        for step in sorted(self._kept | self._watched):
            if all(run.over for run in self.runs):
                return
            if step > begun or (step == begun and not all(self._recorded(run, step) for run in self.runs)):
                yield step

    def _recorded(self, run: OneRun, step: int) -> bool:
        measured = step not in self._watched or run.measured(step)
        return run.over or (measured and (step not in self._kept or run.directory.has_checkpoint(step)))

    def record(self, step: int) -> None:
        """Evaluate the networks and keep their weights, as it is due at this step; TrainingError if all have failed."""
        for number, when in self.training.diverged.items():
            told = f"the training loss is not finite after {when:,} steps; try a smaller lr"
            self.runs[number].failure = self.runs[number].failure or told
        found = list[Sequence[Measurement]]()
        for run in self.runs:
            found.append(self._measured(run, step))
            self.monitor.asked(len(found), len(self.runs))
        side_by_side(lambda pair: self._write(*pair, step), zip(self.runs, found, strict=True))
        if any(found):
            self.monitor.measured(found, len(self._in_order) - bisect_right(self._in_order, step))
        if self.checkpoints.due() or time.monotonic() - self._saved > _SECONDS:
            self.checkpoints.save("_".join(map(str, NAME)), self.training.state)
            self._saved = time.monotonic()
        if all(run.failure for run in self.runs):
            raise TrainingError(self.runs[0].failure)

    def _measured(self, run: OneRun, step: int) -> Sequence[Measurement]:
        """What the evaluations find that are due at this step."""
        rows: list[Measurement] = []
        if run.reached not in (None, step):
            return rows
        if not run.failure and step in self._watched and not run.measured(step):
            try:
                rows = run.watching.rows(run.net, self.training.clock)
                run.look(rows)
                place = self._in_order.index(step)
                last = step == self._in_order[-1] or run.reached == step
                earlier = self._earlier(run, step)
                rows += run.watching.answers(run.net, self.training.clock, place, last, earlier)
            except TrainingError as error:
                run.failure = str(error)
        return rows

    def _write(self, run: OneRun, rows: Sequence[Measurement], step: int) -> None:
        """Write what was measured of a run, and keep its weights, as it is due."""
        if rows or run.failure:  # one that failed at once has an empty table
            run.directory.add_rows(rows)
        if run.reached not in (None, step):
            return
        kept = step in self._kept or run.reached == step
        if not run.failure and kept and not run.directory.has_checkpoint(step):
            run.directory.add_checkpoint(step, run.net.state_dict())

    def _earlier(self, run: OneRun, step: int) -> dict[int, Callable[[], MultiHead]]:
        """By step, in their order, what builds the network of each checkpoint before a step."""
        steps = [before for before in sorted(self._kept) if before < step and run.directory.has_checkpoint(before)]
        return {before: partial(_network_at, run, before) for before in steps}

    def failed(self, reason: str) -> None:
        """No run can go on; `reason` is that of those that have no other."""
        for run in self.runs:
            run.failure = run.failure or reason

    def finish(self) -> dict[Path, Mapping[str, Any]]:
        """Ask the final networks about the test examples and write the results; summaries by run directory."""
        self.training.stop()
        results: list[tuple[int, Sequence[Measurement], Clock]] = []
        for number, run in enumerate(self.runs):
            if run.failure:
                continue
            clock = self.training.clock
            if run.reached is not None and run.reached < clock.steps:  # others that compute with it went on
                run.net.load_state_dict(run.directory.checkpoint(run.reached))
                clock = self.training.clock_after(run.reached)
            try:
                rows = [*run.watching.test(run.net, clock, final=True), *_best(run, clock)]
            except TrainingError as error:
                run.failure = str(error)
                continue
            results.append((number, rows, clock))
        return dict(side_by_side(lambda result: self._finish(*result), results))

    def _finish(self, number: int, rows: Sequence[Measurement], clock: Clock) -> tuple[Path, Mapping[str, Any]]:
        """Write the results of a run; its directory and its summary."""
        run = self.runs[number]
        summary = _summary(run, self._facts(number, clock), rows, len(self.runs))
        self.monitor.finished(number, rows, summary)  # before its file is committed
        run.directory.add_document(SUMMARY, summary)  # with the episode: a run cannot do without both state and it
        run.directory.commit(1, 1, summary["total_seconds"], {})
        run.directory.finish(summary, "")
        return run.directory.path, summary

    def _facts(self, number: int, clock: Clock) -> EpisodeFacts:
        stats, loss = self.training.stats, self.training.losses[number]
        return EpisodeFacts(
            1, [1], {}, stats.examples, clock.examples, clock.examples, clock.steps, self.checkpoints.seconds(),
            stats.seconds, stats.images / stats.seconds if stats.images else 0.0, loss,
            peak_memory(self.runs[0].net.weight.device),
        )  # fmt: skip


def _best(run: OneRun, clock: Clock) -> list[Measurement]:
    """The test scores of the checkpoint that is best on the development examples, if it is not the last one."""
    step = best_step(run.directory.rows, run.watching.split, main_metric(run.stream).higher_is_better)
    if step is None or step == clock.steps or not run.directory.has_checkpoint(step):
        return []
    examples = next(row.examples for row in run.directory.rows if row.step == step)
    return run.watching.test(_network_at(run, step), Clock(step, examples, None), final=False)


def _network_at(run: OneRun, step: int) -> MultiHead:
    """The network of a checkpoint, in test mode."""
    net = new_network(run.config, run.stream.spec, run.net.head_sizes)
    net.load_state_dict(run.directory.checkpoint(step))
    return net.to(run.net.weight.device).eval()


def best_step(rows: Sequence[Measurement], split: str, higher_is_better: bool) -> int | None:
    """The step at which the main metric on a split was best; the first of equals; None if it was not measured."""
    if split == TEST:
        return None  # there are no examples to choose by
    watched = [row for row in _watched(rows, split) if row.main == row.main]
    sign = 1 if higher_is_better else -1
    return max(watched, key=lambda row: (sign * row.main, -row.step)).step if watched else None


def _watched(rows: Sequence[Measurement], split: str) -> list[Measurement]:
    """The scores on a whole split on the way, in the order of their steps."""
    return [row for row in rows if row.split == split and not row.slice and row.scenario == ANYTIME]


def _summary(run: OneRun, facts: EpisodeFacts, rows: Sequence[Measurement], together: int) -> dict[str, Any]:
    """Write the last files of a run but for summary.json, whose content is returned."""
    directory, stream = run.directory, run.stream
    directory.add_targets({}, {})
    directory.add_member(saved_member(0, 1, run.net, stream, run.config.net), run.net.state_dict(), {})
    directory.add_episode(facts, rows)
    higher = main_metric(stream).higher_is_better
    return {
        **task_facts(run.config, stream, run.net, directory.episodes, together),
        "reached": run.reached,
        **summarize([row for row in directory.rows if row.scenario != ANYTIME], True, None, higher),
        **chosen(directory.rows, run.watching.split, higher),
        "total_seconds": facts.seconds,
    }


def chosen(rows: Sequence[Measurement], split: str, higher_is_better: bool) -> dict[str, Any]:
    """What is known of the final network and of the best checkpoint, by development examples; None where it is not."""
    by_step = {row.step: row for row in rows if row.split == split and not row.slice and row.scenario == ANYTIME}
    last = max(row.step for row in rows)
    test = {row.step: row for row in rows if row.split == "test" and not row.slice and (split != "test" or row.is_test)}
    step = best_step(rows, split, higher_is_better)
    final = next(iter(test[last].scores.values()))
    found = {"dev": by_step[last].main if last in by_step and split != "test" else None, "test_stderr": final.stderr}
    best = test.get(last if step is None else step)
    return found | {
        "best_step": step,
        "best_dev": None if step is None else by_step[step].main,
        "best_test": None if best is None else best.main,
    }
