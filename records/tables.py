"""Reading and writing the two tables of a run: metrics.csv, a line a score, and episodes.csv, a line an episode."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from itertools import groupby
from pathlib import Path
from typing import Any, get_type_hints

from datasets.objectives import Scored
from evaluation.measurements import Measurement
from records.manifest import Manifest, checked, reading
from records.monitor import EpisodeFacts
from utils.files import csv_bytes, from_cell

METRICS, EPISODES = "metrics.csv", "episodes.csv"
_WHERE = tuple(field.name for field in fields(Measurement) if field.name != "scores")
_HEADERS: Mapping[str, Sequence[str]] = {
    METRICS: (*_WHERE, "metric", "value", "n", "stderr"),
    EPISODES: tuple(field.name for field in fields(EpisodeFacts)),
}
# The types of the columns.
_PLACE, _FACTS = get_type_hints(Measurement), get_type_hints(EpisodeFacts)


def header(name: str) -> bytes:
    """The first line of a table."""
    return csv_bytes([_HEADERS[name]])


def metric_lines(rows: Iterable[Measurement]) -> bytes:
    """A line for each score, the main metric of a measurement first; floats keep all their digits."""
    return csv_bytes(
        [*(getattr(row, name) for name in _WHERE), metric, scored.value, scored.n,
         "" if scored.stderr is None else scored.stderr]
        for row in rows for metric, scored in row.scores.items()
    )  # fmt: skip


def read_metrics(text: str) -> list[Measurement]:
    """The inverse of `header` and `metric_lines`; KeyError, ValueError, TypeError or csv.Error for another text."""
    found = []
    for where, lines in groupby(_lines(text), lambda line: tuple(line[name] for name in _WHERE)):
        scores = {
            line["metric"]: Scored(
                float(line["value"]), float(line["stderr"]) if line["stderr"] else None, int(line["n"])
            )
            for line in lines
        }
        values = {name: _PLACE[name](from_cell(text)) for name, text in zip(_WHERE, where, strict=True)}
        found.append(Measurement(**values, scores=scores))
    return found


def episode_line(facts: EpisodeFacts) -> bytes:
    """A line of episodes.csv: tasks as "1 2", sampling weights as "1:0.5 2:0.5", NaN as nothing."""
    weights = " ".join(f"{task}:{weight:.6g}" for task, weight in facts.sampling_weights.items())
    values: list[object] = list(astuple(facts))
    values[1:3] = [" ".join(map(str, facts.tasks)), weights]
    return csv_bytes([["" if value != value else value for value in values]])


def read_measurements(path: Path, manifest: Manifest) -> tuple[list[Measurement], list[EpisodeFacts]]:
    """The committed rows of metrics.csv and episodes.csv; none before something was measured."""
    if not manifest.episode and METRICS not in manifest.files:
        return [], []
    with reading(path, METRICS):
        rows = read_metrics(checked(path, manifest, METRICS).decode())
    if not manifest.episode:  # the single network of a task is still being trained
        return rows, []
    with reading(path, EPISODES):
        return rows, list(map(_facts, _lines(checked(path, manifest, EPISODES).decode())))


def _lines(text: str) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(text), strict=True)


def _facts(line: Mapping[str, str]) -> EpisodeFacts:
    weights = dict(pair.split(":") for pair in line["sampling_weights"].split())
    own: dict[str, Any] = {
        "tasks": [int(task) for task in line["tasks"].split()],
        "sampling_weights": {int(task): float(weight) for task, weight in weights.items()},
    }
    return EpisodeFacts(**own, **{name: _FACTS[name](text or "nan") for name, text in line.items() if name not in own})
