"""Cost of protecting a run against interruptions and damage: a run as it is, against one without protection.

    python perf/safety.py [--repeats 5] [--device cuda]

Without: no saved state, manifest, checksums, lock, fingerprint of the data, flush to the disk, or check of the clock in
every step. Whole runs through the command line, in turn, none rehearsed; wall time. The ratios are as noisy as the
machine. `inside` is the share of the protected run that is spent in these parts, by a stopwatch around each. In the
last column the state of training is saved every second; the default is every ten minutes.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common  # before torch: it decides how threads wait
from common import CIFAR_WRN, DIGITS, PROJECT, Case, in_turn, line, modelzoo_run, ratio, title, use

import records.directory
import records.session
from datasets.task import TaskStream
from methods.base import Method
from methods.ensemble import Ensemble
from records.checkpoints import RunCheckpoints
from records.directory import RunDirectory
from records.manifest import Entry

STREAM = [[10 * task + digit for digit in range(10)] for task in range(5)]
# The parts of the protection: owner, name, and a replacement that does nothing.
PROTECTION: list[tuple[object, str, Callable[..., object]]] = [
    (Ensemble, "state_dict", lambda self: {}),
    (Method, "state_dict", lambda self: {}),
    (RunDirectory, "_commit", lambda self, *_: None),
    (RunCheckpoints, "due", lambda self, *, epoch_ends=False: False),
    (TaskStream, "fingerprints", lambda self: {}),
    (os, "fsync", lambda file: None),
    (records.directory, "_entry", lambda content: Entry(0, "")),
    (records.session, "locked", lambda path, option: contextlib.nullcontext()),
]


class Stopwatch:
    """The seconds spent in some functions; nested calls count once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            if self._inside:
                return function(*arguments, **options)
            self._inside, begin = True, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - begin
                self._inside = False

        return timed


def seconds(case: Case, options: list[str], minutes: str, watch: Stopwatch | None) -> float:
    """Wall time of a run; protected if there is a stopwatch, which then measures the protection."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=PROJECT))
        configs = use(Path(folder), case, STREAM)
        for owner, name, instead in PROTECTION:
            replacement = instead if watch is None else watch.around(getattr(owner, name))
            stack.enter_context(patch.object(owner, name, replacement))
        stack.enter_context(patch.object(records.session, "rehearse", lambda *_: None))  # it loads a saved state
        if watch is None:
            Path(folder, "run").mkdir()  # else locking it makes it
        begin = time.perf_counter()
        modelzoo_run([*configs, "--continual", "--run_dir", f"{folder}/run", "--checkpoint_minutes", minutes, *options])
        return time.perf_counter() - begin


def main() -> None:
    given = common.options(__doc__, device="auto", repeats=5)
    print(f"A zoo of five tasks. {title(given.device)}")
    line("", "seconds", "with/without", "inside", "each second")
    for name, case, options in (
        ("digits, conv, 20 epochs", DIGITS, "--epochs 20 --samples 10"),
        ("CIFAR, WRN-16-4, 2 epochs", CIFAR_WRN, "--epochs 2 --samples 8 --tasks_per_round 2"),
    ):
        inside = Stopwatch()
        a_run = partial(seconds, case, [*options.split(), "--device", str(given.device)])
        measures = [partial(a_run, "10", None), partial(a_run, "10", inside), partial(a_run, "0.0167", Stopwatch())]
        in_turn(measures, 1)
        inside.seconds = 0.0
        without, protected, often = in_turn(measures, given.repeats)
        line(name, f"{min(protected):.1f}", f"{ratio(protected, without):.3f}",
             f"{inside.seconds / sum(protected):.2%}", f"{ratio(often, without):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
