"""Reading and writing the two tables of a run: metrics.csv, a line a score, and episodes.csv, a line an episode."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, fields
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from datasets.objectives import Scored
from evaluation.measurements import Measurement
from records.manifest import Manifest, checked, damaged
from records.monitor import EpisodeFacts
from utils.files import csv_bytes

METRICS, EPISODES = "metrics.csv", "episodes.csv"
_WHERE = tuple(field.name for field in fields(Measurement) if field.name != "scores")
HEADERS: Mapping[str, Sequence[str]] = {
    METRICS: (*_WHERE, "metric", "value", "n", "stderr"),
    EPISODES: tuple(field.name for field in fields(EpisodeFacts)),
}
_TEXTS = ("task_name", "split", "slice", "scenario")
Parsed = TypeVar("Parsed")
_REAL = ("seconds", "train_seconds", "images_per_second", "train_loss")


def header(name: str) -> bytes:
    """The first line of a table."""
    return csv_bytes([HEADERS[name]])


def metric_lines(rows: Iterable[Measurement]) -> bytes:
    """A line for each score, the main metric of a measurement first; floats keep all their digits."""
    return csv_bytes(
        [*(getattr(row, name) for name in _WHERE), metric, scored.value, scored.n,
         "" if scored.stderr is None else scored.stderr]
        for row in rows for metric, scored in row.scores.items()
    )  # fmt: skip


def read_metrics(text: str) -> list[Measurement]:
    """The inverse of `header` and `metric_lines`; raises ValueError, TypeError or csv.Error for another text."""
    found = []
    for where, lines in groupby(_lines(METRICS, text), lambda line: tuple(line[name] for name in _WHERE)):
        scores = {line["metric"]: _scored(line) for line in lines}
        values: dict[str, Any] = {
            name: value if name in _TEXTS else int(value) for name, value in zip(_WHERE, where, strict=True)
        }
        found.append(Measurement(**values, scores=scores))
    return found


def episode_line(facts: EpisodeFacts) -> bytes:
    """A line of episodes.csv: tasks as "1 2", sampling weights as "1:0.5 2:0.5"."""
    weights = " ".join(f"{task}:{weight:.6g}" for task, weight in facts.sampling_weights.items())
    values: list[object] = list(astuple(facts))
    values[1:3] = [" ".join(map(str, facts.tasks)), weights]
    return csv_bytes([values])


def read_measurements(path: Path, manifest: Manifest) -> tuple[list[Measurement], list[EpisodeFacts]]:
    """The committed rows of metrics.csv and episodes.csv; none before the first episode is complete."""
    if not manifest.episode:
        return [], []
    return _parsed(path, manifest, METRICS, read_metrics), _parsed(
        path, manifest, EPISODES, lambda text: list(map(_facts, _lines(EPISODES, text)))
    )


def _parsed(path: Path, manifest: Manifest, name: str, read: Callable[[str], Parsed]) -> Parsed:
    content = checked(path, manifest, name)
    try:
        return read(content.decode())
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise damaged(path, name, error) from None


def _lines(name: str, text: str) -> Iterator[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    if text and tuple(reader.fieldnames or ()) != HEADERS[name]:
        raise ValueError(f"its columns are not {', '.join(HEADERS[name])}")
    return reader


def _scored(line: Mapping[str, str]) -> Scored:
    return Scored(float(line["value"]), float(line["stderr"]) if line["stderr"] else None, int(line["n"]))


def _facts(line: Mapping[str, str]) -> EpisodeFacts:
    weights = dict(pair.split(":") for pair in line["sampling_weights"].split())
    given: dict[str, Any] = {
        name: float(line[name]) if name in _REAL else int(line[name])
        for name in HEADERS[EPISODES] if name not in ("tasks", "sampling_weights")
    }  # fmt: skip
    tasks = [int(task) for task in line["tasks"].split()]
    return EpisodeFacts(tasks=tasks, sampling_weights={int(t): float(w) for t, w in weights.items()}, **given)
