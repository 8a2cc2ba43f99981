"""Compare methods × streams × networks × seeds, or our results with a published table.

config/benchmark/*.yaml, config/papers/*.yaml -> Grid: every run checked before the first one starts
modelzoo.py, one process a run, or train_task.py, one process for several; --jobs at a time -> runs in the store
run directories -> results.csv, table.md, table.tex, report.html (derived; --tables_only redoes them)
"""

from utils.startup import prepare

prepare(__name__, computes=False)  # before torch is loaded

import argparse
import os
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from methods import METHODS
from methods.config import RunConfig
from records.checkpoints import ENDING
from records.directory import read_config
from records.lock import locked
from records.summary import figure
from reporting import one_line_errors
from reporting.collecting import episodes, make_report, tables
from studies import task_grid
from studies.grid import AXES, OPTIONS, load_grid
from studies.grid_file import PROJECT, undashed
from studies.jobs import Job, run_jobs
from studies.papers import chosen, load_paper, paper_path
from studies.planned import Grid, PlannedJob, PlannedRun
from studies.store import check_run
from studies.tables import READING
from training.features import frozen, task_stream
from utils.compute import pick_device, runs_in_bf16
from utils.errors import UserError, one_line, run_program
from utils.files import check_own
from utils.options import Parser, check_text, whole
from utils.settings import Range

PROGRAMS = {name: PROJECT / f"{name}.py" for name in ("modelzoo", "train_task")}
HELP = """the grid, a YAML file (see config/benchmark/):
  streams, hyperparams   lists of YAML files, relative to the current directory, else to the project
  methods                list of names, or of mappings {method: zoo, label: small zoo, memory_per_class: 10}: the
                         label stands in the tables (default: the name), other keys are options of this entry only
  seeds                  a number n for the seeds 0 to n - 1, or a list
  continual: false       all in the multi-task mode (default: continual, but for methods that have only the other)
  any option of modelzoo.py, without the dashes: epochs, samples, data_dir, memory, no_augment: true, ...; a method
                         that does not use it runs without it, and an entry that says how many examples are kept wins
  any setting            by its dotted key, as with --set: hp.lr: 0.03, net.width: 64, settings.strength: 10
  vary                   {hp.lr: [0.01, 0.1], hp.batch: [16, 64]}: every method with every combination
  together               [{data.length: 3, hp.batch: 64}, {data.length: 5, hp.batch: 32}]: settings that change at the
                         same time, each step of the list with every combination of `vary`
  streams, more          an entry may be {stream: YAML} with hyperparams, vary, together and options of its own, an
                         entry of hyperparams {hp_config: YAML} with vary, together and options of its own
  against: LABEL         table.md begins with the difference of every other label from this one, paired over seeds
                         and corrected for the number of comparisons
  program: train_task    one network on one task, see train_task.py: no methods; any option of train_task.py; `vary`
                         and `together` make the cells, and one process trains all seeds of a cell at all its `rates`
  rates                  of train_task: [0.001, 0.01], also of a stream or an entry of hyperparams; the tables have the
                         best rate on development examples
  published              of train_task: {stream: {source, rows: net.hidden_size, columns: data.length, metric, scale,
                         tolerance, values: {16: {10: 94.8}}}}, shown beside ours

a published table, a YAML file of config/papers/ (see docs/papers.md):
  --paper NAME runs what a paper reports, and prints its values beside ours; table.md and table.tex have them, too.
  --smoke tries it out on few images in a few seconds a row, says so everywhere and makes no report: its numbers mean
  nothing.

the store:
  <stream>-<net>-<label>-seed<s>/   run directories; stream and net are the names of their YAML files
  <stream>-<net>-<cell>/seed<s>/    those of train_task.py; with several rates <cell>/lr<rate>/seed<s>/
  logs/<run or cell>.log            what its process printed
  results.csv                       a row per run: finished, failed (in this invocation) or missing; all figures
  table.md, table.tex               means over seeds, rewritten by every invocation
  report.html, figures/             the same with curves and costs, see report.py

Finished runs are kept, and refused if they were run with other options than the grid has now. Interrupted and failed
ones are run again. In the tables:"""
EXIT_CODES = "\nexit code: 0; 1 if a run failed; 2 if the input is wrong; 130 if interrupted"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; its exit code, see EXIT_CODES."""
    stopped = "interrupted; the same command continues with the remaining runs"
    return run_program("benchmark.py", lambda: benchmark(arguments(argv)), stopped)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; UserError names the option."""
    parser = Parser(
        prog="benchmark.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run methods x streams x networks x seeds and compare them in tables.",
        epilog="\n".join([HELP, *(textwrap.fill(note, 116, subsequent_indent="  ") for note in READING), EXIT_CODES]),
    )  # fmt: skip
    parser.add_argument("--config", metavar="YAML", help="the grid")
    parser.add_argument("--paper", metavar="NAME", help="instead of a grid: a published table, by its name in "
                        "config/papers/ or the path of a YAML file")  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="a quick version of the table, one seed; not the table "
                        "(default: the table)")  # fmt: skip
    parser.add_argument("--only", metavar="ROW", nargs="+", help="run these rows of the table only, by their labels "
                        "(default: all)")  # fmt: skip
    parser.add_argument("--data_dir", metavar="DIR", help="where the data of the table lies or is downloaded to "
                        "(default: ./data)")  # fmt: skip
    parser.add_argument("--store", metavar="DIR", help="where runs and tables go; the same command continues there "
                        "(default for --paper: runs/papers/NAME, with --smoke NAME-smoke)")  # fmt: skip
    parser.add_argument("--jobs", metavar="N", default="1", help="runs at a time; each gets its share of the cores, "
                        "unless the grid gives threads (default: 1)")  # fmt: skip
    parser.add_argument("--tables_only", action="store_true", help="run nothing, rewrite the tables (default: run)")
    keys = {*AXES, *task_grid.AXES, *OPTIONS.declared, *task_grid.OPTIONS.declared, "continual"}
    options = parser.parse_known(argv, keys, "the --config YAML")
    if options.paper is None:
        for name in ("smoke", "only", "data_dir"):
            if getattr(options, name):
                raise UserError(f"--{name} is for --paper; leave it out, or say which table")
        for name, example in (("config", "config/benchmark/digits.yaml"), ("store", "runs/digits")):
            if not getattr(options, name):
                raise UserError(f"--{name} is missing; give one, such as --{name} {example}")
    else:
        if options.config:
            raise UserError("--config and --paper are given; a grid or a published table is run")
        check_text("--paper", options.paper)
        options.config = paper_path(options.paper)
        options.store = options.store or f"runs/papers/{Path(options.config).stem}{'-smoke' * options.smoke}"
    options.jobs = whole("--jobs", options.jobs, Range(1, 1024))
    return options


def benchmark(options: argparse.Namespace) -> int:
    """Check the grid, run what is missing, write the tables and the report."""
    store, failures = Path(options.store), dict[str, str]()
    paper = load_paper(options.config, store, options.smoke, options.data_dir) if options.paper else None
    grid = paper.grid if paper else load_grid(options.config, store)
    wanted = chosen(paper, options.config, options.only or ()) if paper else grid.jobs
    for run in grid.runs:
        check_run(run, options.config)
    if options.tables_only and not store.is_dir():
        raise UserError(f"--store {store} does not exist; without --tables_only it is made")
    missing = [] if options.tables_only else [job for job in wanted if job.missing]
    if not options.tables_only:
        check_machine(grid, options.config)
        check_data([run for job in missing for run in job.runs], options.config)
    with locked(store) as lock:
        try:
            if not options.tables_only:
                count = sum(len(job.runs) for job in wanted)
                print(f"{count} runs, {sum(job.missing for job in missing)} of them to do", flush=True)
                execute(missing, PROGRAMS[grid.program], store, options.jobs, lock, failures)
        finally:
            for name, reason in failures.items():
                print(one_line(f"failed: {name}: {reason}"), file=sys.stderr)
            with one_line_errors(str(store), store):
                tables(paper, grid, store, failures, command_of(options))
        print(f"tables are in {store / 'table.md'}, {store / 'table.tex'} and {store / 'results.csv'}")
        if not options.smoke:  # nobody should see its curves
            with one_line_errors(str(store), store):
                make_report(grid.runs, store, command_of(options))
    return 1 if failures else 0


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
    for run in sorted(grid.runs, key=lambda run: not run.finished):
        try:
            bf16 = not run.finished and runs_in_bf16(run.config.precision, pick_device(run.config.device))
        except UserError as error:
            raise UserError(f"{path}: {undashed(error)}") from None
        precision = str(read_config(run.directory).get("precision")) if run.finished else "bf16" if bf16 else "fp32"
        first = made.setdefault((run.table, run.label), precision)
        if first != precision:
            raise UserError(
                f"{path}: some runs of {run.label} are in {first}, others would be in {precision}; "
                f"add precision: {first}, or name another --store"
            )


def check_data(runs: Sequence[PlannedRun], path: str) -> None:
    """Raise UserError if data of these runs are missing or do not fit; what can be downloaded is there afterwards."""
    try:
        for run in {(run.config.data, frozen(run.config.net)): run for run in reversed(runs)}.values():
            task_stream(run.config.data, run.config.net, run.config.seed, torch.device("cpu"))
    except UserError as error:
        raise UserError(f"{path}: {run.label}: {undashed(error)}") from None


def execute(
    planned: Sequence[PlannedJob], program: Path, store: Path, at_a_time: int, lock: int, failures: dict[str, str]
) -> None:  # fmt: skip
    """Run them and print a line for each that has ended; `failures` receives name of a run -> reason."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // at_a_time)
    check_own(store / "logs")
    (store / "logs").mkdir(exist_ok=True)
    by_name = {job.name: job for job in planned}
    jobs = [
        Job(job.name, [sys.executable, str(program), *job.arguments, "--quiet", "--resume"],
            {"OMP_NUM_THREADS": str(job.runs[0].config.threads or share)}, store / "logs" / f"{job.name}.log")
        for job in planned
    ]  # fmt: skip
    lines = ProgressLines(by_name, at_a_time)
    with closing(lines), closing(run_jobs(jobs, at_a_time, lock, lines.show)) as ended:
        for number, end in enumerate(ended, 1):
            job, lines.ended, left = by_name[end.name], number, tqdm.format_interval(lines.left(number))
            alone = len(job.runs) == 1
            failed = [run for run in job.runs if not run.finished or (alone and end.failure)]
            failures |= {run.name: end.failure or "it ended without a summary.json" for run in failed}
            result = outcome([run for run in job.runs if run not in failed], len(failed))
            text = f"{end.name}: {result}, {end.seconds:.0f} s; {len(planned) - number} remain, about {left}"
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

    def __init__(self, jobs: Mapping[str, PlannedJob], at_a_time: int) -> None:
        self.ended, self._jobs, self._begin = 0, jobs, time.perf_counter()
        lines = range(at_a_time + 1) if jobs and sys.stderr.isatty() else ()
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
        texts = [f"{name}: {done} of {total} {what}" for name, done, total, what in progress]
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
    config = job.runs[0].config
    if not isinstance(config, RunConfig):
        return len(job.runs) - job.missing, len(job.runs), "runs"
    tasks = len(config.data.tasks)
    rounds = (config.rounds or tasks) + config.warm_start if "rounds" in METHODS[config.method].options else 1
    try:
        done = episodes(job.runs[0])
    except UserError:  # the run reports it itself
        done = 0
    return done, tasks if config.continual else rounds, "episodes"


if __name__ == "__main__":
    for number in ENDING:
        signal.signal(number, signal.default_int_handler)  # like Ctrl-C: its runs end with it
    sys.exit(main())
