"""What a study would do, and about how long it would take."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from records.manifest import read_manifest
from studies.engines.local import cores
from studies.grid_file import PROJECT
from studies.planned import Grid, PlannedJob
from training.recipe import Recipe
from utils.errors import one_line

PILOT_SECONDS = 60.0  # for all pilots of a dry run together
_CELLS = 40  # the most lines
_STEPS = (10, 300)  # the fewest and the most gradient steps of the shorter pilot, where steps or examples are counted
_OWN = ("epochs", "steps", "examples", "set=hp.epochs", "set=hp.steps", "set=hp.examples", "no_augment",
            "set=hp.augment", "run_dir")  # fmt: skip  # options that a pilot has its own value of


@dataclass(frozen=True)
class Duration:
    """Seconds of one process, None if they are not known, and how they were found."""

    seconds: float | None
    how: str


def dry_run(
    grid: Grid, missing: Sequence[PlannedJob], store: Path, jobs: int, pilot_seconds: float = PILOT_SECONDS,
    program: Path | None = None,
) -> None:  # fmt: skip
    """Print the missing runs of a grid, cell by cell, and the time that they take with so many `jobs` at a time.

    A cell whose runs differ only in their seed takes as long as its finished runs did. Of any other cell two short
    pilots are run, for `pilot_seconds` of all cells together, and the time is extrapolated along a straight line.
    `program` makes the runs (default: that of the grid).
    """
    program = program or PROJECT / f"{grid.program}.py"
    cells = dict[tuple[str, str], list[PlannedJob]]()
    for job in missing:
        cells.setdefault(_cell(job), []).append(job)
    count = sum(len(job.runs) for job in grid.processes)
    print(f"{count} runs, {sum(job.missing for job in missing)} of them to do in {store}", flush=True)
    finished = _finished_seconds(grid)
    pilots = _Pilots(program, jobs, pilot_seconds)
    start = pilots.start() if any(cell in finished for cell in cells) else 0.0
    estimates = dict[tuple[str, str], Duration]()
    for number, (cell, own) in enumerate(cells.items()):
        if cell in finished:
            how = f"as {len(finished[cell])} finished"
            estimates[cell] = Duration(start + statistics.fmean(finished[cell]), how)
        else:
            estimates[cell] = pilots.measure(own[0])
        if number < _CELLS:
            print(one_line(_line(cell, own, estimates[cell])), flush=True)
    if len(cells) > _CELLS:
        print(f"  ... and {len(cells) - _CELLS} more cells")
    print("\n".join(_total(cells.values(), list(estimates.values()), jobs)), flush=True)


def _cell(job: PlannedJob) -> tuple[str, str]:
    return job.runs[0].table, job.label or job.runs[0].label


def _finished_seconds(grid: Grid) -> dict[tuple[str, str], list[float]]:
    """By cell, the seconds of its finished runs."""
    found: dict[tuple[str, str], list[float]] = {}
    for job in grid.jobs:
        for run in job.runs:
            if (manifest := read_manifest(run.directory)) is not None and manifest.finished:
                found.setdefault(_cell(job), []).append(manifest.seconds)
    return found


def _line(cell: tuple[str, str], jobs: Sequence[PlannedJob], estimate: Duration) -> str:
    seeds = sorted({run.config.seed for job in jobs for run in job.runs if not run.finished})
    shown = f"seed{'s' * (len(seeds) > 1)} {ranges(seeds)}"
    runs = sum(job.missing for job in jobs)
    together = " together" * (len(jobs[0].runs) > 1)
    each = "time unknown" if estimate.seconds is None else f"{tqdm.format_interval(estimate.seconds)}"
    each += together if len(jobs) == 1 else " each"
    return f"{cell[0]}, {cell[1]}: {shown}, {runs} run{'s' * (runs > 1)}, {each} ({estimate.how})"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short: 0-4, 7."""
    parts = list[list[int]]()
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _total(cells: Iterable[Sequence[PlannedJob]], estimates: Sequence[Duration], jobs: int) -> list[str]:
    pairs = list(zip(cells, estimates, strict=True))
    known = [(len(own), estimate.seconds) for own, estimate in pairs if estimate.seconds is not None]
    unknown = [own for own, estimate in pairs if estimate.seconds is None]
    seconds = max([sum(count * each for count, each in known) / jobs, *(each for _, each in known)]) if known else 0.0
    lines = [f"about {tqdm.format_interval(seconds)} with {jobs} at a time"]
    if unknown:
        lines[0] += f", without {len(unknown)} cells ({sum(len(own) for own in unknown)} jobs) that were not measured"
    return [*lines, "assumed: time grows linearly with the length of training, and runs do not slow each other down"]


class _Pilots:
    """Short runs in temporary folders, as long as there is time for them."""

    def __init__(self, program: Path, jobs: int, seconds: float) -> None:
        self._program, self._share, self._left = program, max(1, cores() // jobs), seconds

    def start(self) -> float:
        """Seconds until a process has loaded its libraries."""
        return self._seconds(["--help"], None) or 0.0

    def measure(self, job: PlannedJob) -> Duration:
        """The time of a process, along a straight line through two shorter ones."""
        recipe, times = job.runs[0].config.hp, list[float]()
        unit, full, lengths = pilot_lengths(recipe)
        if self._left <= 0:
            return Duration(None, "no time was left for pilots")
        for length in lengths:
            words = [word for word in job.arguments if word.partition("=")[0][2:] not in _OWN
                     and "=".join(word.split("=")[:2])[2:] not in _OWN]  # fmt: skip
            words += [f"--{unit}={length}", f"--set=hp.augment={str(recipe.augments).lower()}", "--quiet"]
            seconds = self._seconds(words, job.runs[0].config.threads)
            if seconds is None:
                return Duration(None, "a pilot failed, or took too long")
            times.append(seconds)
        how = f"from pilots of {' and '.join(f'{length:,}' for length in lengths)} {unit}"
        return Duration(straight(lengths, times, full), how)

    def _seconds(self, words: Sequence[str], threads: int | None) -> float | None:
        """Of a process; None if it fails, or takes more time than is left."""
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            more = [] if words == ["--help"] else [f"--run_dir={Path(folder, 'run')}"]
            try:
                done = subprocess.run(
                    [sys.executable, str(self._program), *words, *more], stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=max(0.1, self._left),
                    env={**os.environ, "OMP_NUM_THREADS": str(threads or self._share)},
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                self._left = 0.0
                return None
            seconds = time.perf_counter() - begin
        self._left -= seconds
        return seconds if done.returncode == 0 else None


def pilot_lengths(recipe: Recipe) -> tuple[str, int, list[int]]:
    """What the length of training is counted in, all of it, and the lengths of one or two pilots."""
    unit = next(unit for unit in ("epochs", "steps", "examples") if getattr(recipe, unit) is not None)
    full = int(getattr(recipe, unit))
    batch = recipe.batch if unit == "examples" and isinstance(recipe.batch, int) else 1
    low, high = (steps * batch for steps in _STEPS)
    short = 1 if unit == "epochs" else min(max(full // 100, low), high)
    return unit, full, sorted({min(short, full), min(3 * short, full)})


def straight(lengths: Sequence[int], times: Sequence[float], full: int) -> float:
    """The value at `full` of the line through one or two points, which does not fall."""
    slope = 0.0 if len(lengths) < 2 else max(0.0, (times[1] - times[0]) / (lengths[1] - lengths[0]))
    return times[-1] + slope * (full - lengths[-1])
