"""The run directories of a benchmark: check them against the grid and collect their results."""

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from datasets.validation import NOTICE
from evaluation import metrics
from records.configuration import SECTIONS, alike, comparable, lacking
from records.directory import check_free, holds_run, shared_config
from records.manifest import SUMMARY, read_manifest
from records.summary import by_task, figure, key_of, read_summary
from studies.differences import differences_table
from studies.grid_file import DirectoryNames
from studies.planned import Grid, PlannedRun
from studies.ranks import ranks_section
from studies.replicates import Replicate, replicate_of, without_order
from studies.tables import LEDGER, METRICS, ComparisonTable, Values, latex, markdown
from studies.tuned import tuned_section
from studies.variance import splits, variance_csv, variance_section
from utils.errors import UserError
from utils.files import csv_bytes, write_bytes
from utils.settings import plain

COLUMNS = (
    *(column.key for column in METRICS), "avg_incremental_acc", "worst_task_acc",
    *(column.key for column in LEDGER), "members_per_prediction", "images_trained", "images_per_second",
    "total_seconds", "selection_entropy",
)  # fmt: skip


def check_run(run: PlannedRun) -> None:
    """Raise UserError if a run cannot be put into its directory, or the results there are damaged."""
    if holds_run(run.directory):
        try:
            read_summary(run.directory)  # before anything is run, as a damaged one is refused
        except UserError as error:
            if "--overwrite" not in str(error):
                raise
            damage = str(error).partition("; ")[0]
            raise UserError(f"{damage}; remove {run.directory}, and the same command makes the run again") from None
    else:
        check_free(run.directory, overwrite=False)


def make_directories(runs: Sequence[PlannedRun], store: Path) -> bool:
    """Make the directories of runs, so that commands begun at the same time agree on their names.

    False, and nothing is made, if one has appeared under another name since the grid was read. OSError if the store
    cannot be written.
    """
    names = dict.fromkeys(run.name.partition("/")[0] for run in runs)
    folder = os.open(store, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every shared disk can lock folders
            fcntl.flock(folder, fcntl.LOCK_EX)
        there = DirectoryNames(store)
        if not all(map(there.agree, names)):
            return False
        for name in names:
            (store / name).mkdir(exist_ok=True)
        return True
    finally:
        os.close(folder)


def drop_empty(runs: Sequence[PlannedRun], store: Path) -> None:
    """Remove the directories of runs that were not begun."""
    for name in {run.name.partition("/")[0] for run in runs}:
        with suppress(OSError):  # it is not empty
            (store / name).rmdir()


def write_tables(grid: Grid, store: Path, failures: Mapping[str, str], command: str) -> None:
    """Write results.csv, table.md and table.tex.

    table.md begins with differences if the grid asks for a comparison, ranks over streams if there are several, and the
    variance that seeds and task orders add, which is in variance.csv, too.
    """
    runs, finished = grid.runs, read_finished(grid.runs)
    measured = figures(finished)
    write_results(runs, store, failures, measured, COLUMNS)
    tables: dict[str, dict[str, dict[Replicate, Values]]] = {}
    headings = _headings(runs)
    for run, heading in zip(runs, headings, strict=True):
        row = tables.setdefault(heading, {}).setdefault(run.label, {})
        if run.name in measured:
            row[run.replicate] = measured[run.name]
    seeds, orders = ({getattr(run.replicate, part) for run in runs} for part in ("seed", "order"))
    compared = [ComparisonTable(title, len(seeds), labels, len(orders)) for title, labels in tables.items()]
    notes = [f"Options, each for the methods that use it: {grid.options}."]
    notes += provenance_notes(finished)
    differences = differences_table(compared, grid.against) if grid.against else ""
    split = splits(compared)
    if split:
        write_bytes(store / "variance.csv", variance_csv(split))
    tuned = tuned_section(list(zip(headings, runs, strict=True)), measured)
    sections = differences + tuned + ranks_section(compared) + variance_section(split)
    write_bytes(store / "table.md", (sections + markdown(compared, notes, command)).encode())
    write_bytes(store / "table.tex", latex(compared, notes, command).encode())


def write_results(
    runs: Sequence[PlannedRun], store: Path, failures: Mapping[str, str], measured: Mapping[str, Values],
    columns: Sequence[str],
) -> None:  # fmt: skip
    """Write results.csv: a row per run with the `columns`, and what else was `measured`, by name of the run."""
    columns = list(dict.fromkeys(chain(columns, *measured.values())))
    facts = ("label", "method", "stream", "net", "seed", "task_order", "status")
    rows: list[list[object]] = [[*facts, *columns, "directory"]]
    for run in runs:
        values, config = measured.get(run.name, {}), run.config
        status = "finished" if values else "failed" if run.name in failures else "missing"
        known = (run.label, config.method, config.stream, run.net, config.seed, config.data.task_order, status)
        rows.append([*known, *(values.get(key) for key in columns), run.name])
    write_bytes(store / "results.csv", csv_bytes(rows))


class FinishedRun(NamedTuple):
    """A run of a grid that is complete, its config.yaml and its summary.json."""

    run: PlannedRun
    config: Mapping[str, Any]
    summary: Values


def read_finished(runs: Sequence[PlannedRun]) -> list[FinishedRun]:
    """Those of the runs that are complete; UserError if one is damaged."""
    found = [(run, manifest) for run in runs if (manifest := read_manifest(run.directory)) and manifest.finished]
    return [
        FinishedRun(run, shared_config(run.directory, manifest), read_summary(run.directory, manifest) or {})
        for run, manifest in found
    ]


def figures(finished: Sequence[FinishedRun]) -> dict[str, dict[str, Any]]:
    """The figures of each run by name; gains are over the isolated run with the same data, recipe and seed."""
    keys = _Keys()
    isolated: dict[str, list[tuple[Mapping[str, Any], Values]]] = {}
    for run, config, found in finished:
        if run.config.method == "isolated":
            isolated.setdefault(keys.of(config), []).append((config, found))
    measured: dict[str, dict[str, Any]] = {}
    for run, config, found in finished:
        same = isolated.get(keys.of(config), ())
        alone = next((found for reference, found in same if lacking(reference, config) is None), None)
        columns = [key_of(column, found["metric"]) for column in COLUMNS]
        values = {name: found.get(name) for name in ("metric", "higher_is_better", *columns)}
        measured[run.name] = values | _gains(found, alone)
    return measured


class _Keys:
    """A text that is the same for runs whose configurations are `alike`."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], str] = {}

    def of(self, config: Mapping[str, Any]) -> str:
        """The text of a `shared_config`; those with the same sections are compared once."""
        parts = tuple(id(config[name]) for name in SECTIONS)
        if parts not in self._known:
            shared = alike({name: config[name] for name in SECTIONS})
            self._known[parts] = json.dumps(shared, sort_keys=True, default=str)
        return f"{config.get('seed')} {self._known[parts]}"


def _gains(summary: Values, isolated: Values | None) -> dict[str, float | None]:
    if isolated is None:
        return {"gain_isolated": None, "fwt_isolated": None}
    sign = 1 if summary["higher_is_better"] else -1
    single = by_task(isolated, "per_task_acc") or {}
    alone = sign * np.array([single[task] for task in summary["task_numbers"]])
    reached = sign * np.array(figure(summary, "per_task_acc"))
    gain, forward = metrics.gain_isolated(reached[None], alone), None  # it reads only the last row of R
    if (learned := figure(summary, "per_task_learning_acc")) is not None and len(alone) > 1:
        forward = metrics.fwt_isolated(np.diag(sign * np.array(learned)), alone)  # it reads only the diagonal
    return {"gain_isolated": gain, "fwt_isolated": forward}


def _headings(runs: Sequence[PlannedRun]) -> list[str]:
    """The title of the table of each run, from what it was asked to do; runs that share their data are read once."""
    data = {key: plain(each) for key, each in {id(run.config.data): run.config.data for run in runs}.items()}
    return titles([(run.table, {"data": data[id(run.config.data)], "seed": run.config.seed}) for run in runs])


def titles(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The title of the table of each run, from a name and config.yaml, which says how data of the same name differ."""
    kinds: dict[str, list[tuple[dict[str, Any], dict[Any, str]]]] = {}  # name -> different data, and their checksums
    found = []
    for name, config in runs:
        data, groups = without_order(comparable(config, ["data"])), kinds.setdefault(name, [])
        # By seed and order too, which decide what is used of the data.
        sums = {(replicate_of(config), task): value for task, value in (config.get("data_sha256") or {}).items()}
        fits = (n for n, (other, known) in enumerate(groups) if other == data and known | sums == sums | known)
        place = next(fits, len(groups))
        groups[place:] = groups[place:] or [(data, {})]
        groups[place][1].update(sums)
        found.append((name, place))
    words = {name: _differences([data for data, _ in groups]) for name, groups in kinds.items()}
    return [", ".join([name, *words[name][place]]) for name, place in found]


def _differences(alike: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each of some data, the words that tell it from the others; a number where words do not."""
    found = [
        [_in_words(key, value) for key, value in data.items() if value and any(o.get(key) != value for o in alike)]
        for data in alike
    ]
    shared = set(found[0]).intersection(*found)  # as of other tasks, but as many
    found = [[word for word in words if word not in shared] for words in found]
    return [
        [*[f"data {found[: place + 1].count(words)}"] * (found.count(words) > 1), *words]
        for place, words in enumerate(found)
    ]


def _in_words(key: str, value: Any) -> str:
    if key == "data.tasks":
        return f"{len(value)} task{'s' * (len(value) != 1)}"
    if key == "data.forgotten":
        return f"without task {', '.join(map(str, value))}"
    return f"{key.removeprefix('data.')} {value}"


def provenance_notes(finished: Sequence[FinishedRun]) -> list[str]:
    """Devices, versions and commits of the runs, the date of the newest, and which read no test examples."""
    facts: dict[str, dict[str, None]] = {}  # a dict for a set that keeps its order
    for _, config, _ in finished:
        commit = str(config["commit"])[:12] + " with changes" * config["uncommitted_changes"]
        made = {key: config[key] for key in ("device", "precision", "threads")}
        for key, value in {**made, **config["versions"], "commit": commit}.items():
            facts.setdefault(key, {})[str(value)] = None
    if not finished:
        return []
    listed = ", ".join(f"{key} {' / '.join(values)}" for key, values in facts.items())
    newest = date.fromtimestamp(max((run.directory / SUMMARY).stat().st_mtime for run, *_ in finished))
    return [f"Made with: {listed}.", f"Newest run: {newest}.", *_validated([run for run, *_ in finished])]


def _validated(runs: Sequence[PlannedRun]) -> list[str]:
    """A line that says of which runs validation examples stand in the place of test examples; none if no run has."""
    of = [run for run in runs if run.config.data.validation]
    labels = ", ".join(dict.fromkeys(f"{run.label} ({run.table})" for run in of))
    which = "" if len(of) == len(runs) else f" of {labels}"
    return [f"Wherever these tables say test, read validation{which}: {NOTICE}."] if of else []
