"""The runs of a benchmark: are they what was asked for, and what came out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluation import metrics
from methods.config import RunConfig
from records.configuration import SECTIONS, comparable, keys_where, plain_config
from records.directory import CONFIG, check_free, holds_run
from records.manifest import read_manifest
from studies.tables import LEDGER, METRICS, Table, Values, latex, markdown
from utils.errors import UserError
from utils.files import CsvText, write_bytes
from utils.settings import declarations, flat
from utils.yaml_files import parse_yaml

COLUMNS = (
    *(column.key for column in METRICS), "avg_incremental_acc", "worst_task_acc",
    *(column.key for column in LEDGER), "members_per_prediction", "images_trained", "images_per_second",
    "total_seconds",
)  # fmt: skip
_LARGEST = 1 << 28  # bytes
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is ten times as fast


@dataclass(frozen=True)
class Run:
    """One run of modelzoo.py."""

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
    def summary(self) -> Path:
        """Written at the end of a run."""
        return self.directory / "summary.json"

    @property
    def finished(self) -> bool:
        """A summary.json that is not committed yet does not count."""
        if not self.summary.exists():
            return False
        manifest = read_manifest(self.directory)
        return manifest is None or manifest.finished


def check_run(run: Run, grid: str) -> None:
    """A run that is there must be the one that the grid asks for, whether it is finished or to be gone on with.

    Raises:
        UserError: names the run and what differs.
    """
    if not holds_run(run.directory):
        check_free(run.directory, overwrite=False)
        return
    asked = _determining(json.loads(json.dumps(plain_config(run.config), default=str)))
    found = _determining(read_config(run))
    for key in sorted(asked.keys() | found.keys()):
        if asked.get(key) != found.get(key) or (key in asked) != (key in found):
            was, now = (f"{values[key]!s:.60}" if key in values else "nothing" for values in (found, asked))
            raise UserError(
                f"{run.directory} was run with {key}: {was}, but {grid} asks for {now}; "
                "name another --store or remove that directory"
            )


def _determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a configuration, by dotted key, what determines a result."""
    parts = {*SECTIONS, *declarations(RunConfig), "settings"}
    values = dict(flat({key: value for key, value in config.items() if key in parts}))
    return {key: value for key, value in values.items() if key not in keys_where("machine")}


def read_config(run: Run) -> dict[str, Any]:
    """config.yaml of a run, whose summary.json is tried too if it is finished.

    Raises:
        UserError: one of them is missing or damaged.
    """
    if run.finished:
        read_summary(run)
    path = run.directory / CONFIG
    return parse_yaml(str(path), _text(run, path), _LOADER)


def read_summary(run: Run) -> dict[str, Any]:
    """summary.json of a finished run, with figures where figures belong.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        summary = dict(json.loads(_text(run, run.summary)))
        accuracies, learned = summary["per_task_acc"], summary.get("per_task_learning_acc")
        numbers = [*accuracies, *(accuracies if learned is None else learned)]
        numbers += [summary[key] for key in COLUMNS if summary.get(key) is not None]
        if len(numbers) < 2 * len(accuracies) or not accuracies or not all(map(_is_figure, numbers)):
            raise ValueError("a figure is missing, or is none")
        return summary
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise UserError(f"{run.directory} is damaged ({error}); remove it") from None


def _text(run: Run, path: Path) -> str:
    """
    Raises:
        UserError: it is no ordinary file, or no text.
    """
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise OSError(f"{path.name} is missing, or too large")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{run.directory} is damaged ({error}); remove it") from None


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def write_tables(runs: Sequence[Run], store: Path, failures: Mapping[str, str], options: str, command: str) -> None:
    """results.csv, table.md and table.tex from the run directories.

    Args:
        failures: name of a run -> reason.
        options, command: how the runs were asked for; they stand below the tables.
    """
    measured = figures(runs)
    csv = CsvText(["label", "method", "stream", "net", "seed", "status", *COLUMNS, "directory"])
    rows: list[list[object]] = []
    tables: dict[str, dict[str, dict[int, Values]]] = {}
    for run in runs:
        values = measured.get(run.name)
        status = "finished" if values else "failed" if run.name in failures else "missing"
        shown = [(values or {}).get(key) for key in COLUMNS]
        rows.append([
            run.label, run.config.method, run.config.stream, run.net, run.config.seed, status, *shown, run.name
        ])  # fmt: skip
        finished = tables.setdefault(run.table, {}).setdefault(run.label, {})
        if values:
            finished[run.config.seed] = values
    seeds = len({run.config.seed for run in runs})
    compared = [Table(title, seeds, labels) for title, labels in tables.items()]
    notes = [
        f"Options, each for the methods that use it: {options}.",
        *provenance_notes([run for run in runs if run.name in measured]),
    ]
    write_bytes(store / "results.csv", csv.add(rows))
    write_bytes(store / "table.md", markdown(compared, notes, command).encode())
    write_bytes(store / "table.tex", latex(compared, notes, command).encode())


def figures(runs: Sequence[Run]) -> dict[str, Values]:
    """By name, what each finished run has in its summary.json, and how it compares with isolated networks:
    gain_isolated and fwt_isolated (evaluation/metrics.py) against the isolated run with the same data, recipe and seed.
    """
    summaries = {run.name: read_summary(run) for run in runs if run.finished}
    isolated = {
        reference(run): np.array(summaries[run.name]["per_task_acc"])
        for run in runs if run.name in summaries and run.config.method == "isolated"
    }  # fmt: skip
    measured: dict[str, Values] = {}
    for run in runs:
        if run.name not in summaries:
            continue
        summary = summaries[run.name]
        values = {key: summary.get(key) for key in COLUMNS}
        values["gain_isolated"] = values["fwt_isolated"] = None
        if reference(run) in isolated:
            alone = isolated[reference(run)]
            if len(alone) != len(summary["per_task_acc"]):
                raise UserError(
                    f"{run.directory} is damaged (it has not as many tasks as the isolated run it is compared with); "
                    "remove it"
                )
            # Of the accuracy matrix both need no more than its diagonal and its last row.
            R = np.full((len(alone), len(alone)), np.nan)
            if summary.get("per_task_learning_acc") is not None:
                np.fill_diagonal(R, summary["per_task_learning_acc"])
                if len(alone) > 1:
                    values["fwt_isolated"] = metrics.fwt_isolated(R, alone)
            R[-1] = summary["per_task_acc"]
            values["gain_isolated"] = metrics.gain_isolated(R, alone)
        measured[run.name] = values
    return measured


def reference(run: Run) -> str:
    """Runs in which this is equal can be compared task by task."""
    return json.dumps({**comparable(plain_config(run.config)), "seed": run.config.seed}, sort_keys=True)


def provenance_notes(runs: Sequence[Run]) -> list[str]:
    """What the finished runs were made with; several values where they differ."""
    facts: dict[str, dict[str, None]] = {}  # a dict for a set that keeps its order
    for run in runs:
        config = read_config(run)
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
    newest = date.fromtimestamp(max(run.summary.stat().st_mtime for run in runs))
    return [f"Made with: {made}.", f"Newest run: {newest}."]
