"""The command line of benchmark.py."""

import argparse
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from studies import task_grid
from studies.dry_run import PILOT_SECONDS
from studies.engines import ENGINES, Resources
from studies.grid import AXES, OPTIONS
from studies.papers import paper_path
from studies.tables import READING
from utils.errors import UserError, unknown
from utils.options import Parser, check_text, whole
from utils.settings import Range

_HELP = """commands that look at a study from anywhere, each with a --help of its own:
  benchmark.py status --store DIR    what is finished, running, failed and waiting, and the remaining time
  benchmark.py watch --store DIR     the same as a page on the terminal
  benchmark.py cancel --store DIR    end what runs; the first command goes on from there
  benchmark.py collect --store DIR   tables and report of what is finished, without running anything
  benchmark.py search --config YAML --store DIR   search for settings on validation examples, see docs/search.md

the grid, a YAML file (see config/benchmark/):
  streams, hyperparams   lists of YAML files, relative to the current directory, else to the project
  methods                list of names, or of mappings {method: zoo, label: small zoo, memory_per_class: 10}: the
                         label stands in the tables (default: the name), other keys are options of this entry only
  seeds                  a number n for the seeds 0 to n - 1, or a list
  task_orders            a number n for the orders 0 to n - 1 of the tasks, or a list: every method with every seed and
                         every order, which is drawn from its number (data.task_order) and not from the seed
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
  <stream>-<net>-<label>-seed<s>-<checksum>/   run directories; stream and net are the names of their YAML files, the
                                    checksum is that of all settings: the same settings are the same run
  <stream>-<net>-<cell>-<checksum>/seed<s>/   those of train_task.py; with `rates` lr<rate>/seed<s>/
  logs/<run or cell>.log            what its process printed
  study.json                        what the store is to hold
  results.csv                       a row per run: finished, failed or missing; all figures
  table.md, table.tex               means over seeds, rewritten by every invocation; table.md begins with ranks over
                                    streams, and with the values of hp. settings that development examples choose
  variance.csv                      with several seeds and task_orders: the variance that each adds
  report.html, figures/             the same with curves and costs, see report.py

Finished runs are kept, interrupted ones go on where they were saved, failed ones are left until --rerun failed. Several
commands, also on several machines that share the folder, may fill one store: no run is done twice. In the tables:"""
EXIT_CODES = "\nexit code: 0; 1 if a run failed; 2 if the input is wrong; 130 if interrupted"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line of a study; UserError names the option."""
    parser = Parser(
        prog="benchmark.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run methods x streams x networks x seeds and compare them in tables.",
        epilog="\n".join([_HELP, *(textwrap.fill(note, 116, subsequent_indent="  ") for note in READING), EXIT_CODES]),
    )  # fmt: skip
    _add_what(parser)
    add_engine_options(parser)
    keys = {*AXES, *task_grid.AXES, *OPTIONS.declared, *task_grid.OPTIONS.declared, "continual"}
    options = parser.parse_known(argv, keys, "the --config YAML")
    if options.paper is None:
        for name in ("smoke", "data_dir"):
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
    options.pilot_seconds = float(whole("--pilot_seconds", options.pilot_seconds, Range(0, 10**6)))
    check_engine_options(options)
    return options


def resources_of(options: argparse.Namespace) -> Resources:
    """Where the runs of a study are computed."""
    return Resources(
        Path(options.store).resolve(), options.jobs, options.gpus, options.jobs_per_gpu, options.cpus, options.address,
        options.slurm,
    )  # fmt: skip


def _add_what(parser: Parser) -> None:
    parser.add_argument("--config", metavar="YAML", help="the grid")
    parser.add_argument("--paper", metavar="NAME", help="instead of a grid: a published table, by its name in "
                        "config/papers/ or the path of a YAML file")  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="a quick version of the table, one seed; not the table "
                        "(default: the table)")  # fmt: skip
    parser.add_argument("--data_dir", metavar="DIR", help="where the data of the table lies or is downloaded to "
                        "(default: ./data)")  # fmt: skip
    parser.add_argument("--store", metavar="DIR", help="where runs and tables go; the same command continues there "
                        "(default for --paper: runs/papers/NAME, with --smoke NAME-smoke)")  # fmt: skip
    parser.add_argument("--only", metavar="LABEL", nargs="+", help="only runs with these labels or names of runs, in "
                        "which * stands for any text (default: all)")  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="say which runs would be done, and about how long they "
                        "take, measured with short pilots (default: do them)")  # fmt: skip
    parser.add_argument("--pilot_seconds", metavar="S", default=f"{PILOT_SECONDS:g}", help="the time that all pilots "
                        f"of a dry run may take (default: {PILOT_SECONDS:g})")  # fmt: skip
    parser.add_argument("--rerun", metavar="failed", help="run those that have failed again (default: leave them)")


def add_engine_options(parser: Parser) -> None:
    """The options that say where runs are computed."""
    group = parser.add_argument_group("where runs are computed")
    group.add_argument("--engine", metavar="NAME", default="local", help=f"one of {', '.join(ENGINES)}: processes on "
                       "this machine, or a cluster; see docs/scaling.md (default: local)")  # fmt: skip
    group.add_argument("--jobs", metavar="N", help="runs at a time; on this machine each gets its share of the cores, "
                       "unless the grid gives threads (default: 1, or jobs_per_gpu on each of --gpus; on a cluster as "
                       "many as there is room for)")  # fmt: skip
    group.add_argument("--cpus", metavar="N", help="cores of each run (default: its share of this machine; on a "
                       "cluster 1)")  # fmt: skip
    group.add_argument("--gpus", metavar="N,...", help="GPUs of this machine that runs share out among them, such as "
                       "0,1 (default: a run takes the first)")  # fmt: skip
    group.add_argument("--jobs_per_gpu", metavar="N", default="1", help="runs that share a GPU (default: 1)")
    group.add_argument("--address", metavar="HOST:PORT", help="of the Ray cluster; auto: the one that this machine "
                       "belongs to (default: one of this machine alone)")  # fmt: skip
    group.add_argument("--slurm", metavar="KEY=VALUE", action="append", default=[], help="an option of sbatch, such as "
                       "partition=gpu; may be repeated")  # fmt: skip


def check_engine_options(options: argparse.Namespace) -> None:
    """Convert and check what `add_engine_options` has added; UserError names the option."""
    if options.engine not in ENGINES:
        raise UserError(f"--engine: {unknown('engine', options.engine, ENGINES)}")
    if options.rerun not in (None, "failed"):
        raise UserError(f"--rerun is {options.rerun!r}; it must be failed")
    for name in ("jobs", "cpus", "jobs_per_gpu"):
        if getattr(options, name) is not None:
            setattr(options, name, whole(f"--{name}", getattr(options, name), Range(1, 1024)))
    numbers = options.gpus.split(",") if options.gpus else []
    options.gpus = [whole("--gpus", number, Range(0, 1023)) for number in numbers]
    options.slurm = _slurm(options.slurm)
    of_engine = {"gpus": "local", "address": "ray", "slurm": "slurm"}
    for name, engine in of_engine.items():
        if getattr(options, name) and options.engine != engine:
            raise UserError(f"--{name} is for --engine {engine}; leave it out")
    if options.engine == "local" and options.jobs_per_gpu > 1 and not options.gpus:
        raise UserError("--jobs_per_gpu needs --gpus, such as --gpus 0,1")


def _slurm(given: Sequence[str]) -> Mapping[str, str]:
    for each in given:
        if not all(each.partition("=")[::2]):
            raise UserError(f"--slurm is {each!r}; it must be KEY=VALUE, such as partition=gpu")
    return {key.lstrip("-"): value for key, _, value in (each.partition("=") for each in given)}
