"""Compare methods × streams × networks × seeds, or our results with a published table.

config/benchmark/*.yaml, config/papers/*.yaml -> Grid: every run checked before the first one starts
modelzoo.py, one process a run, or train_task.py, one process for several; on an engine -> runs in the store
run directories -> results.csv, table.md, table.tex, report.html (derived; benchmark.py collect writes them again)
"""

from utils.startup import prepare

prepare(__name__, computes=False)  # before torch is loaded

import sys

from reporting.commands import COMMANDS

if __name__ == "__main__" and (command := COMMANDS.get(" ".join(sys.argv[1:2]))):
    sys.exit(command(sys.argv[2:]))  # they show a study at once, without waiting for torch

import argparse
import os
import shlex
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from records.checkpoints import ENDING
from records.directory import shared_config
from records.manifest import read_manifest
from records.summary import figure
from records.task_config import TaskRunConfig
from reporting import one_line_errors
from reporting.collecting import episodes, make_report, tables
from studies.dry_run import dry_run
from studies.engines import ENGINES, Engine
from studies.grid import load_grid
from studies.grid_file import PROJECT, undashed
from studies.papers import load_paper
from studies.planned import Grid, PlannedJob, PlannedRun, chosen
from studies.schedule import run_jobs
from studies.store import check_run, drop_empty, make_directories
from studies.study_file import CANCEL, LOGS, Study, check_kind, failure_of, study_job
from studies.study_options import arguments, resources_of
from training.features import frozen, task_stream
from utils.compute import pick_device, runs_in_bf16
from utils.errors import UserError, one_line, run_program, unknown
from utils.files import check_own

PROGRAMS = {name: PROJECT / f"{name}.py" for name in ("modelzoo", "train_task")}
_LINES = 20  # the most running jobs that are shown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; its exit code, see EXIT_CODES in studies/study_options.py."""
    words = sys.argv[1:] if argv is None else list(argv)
    if command := COMMANDS.get(" ".join(words[:1])):
        return command(words[1:])
    stopped = "interrupted; the same command continues with the remaining runs"
    return run_program("benchmark.py", lambda: benchmark(_study(words)), stopped)


def _study(words: Sequence[str]) -> argparse.Namespace:
    """The options of a study; UserError names a command that does not exist."""
    if words and not words[0].startswith("-"):
        raise UserError(unknown("command", words[0], COMMANDS))
    return arguments(words)


def benchmark(options: argparse.Namespace) -> int:
    """Check the grid, run what is missing, write the tables and the report."""
    begun, store, failures = time.time(), Path(options.store), dict[str, str]()
    paper = load_paper(options.config, store, options.smoke, options.data_dir) if options.paper else None
    grid = paper.grid if paper else load_grid(options.config, store)
    wanted = chosen(grid, options.only or ())
    for run in grid.runs:
        check_run(run)
    missing, left = to_do(wanted, store, again=options.rerun is not None)
    if options.dry_run:
        dry_run(wanted, missing, store, resources_of(options).slots, options.pilot_seconds, PROGRAMS[grid.program])
        if left:
            print(f"{len(left)} failed before and are left; --rerun failed runs them again")
        return 0
    if options.engine == "local":
        check_machine(grid, options.config)
        check_gpus(options.gpus)
    check_data([run for job in missing for run in job.runs], options.config)
    if not begin(grid, wanted, store, options, begun):  # another command has begun the same runs under other names
        return benchmark(options)
    engine = ENGINES[options.engine](resources_of(options))
    try:
        count = sum(len(process.runs) for process in wanted.processes)
        print(f"{count} runs, {sum(process.missing for process in missing)} of them to do", flush=True)
        execute(missing, PROGRAMS[grid.program], engine, store, failures)
    finally:
        drop_empty(wanted.runs, store)
        for name, reason in (left | failures).items():
            print(one_line(f"failed: {name}: {reason}"), file=sys.stderr)
        if left:
            print(f"{len(left)} failed before and were left; --rerun failed runs them again", file=sys.stderr)
        with one_line_errors(str(store), store):
            tables(paper, grid, store, left | failures, command_of(options))
    print(f"tables are in {store / 'table.md'}, {store / 'table.tex'} and {store / 'results.csv'}")
    if not options.smoke:  # nobody should see its curves
        with one_line_errors(str(store), store):
            make_report(grid.runs, store, command_of(options))
    return 1 if left or failures else 0


def to_do(wanted: Grid, store: Path, *, again: bool) -> tuple[list[PlannedJob], dict[str, str]]:
    """The jobs to run, and why each failed run is left out; with `again` none is."""
    missing, left = list[PlannedJob](), dict[str, str]()
    for process in wanted.processes:
        if process.missing:
            if not again and (reason := failure_of(store, process.name)):
                left |= {run.name: reason for run in process.runs if not run.finished}
            else:
                missing.append(process)
    return missing, left


def begin(grid: Grid, wanted: Grid, store: Path, options: argparse.Namespace, begun: float) -> bool:
    """Make the store and write study.json; UserError if it cannot be written.

    False if directories of the `wanted` runs have appeared under other names, so that the grid is to be read again. A
    wish to cancel the study is void if it is older than this command, which began at `begun` (seconds of the epoch).
    """
    check_kind(store, search=False)
    try:
        check_own(store / LOGS)
        (store / LOGS).mkdir(parents=True, exist_ok=True)
        if not make_directories(wanted.runs, store):
            return False
        with suppress(FileNotFoundError):
            if (store / CANCEL).stat().st_mtime < begun - 0.02:  # the clock of a disk lags some milliseconds
                (store / CANCEL).unlink()
        jobs = tuple(study_job(job) for job in grid.processes)
        config = str(Path(options.config).resolve())
        data_dir = str(Path(options.data_dir).resolve()) if options.data_dir else None
        Study(
            command_of(options), config, options.paper is not None, grid.program, options.engine, jobs,
            bool(options.smoke), data_dir,
        ).write(store)  # fmt: skip
        return True
    except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{getattr(error, 'filename', None) or store} cannot be written: {reason}") from None


def command_of(options: argparse.Namespace) -> str:
    """The command that makes the tables of a store."""
    given = ["--config", options.config]
    if options.paper:
        given = ["--paper", options.paper, *["--smoke"] * options.smoke]
        given += ["--data_dir", options.data_dir] if options.data_dir else []
    return shlex.join(["python", "benchmark.py", *given, "--store", options.store])


def check_machine(grid: Grid, path: str) -> None:
    """Raise UserError if this machine lacks a device, or would mix precisions within a row of a table."""
    made: dict[tuple[str, str], str] = {}
    found = {run.name: (run, read_manifest(run.directory)) for run in grid.runs}
    finished = {name: pair for name, pair in found.items() if pair[1] and pair[1].finished}
    for run, manifest in (finished | found).values():  # finished ones first
        if run.name in finished:
            precision = str(shared_config(run.directory, manifest).get("precision"))  # type: ignore[arg-type]
        else:
            precision = _precision(run, path)
        first = made.setdefault((run.table, run.label), precision)
        if first != precision:
            raise UserError(
                f"{path}: some runs of {run.label} are in {first}, others would be in {precision}; "
                f"add precision: {first}, or name another --store"
            )


def check_gpus(gpus: Sequence[int]) -> None:
    """Raise UserError for a number of a GPU that this machine lacks."""
    count = torch.cuda.device_count()
    if count and "CUDA_VISIBLE_DEVICES" in os.environ:  # it hides some, so that nobody can tell which there are
        return
    for gpu in gpus:
        if gpu >= count:
            raise UserError(f"--gpus: there is no GPU {gpu}; this machine has {count or 'none'}")


def _precision(run: PlannedRun, path: str) -> str:
    """The precision that a run would have on this machine."""
    try:
        return "bf16" if runs_in_bf16(run.config.precision, pick_device(run.config.device)) else "fp32"
    except UserError as error:
        raise UserError(f"{path}: {undashed(error)}") from None


def check_data(runs: Sequence[PlannedRun], path: str) -> None:
    """Raise UserError if data of these runs are missing or do not fit; what can be downloaded is there afterwards."""
    try:
        for run in {(run.config.data, frozen(run.config.net)): run for run in reversed(runs)}.values():
            task_stream(run.config.data, run.config.net, run.config.seed, torch.device("cpu"))
    except UserError as error:
        raise UserError(f"{path}: {run.label}: {undashed(error)}") from None


def execute(
    planned: Sequence[PlannedJob], program: Path, engine: Engine, store: Path, failures: dict[str, str]
) -> None:
    """Run them and print a line for each that has ended; `failures` receives name of a run -> reason."""
    by_name = {job.name: job for job in planned}
    lines = ProgressLines(by_name)
    with closing(lines), closing(run_jobs(planned, engine, store, program, lines.show)) as ended:
        for number, end in enumerate(ended, 1):
            job, lines.ended, left = by_name[end.name], number, tqdm.format_interval(lines.left(number))
            failed = [run for run in job.runs if not run.finished]
            failures |= {run.name: end.failure for run in failed}
            result = outcome([run for run in job.runs if run not in failed], len(failed))
            text = f"{end.name}: {result}, {end.seconds:.1f} s; {len(by_name) - number} remain, about {left}"
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()


def outcome(finished: Sequence[PlannedRun], failed: int) -> str:
    """The results of the runs of a process in a few words."""
    if not finished:
        return "failed"
    summaries = [run.summary for run in finished]
    values = sorted(figure(summary, "avg_acc_final") for summary in summaries)
    shown = f"{summaries[0]['metric']} {values[0]:.4f}" + (f" to {values[-1]:.4f}" if len(values) > 1 else "")
    return shown + (f", {failed} of {len(finished) + failed} runs failed" if failed else "")


class ProgressLines:
    """Progress on a terminal: a line for each running job and one for the remaining time."""

    def __init__(self, jobs: Mapping[str, PlannedJob]) -> None:
        self.ended, self._jobs, self._begin = 0, jobs, time.perf_counter()
        lines = range(min(len(jobs), _LINES) + 1) if jobs and sys.stderr.isatty() else ()
        self._bars = [tqdm(position=line, bar_format="{desc}", leave=False) for line in lines]

    def close(self) -> None:
        """Remove the lines."""
        for bar in self._bars:
            bar.close()

    def show(self, names: Sequence[str]) -> None:
        """Show the running jobs."""
        if not self._bars:
            return
        progress = [(name, *progress_of(self._jobs[name])) for name in names]
        texts = [f"{name}: {done} of {total} {what}" for name, done, total, what in progress[: len(self._bars) - 1]]
        parts = self.ended + sum(done / total for _, done, total, _ in progress)
        left = f", about {tqdm.format_interval(self.left(parts))}" if parts else ""
        texts.append(f"{self.ended} of {len(self._jobs)} runs ended{left} left")
        for bar, text in zip(self._bars, [*texts, *[""] * len(self._bars)], strict=False):
            bar.set_description_str(one_line(text))

    def left(self, ended: float) -> float:
        """Remaining seconds, at the mean time of the runs that have ended (a number with parts of runs)."""
        return (time.perf_counter() - self._begin) / ended * (len(self._jobs) - ended)


def progress_of(job: PlannedJob) -> tuple[int, int, str]:
    """What is complete of a process, what all of it is, and what is counted."""
    if isinstance(job.runs[0].config, TaskRunConfig):
        return len(job.runs) - job.missing, len(job.runs), "runs"
    try:
        done = episodes(job.runs[0])
    except UserError:  # the run reports it itself
        done = 0
    return done, job.episodes, "episodes"


if __name__ == "__main__":
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)  # like Ctrl-C: its runs end with it
    sys.exit(main())
