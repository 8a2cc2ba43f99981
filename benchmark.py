"""Methods × streams × networks × seeds against each other.

config/benchmark/*.yaml -> Grid: every run checked before the first one starts
modelzoo.py, one process a run, --jobs at a time -> run directories in the store
run directories -> results.csv, table.md, table.tex, report.html (derived; --tables_only redoes them)
"""

from __future__ import annotations

from utils.startup import prepare

prepare(__name__, computes=False)  # before torch is loaded

import argparse
import json
import os
import re
import shlex
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from datasets import check_dataset
from methods import METHOD_OPTIONS, METHODS, check_method, with_settings
from net import TRUNKS
from records.lock import locked
from records.manifest import read_manifest
from studies.jobs import Ended, Job, run_jobs
from studies.store import Run, check_run, read_config, write_tables
from studies.tables import READING
from utils.compute import pick_device, runs_in_bf16
from utils.config import RANGES, Range, check_range, load_dataset_config, load_hyper_config, load_yaml
from utils.errors import UserError, one_line, print_anything, unknown
from utils.options import CHOICES, KEPT, Parser, driver_options, parse

PROJECT = Path(__file__).resolve().parent
PROGRAM = PROJECT / "modelzoo.py"
AXES = ("streams", "hyperparams", "methods", "seeds")
# What the grid or this program sets itself, or what belongs to a method.
OWN = {
    "data_config",
    "hp_config",
    "method",
    "seed",
    "run_dir",
    "overwrite",
    "resume",
    "verify",
    "extend",
    "quiet",
    "isolated",
    "continual",
}
OPTIONS = {name: switch for name, switch in driver_options().items() if name not in OWN}
HELP = """the grid, a YAML file (see config/benchmark/):
  streams, hyperparams   lists of YAML files, relative to the current directory, else to the project
  methods                list of names, or of mappings {method: zoo, label: small zoo, memory_per_class: 10}: the
                         label stands in the tables (default: the name), other keys are options of this entry only
  seeds                  a number n for the seeds 0 to n - 1, or a list
  continual: false       all in the multi-task mode (default: continual, but for methods that have only the other)
  any option of modelzoo.py, without the dashes: epochs, samples, data_dir, memory, no_augment: true, ...; a method
                         that does not use it runs without it, and an entry that says how many examples are kept wins

the store:
  <stream>-<net>-<label>-seed<s>/   run directories; stream and net are the names of their YAML files
  logs/<run>.log                    what the run printed
  results.csv                       a row per run: finished, failed (in this invocation) or missing; all figures
  table.md, table.tex               means over seeds, rewritten by every invocation
  report.html, figures/             the same with curves and costs, see report.py

Finished runs are kept, and refused if they were run with other options than the grid has now. Interrupted and failed
ones are run again. In the tables:"""
EXIT_CODES = "\nexit code: 0; 1 if a run failed; 2 if the input is wrong; 130 if interrupted"


class Entry(NamedTuple):
    """One row of the tables: a method and the options that only it has."""

    method: str
    label: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """All runs, one seed after the other, and what the notes below the tables say of them."""

    runs: tuple[Run, ...]
    options: str


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if a run failed; 2 if the input is wrong; 130 if interrupted."""
    print_anything()
    try:
        return benchmark(arguments(argv))
    except UserError as error:
        print(f"benchmark.py: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmark.py: interrupted; the same command goes on with the runs that remain", file=sys.stderr)
        return 130


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: names the option.
    """
    parser = Parser(
        prog="benchmark.py", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run methods x streams x networks x seeds and compare them in tables.",
        epilog="\n".join([HELP, *(textwrap.fill(note, 116, subsequent_indent="  ") for note in READING), EXIT_CODES]),
    )  # fmt: skip
    parser.add_argument("--config", metavar="YAML", help="the grid")
    parser.add_argument("--store", metavar="DIR", help="where runs and tables go; the same command goes on there")
    parser.add_argument("--jobs", metavar="N", default="1", help="runs at a time; each gets its share of the cores, "
                        "unless the grid gives threads (default: 1)")  # fmt: skip
    parser.add_argument("--tables_only", action="store_true", help="run nothing, rewrite the tables (default: run)")
    options = parser.parse_known(argv, {*AXES, *OPTIONS, "continual"}, "the --config YAML")
    for name, example in (("config", "config/benchmark/digits.yaml"), ("store", "runs/digits")):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing; give one, such as --{name} {example}")
    if re.fullmatch("[0-9]{1,9}", options.jobs):
        options.jobs = int(options.jobs)
    Range(1, 1024).check("--jobs", options.jobs)
    return options


def benchmark(options: argparse.Namespace) -> int:
    """Check everything, run what is missing, write the tables."""
    store = Path(options.store)
    grid = load_grid(options.config, store)
    for run in grid.runs:
        check_run(run, options.config)
    command = shlex.join(["python", "benchmark.py", "--config", options.config, "--store", options.store])
    if options.tables_only:
        if not store.is_dir():
            raise UserError(f"--store {store} does not exist; without --tables_only it is made")
        write_tables(grid.runs, store, {}, grid.options, command)
        make_report(grid.runs, store, command)
        return 0
    check_machine(grid, options.config)
    failures: dict[str, str] = {}
    with locked(store) as lock:
        missing = [run for run in grid.runs if not run.finished]
        print(f"{len(grid.runs)} runs, {len(missing)} of them to do", flush=True)
        try:
            execute(missing, store, options.jobs, lock, failures)
        finally:
            write_tables(grid.runs, store, failures, grid.options, command)
            for name, reason in failures.items():
                print(f"failed: {name}: {reason}", file=sys.stderr)
    print(f"tables are in {store / 'table.md'}, {store / 'table.tex'} and {store / 'results.csv'}")
    make_report(grid.runs, store, command)
    return 1 if failures else 0


def check_machine(grid: Grid, path: str) -> None:
    """What is to be done can be done here, and in the precision in which the same row's other runs were done.

    Raises:
        UserError: names the device that is not here, or the row that would mix precisions.
    """
    made: dict[tuple[str, str], str] = {}
    for run in sorted(grid.runs, key=lambda run: not run.finished):
        if run.finished:
            precision = str(read_config(run).get("precision"))
        else:
            try:
                device = pick_device(run.config.device)
            except UserError as error:
                raise UserError(f"{path}: {_undashed(error)}") from None
            precision = "bf16" if runs_in_bf16(run.config.precision, device) else "fp32"
        first = made.setdefault((run.table, run.label), precision)
        if first != precision:
            raise UserError(
                f"{path}: some runs of {run.label} are in {first}, others would be in {precision}; "
                f"add precision: {first}, or name another --store"
            )


# The grid.


def load_grid(path: str, store: Path) -> Grid:
    """Every run that the YAML file asks for.

    Raises:
        UserError: names the file and the key.
    """
    content = load_yaml(path)
    for key in content:
        if key not in {*AXES, *OPTIONS, "continual"}:
            raise UserError(f"{path}: {unknown('key', key, [*AXES, *OPTIONS, 'continual'])}")
    streams = _files(path, content, "streams", load_dataset_config)
    hyperparams = _files(path, content, "hyperparams", lambda file: load_hyper_config(file, {}))
    entries = [_entry(path, entry) for entry in _list(path, content, "methods")]
    seeds = _seeds(path, content)
    common = {key: _option(path, key, value) for key, value in content.items() if key not in AXES}
    _check_entries(path, entries, common)
    models = [
        _run(path, store, stream, hyper, entry, common)
        for stream in streams for hyper in hyperparams for entry in entries
    ]  # fmt: skip
    runs = tuple(_with_seed(run, seed) for seed in seeds for run in models)
    names = set()
    for run in runs:
        if run.name.casefold() in names:  # some disks do not tell a from A
            raise UserError(f"{path}: two runs would be {run.directory}; rename a stream, hyperparams or a label")
        names.add(run.name.casefold())
    told = [f"{key} {value}" for key, value in common.items()]
    told += [f"{entry.label}: {key} {value}" for entry in entries for key, value in entry.options.items()]
    told += [f"{label}: all tasks at once" for label in dict.fromkeys(r.label for r in runs if not r.config.continual)]
    return Grid(runs, "; ".join(told) or "all defaults")


def _list(path: str, content: Mapping[str, Any], key: str) -> list[Any]:
    if key not in content:
        raise UserError(f"{path}: key {key!r} is missing")
    if not isinstance(content[key], list) or not content[key]:
        raise UserError(f"{path}: {key} is {content[key]!r}; it must be a list with at least one entry")
    return content[key]


def _files(path: str, content: Mapping[str, Any], key: str, load: Callable[[str], object]) -> list[str]:
    files = [_file(path, key, name) for name in _list(path, content, key)]
    try:
        for file in files:
            load(file)
    except UserError as error:
        raise UserError(f"{path}: {key}: {error}") from None
    return files


def _file(path: str, key: str, name: object) -> str:
    """Relative to the current directory, else to the project."""
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: {key}: {name!r} is not the path of a YAML file")
    return str(PROJECT / name) if not Path(name).exists() and (PROJECT / name).exists() else name


def _seeds(path: str, content: Mapping[str, Any]) -> list[int]:
    seeds = content.get("seeds")
    if not isinstance(seeds, list) and "seeds" in content:
        return list(range(Range(1, 10**4).check(f"{path}: seeds", seeds)))
    seeds = [check_range(f"{path}: seeds", "seed", seed) for seed in _list(path, content, "seeds")]
    for i, seed in enumerate(seeds):
        if seed in seeds[:i]:
            raise UserError(f"{path}: seeds has {seed} twice")
    return seeds


def _entry(path: str, entry: object) -> Entry:
    where = f"{path}: methods"
    options: dict[str, Any] = dict(entry) if isinstance(entry, dict) else {"method": entry}
    if "method" not in options:
        raise UserError(f"{where}: {entry!r} has no key 'method', such as method: zoo")
    method = options.pop("method")
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"{where}: {unknown('method', method, METHODS)}")
    label = options.pop("label", method)
    if not isinstance(label, str) or not label.isprintable() or not 0 < len(label) <= 80:
        raise UserError(f"{where}: label is {label!r}; it must be a line of text of at most 80 characters")
    where = f"{where}: {label}"
    for key in options:
        if key not in {"continual", *OPTIONS}:
            raise UserError(f"{where}: {unknown('key', key, ['label', 'method', 'continual', *OPTIONS])}")
    return Entry(method, label, {key: _option(where, key, value) for key, value in options.items()})


def _option(where: str, key: str, value: object) -> Any:
    """The value of an option of modelzoo.py, checked as far as it can be by itself."""
    if key == "continual" or OPTIONS[key]:
        if not isinstance(value, bool):
            raise UserError(f"{where}: {key} is {value!r}; it must be true or false")
        return value
    if key in RANGES:
        return check_range(f"{where}: {key}", key, value)
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {key} is {value!r}; it must be a text")
    if key in CHOICES and value not in CHOICES[key]:
        raise UserError(f"{where}: {key}: {unknown(key, value, CHOICES[key])}")
    return _file(where, key, value) if key == "method_config" else value


def _check_entries(path: str, entries: Sequence[Entry], common: Mapping[str, Any]) -> None:
    labels = [entry.label for entry in entries]
    for i, entry in enumerate(entries):
        where = f"{path}: methods: {entry.label}"
        if entry.label in labels[:i]:
            raise UserError(f"{where} is there twice; give each entry a label of its own")
        modes, continual = METHODS[entry.method].modes, {**common, **entry.options}.get("continual")
        if continual is False and "multi-task" not in modes:
            raise UserError(f"{where}: continual is false, but {entry.method} learns tasks one after another only")
        if entry.options.get("continual") and "continual" not in modes:
            raise UserError(f"{where}: continual is true, but {entry.method} learns all tasks at once")
    used = frozenset().union(*(METHODS[entry.method].options for entry in entries))
    if "method_config" in common:
        raise UserError(f"{path}: method_config is of one method; move it to an entry of methods")
    for key in common:
        if key in METHOD_OPTIONS and key not in used:
            raise UserError(f"{path}: {key} is not used by any method of the grid; leave it out")


def _run(path: str, store: Path, stream: str, hyper: str, entry: Entry, common: Mapping[str, Any]) -> Run:
    """A run with seed 0, in a directory without a seed."""
    kind = METHODS[entry.method]
    options: dict[str, Any] = {"continual": "continual" in kind.modes}
    options |= {key: value for key, value in common.items() if key not in METHOD_OPTIONS or key in kind.options}
    options["continual"] &= "continual" in kind.modes
    if any(key in KEPT for key in entry.options):
        options = {key: value for key, value in options.items() if key not in KEPT}
    options |= entry.options
    given = [f"--data_config={stream}", f"--hp_config={hyper}", f"--method={entry.method}"]
    for key, value in options.items():
        if value is not False:
            given.append(f"--{key}" if value is True else f"--{key}={value}")
    where = f"{path}: methods: {entry.label}"
    try:
        invocation = parse(given)
        check_method(invocation.config, invocation.given)
        config = with_settings(invocation.config, invocation.method_config)
        where = f"{path}: streams"
        check_dataset(config)
    except UserError as error:
        raise UserError(f"{where}: {_undashed(error)}") from None
    model = config.hyper.model
    if model not in TRUNKS and not model.startswith("timm/"):
        raise UserError(f"{path}: {hyper}: model: {unknown('model', model, [*TRUNKS, 'timm/<name>'])}")
    net = Path(hyper).stem
    directory = store / f"{config.stream}-{net}-{re.sub('[^A-Za-z0-9._+-]+', '_', entry.label)}"
    return Run(directory, entry.label, net, config, tuple(given))


def _undashed(error: UserError) -> str:
    """Options stand in a grid without their dashes."""
    return re.sub(r"--(?=[a-z])", "", str(error))


def _with_seed(run: Run, seed: int) -> Run:
    directory = run.directory.with_name(f"{run.name}-seed{seed}")
    here = (f"--seed={seed}", f"--run_dir={directory}")
    return replace(run, directory=directory, config=replace(run.config, seed=seed), arguments=(*run.arguments, *here))


# Running it.


def execute(runs: Sequence[Run], store: Path, at_a_time: int, lock: int, failures: dict[str, str]) -> None:
    """Run them; a line for each that has ended. `failures` receives name -> reason."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // at_a_time)
    (store / "logs").mkdir(exist_ok=True)
    by_name = {run.name: run for run in runs}
    begin = time.perf_counter()
    jobs = [job(run, store, share) for run in runs]
    with Lines(by_name, at_a_time, begin) as lines, closing(run_jobs(jobs, at_a_time, lock, lines.look)) as ended:
        for number, end in enumerate(ended, 1):
            lines.ended = number
            told, left = outcome(by_name[end.name], end, failures), duration(lines.left(number))
            lines.say(f"{end.name}: {told}, {end.seconds:.0f} s; {len(runs) - number} remain, about {left}")


class Lines:
    """On a terminal, below what has ended: a line for each run that is under way, and the time that remains."""

    def __init__(self, runs: Mapping[str, Run], at_a_time: int, begin: float) -> None:
        self.ended = 0
        self._runs, self._begin = runs, begin
        off = not sys.stderr.isatty()
        shape = {"bar_format": "{desc}", "leave": False, "disable": off}
        self._bars = [tqdm(position=place, **shape) for place in range(at_a_time + 1)] if runs else []

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self._bars:
            bar.close()

    def look(self, names: Sequence[str]) -> None:
        """The runs that are under way."""
        if self._bars and self._bars[0].disable:
            return
        progress = [episodes(self._runs[name]) for name in names]
        told = [f"{name}: {done} of {total} episodes" for name, (done, total) in zip(names, progress, strict=True)]
        parts = self.ended + sum(done / total for done, total in progress)
        left = f", about {duration(self.left(parts))}" if parts else ""
        told.append(f"{self.ended} of {len(self._runs)} runs ended{left} left")
        for bar, text in zip(self._bars, [*told, *[""] * len(self._bars)], strict=False):
            bar.set_description_str(text)

    def left(self, ended: float) -> float:
        """Seconds, if what remains takes as long as what has ended (parts of runs count)."""
        return (time.perf_counter() - self._begin) / ended * (len(self._runs) - ended)

    def say(self, text: str) -> None:
        """A line that stays."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def episodes(run: Run) -> tuple[int, int]:
    """How many are complete, and of how many."""
    config, tasks = run.config, len(run.config.dataset.tasks)
    total = tasks if config.continual else 1
    if not config.continual and "rounds" in METHODS[config.method].options:
        total = (config.rounds or tasks) + config.warm_start
    try:
        manifest = read_manifest(run.directory)
    except UserError:  # it will say so itself
        manifest = None
    return 0 if manifest is None else manifest.episode, total


def make_report(runs: Sequence[Run], store: Path, command: str) -> None:
    """The finished runs side by side.

    Raises:
        UserError: one of them is damaged, or the store cannot be written.
    """
    from reporting import reading  # only now: what draws takes a second to load
    from reporting.groups import compare
    from reporting.page import of_several_runs

    runs = [run for run in runs if run.finished and episodes(run)[0]]
    if runs:
        with reading(str(store), store):
            comparisons = compare([run.directory for run in runs], labels={run.directory: run.label for run in runs})
            print(f"the report is {of_several_runs(comparisons, command).write(store)}")


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def job(run: Run, store: Path, share: int) -> Job:
    """The command of a run; `share`: the most threads that it gets, unless the grid gives them."""
    command = [sys.executable, str(PROGRAM), *run.arguments, "--quiet"]
    command.append("--resume")  # where it was interrupted, if it was
    threads = str(run.config.threads or share)
    return Job(run.name, command, {"OMP_NUM_THREADS": threads}, store / "logs" / f"{run.name}.log")


def outcome(run: Run, end: Ended, failures: dict[str, str]) -> str:
    """In a word; a failure is noted."""
    if end.code == 0 and run.finished:
        return f"accuracy {json.loads(run.summary.read_text())['avg_acc_final']:.4f}"
    failures[run.name] = end.reason() if end.code else "it ended without a summary.json"
    return "failed"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: its runs end with it
    sys.exit(main())
