"""The run directories of a benchmark: check them against the grid and collect their results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import metrics
from methods.config import RunConfig
from records import directory, summary
from records.configuration import SECTIONS, comparable, keys_where, plain_config
from records.directory import check_free, holds_run
from records.manifest import SUMMARY, damaged, read_manifest
from studies.tables import LEDGER, METRICS, ComparisonTable, Values, latex, markdown
from utils.errors import UserError
from utils.files import csv_bytes, write_bytes
from utils.settings import declarations, flat

COLUMNS = (
    *(column.key for column in METRICS), "avg_incremental_acc", "worst_task_acc",
    *(column.key for column in LEDGER), "members_per_prediction", "images_trained", "images_per_second",
    "total_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class PlannedRun:
    """One run of modelzoo.py that a grid asks for, finished or not."""

    directory: Path
    label: str
    net: str
    config: RunConfig
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def table(self) -> str:
        return f"{self.config.stream}, {self.net}"

    @property
    def finished(self) -> bool:
        """Whether the run is complete."""
        manifest = read_manifest(self.directory)
        return manifest is not None and manifest.finished


def check_run(run: PlannedRun, grid: str) -> None:
    """Raise UserError if the run's directory holds a run with other options than the grid `grid` has."""
    if not holds_run(run.directory):
        check_free(run.directory, overwrite=False)
        return
    asked = _determining(json.loads(json.dumps(plain_config(run.config), default=str)))
    found = _determining(config_of(run))
    for key in sorted(asked.keys() | found.keys()):
        was, now = (f"{values[key]!s:.60}" if key in values else "nothing" for values in (found, asked))
        if asked.get(key) != found.get(key) or (key in asked) != (key in found):
            raise UserError(
                f"{run.directory} was run with {key}: {was}, but {grid} asks for {now}; "
                "name another --store or remove that directory"
            )


def _determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration that determine its result, by dotted key."""
    parts = {*SECTIONS, *declarations(RunConfig), "settings"}
    values = dict(flat({key: value for key, value in config.items() if key in parts}))
    return {key: value for key, value in values.items() if key not in keys_where("machine")}


def config_of(run: PlannedRun) -> dict[str, Any]:
    """config.yaml of a run; UserError if it or the summary.json of a finished run is missing or damaged."""
    if run.finished:
        summary_of(run)
    return directory.read_config(run.directory)


def summary_of(run: PlannedRun) -> dict[str, Any]:
    """The checked summary.json of a finished run; UserError if it is damaged."""
    found = summary.read_summary(run.directory) or {}
    try:
        reached, learned = (summary.figure(found, key) for key in ("per_task_acc", "per_task_learning_acc"))
        numbers = [*reached, *(reached if learned is None else learned)]
        numbers += [found[key] for key in columns_of(found["metric"]) if found.get(key) is not None]
        if len(numbers) < 2 * len(reached) or not reached or not all(map(_is_figure, numbers)):
            raise ValueError("a figure is missing, or is none")
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(run.directory, SUMMARY, error) from None


def columns_of(metric: str) -> list[str]:
    """Keys of summary.json that results.csv shows for a stream with this main metric."""
    return list(dict.fromkeys(summary.key_of(key, metric) for key in COLUMNS))


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def write_tables(
    runs: Sequence[PlannedRun], store: Path, failures: Mapping[str, str], options: str, command: str
) -> None:
    """Write results.csv, table.md and table.tex from the run directories.

    `failures` maps names of failed runs to reasons; options and command appear in the notes below the tables.
    """
    measured = figures(runs)
    columns = list(dict.fromkeys(key for values in [dict.fromkeys(COLUMNS), *measured.values()] for key in values))
    rows: list[list[object]] = [["label", "method", "stream", "net", "seed", "status", *columns, "directory"]]
    tables: dict[str, dict[str, dict[int, Values]]] = {}
    for run in runs:
        values = measured.get(run.name)
        status = "finished" if values else "failed" if run.name in failures else "missing"
        shown = [(values or {}).get(key) for key in columns]
        rows.append([
            run.label, run.config.method, run.config.stream, run.net, run.config.seed, status, *shown, run.name
        ])  # fmt: skip
        finished = tables.setdefault(run.table, {}).setdefault(run.label, {})
        if values:
            finished[run.config.seed] = values
    seeds = len({run.config.seed for run in runs})
    compared = [ComparisonTable(title, seeds, labels) for title, labels in tables.items()]
    notes = [f"Options, each for the methods that use it: {options}."]
    notes += provenance_notes([run for run in runs if run.name in measured])
    write_bytes(store / "results.csv", csv_bytes(rows))
    write_bytes(store / "table.md", markdown(compared, notes, command).encode())
    write_bytes(store / "table.tex", latex(compared, notes, command).encode())


def figures(runs: Sequence[PlannedRun]) -> dict[str, dict[str, Any]]:
    """The figures of each finished run by name, from its summary.json.

    gain_isolated and fwt_isolated (evaluation/metrics.py) are computed against the isolated run with the same data,
    recipe and seed.
    """
    finished = [(run, reference(plain_config(run.config)), summary_of(run)) for run in runs if run.finished]
    isolated = {key: found for run, key, found in finished if run.config.method == "isolated"}
    measured: dict[str, dict[str, Any]] = {}
    for run, key, found in finished:
        values = {name: found.get(name) for name in ("metric", "higher_is_better", *columns_of(found["metric"]))}
        values["gain_isolated"] = values["fwt_isolated"] = None
        if key in isolated:
            sign = 1 if found["higher_is_better"] else -1
            alone = sign * np.array(summary.figure(isolated[key], "per_task_acc"))
            reached, learned = (summary.figure(found, name) for name in ("per_task_acc", "per_task_learning_acc"))
            if len(alone) != len(reached):
                wrong = "it has not as many tasks as the isolated run it is compared with"
                raise UserError(f"{run.directory} is damaged ({wrong}); remove it")
            # Both metrics read only the diagonal and the last row of the accuracy matrix.
            R = np.full((len(alone), len(alone)), np.nan)
            if learned is not None and len(alone) > 1:
                np.fill_diagonal(R, learned)
                values["fwt_isolated"] = metrics.fwt_isolated(sign * R, alone)
            R[-1] = reached
            values["gain_isolated"] = metrics.gain_isolated(sign * R, alone)
        measured[run.name] = values
    return measured


def reference(config: Mapping[str, Any]) -> str:
    """A text that is equal for the configurations of runs that can be compared task by task."""
    return json.dumps(comparable(config) | {"seed": config["seed"]}, sort_keys=True)


def provenance_notes(runs: Sequence[PlannedRun]) -> list[str]:
    """Devices, versions and commits of the finished runs, and the date of the newest."""
    facts: dict[str, dict[str, None]] = {}  # a dict for a set that keeps its order
    for run in runs:
        config = config_of(run)
        for key in ("device", "precision", "threads"):
            facts.setdefault(key, {})[str(config.get(key))] = None
        versions = config.get("versions")
        for package, version in versions.items() if isinstance(versions, dict) else ():
            facts.setdefault(package, {})[str(version)] = None
        commit = str(config.get("commit"))[:12] + " with changes" * bool(config.get("uncommitted_changes"))
        facts.setdefault("commit", {})[commit] = None
    if not runs:
        return []
    made = ", ".join(f"{key} {' / '.join(values)}" for key, values in facts.items())
    newest = date.fromtimestamp(max((run.directory / SUMMARY).stat().st_mtime for run in runs))
    return [f"Made with: {made}.", f"Newest run: {newest}."]
