"""Run: the measurements, predictions and members of a run directory as Python objects."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datasets.config import class_name
from datasets.objectives import ACCURACY
from evaluation.measurements import Measurement
from evaluation.metrics import Matrix
from records.directory import CONFIG, check_whole, holds_run, read_config
from records.manifest import TARGETS, Manifest, checked, read_manifest
from records.members import (
    KEPT_FILE,
    PREDICTIONS_FILE,
    SavedMember,
    answering,
    read_members,
    read_names,
    read_tensors_of,
)
from records.monitor import EpisodeFacts
from records.summary import by_task, costs, figure, matrix_of, read_summary, summarize
from records.tables import METRICS, read_measurements
from utils.errors import UserError, unknown
from utils.files import from_cell

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A run, finished or not. Per-task values are in the order in which the tasks were revealed.

    Attributes:
        config: config.yaml.
        rows, episodes: metrics.csv and episodes.csv.
        members: all saved networks, in the order of joining.
        summary: summary.json; for an unfinished run, the figures so far.
        places: maps task numbers in the files to those used here; they differ in `renumbered` runs only.
    """

    path: Path
    config: Mapping[str, Any]
    manifest: Manifest
    rows: Sequence[Measurement]
    episodes: Sequence[EpisodeFacts]
    members: Sequence[SavedMember]
    summary: Mapping[str, Any]
    places: Mapping[int, int]

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Read a run directory; also one that a process is writing to.

        Raises:
            UserError: there is no run, no episode is complete yet, or a file is damaged.
        """
        path = Path(path).expanduser()
        config, manifest = opened(path)
        rows, episodes = read_measurements(path, manifest)
        members = read_members(path, manifest)
        try:
            saved = read_summary(path) or {}
            isolated = by_task(saved, "per_task_isolated_acc") if saved else None
            found = summarize(rows, _has_episodes(config), isolated, config["higher_is_better"])
            places = {row.task: row.task for row in rows}
            summary = {**costs(episodes), "total_seconds": sum(facts.seconds for facts in episodes), **saved, **found}
            return cls(path, config, manifest, rows, episodes, members, summary, places)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from None

    def renumbered(self) -> "Run":
        """The same run with its tasks numbered from 1 without gaps, which forget.py leaves."""
        places = {number: place for place, number in enumerate(sorted(self.places), 1)}
        return replace(
            self, places=places,
            rows=[replace(row, task=places[row.task]) for row in self.rows],
            episodes=[replace(facts, tasks=[places[task] for task in facts.tasks]) for facts in self.episodes],
            members=[replace(member, tasks=tuple(places[t] for t in member.tasks)) for member in self.members],
        )  # fmt: skip

    @property
    def finished(self) -> bool:
        """Whether all episodes are complete."""
        return self.manifest.finished

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def continual(self) -> bool:
        """Whether each task has its own episode."""
        return _has_episodes(self.config)

    @property
    def metric(self) -> str:
        """Name of the main metric."""
        return str(self.summary["metric"])

    @property
    def shows_accuracy(self) -> bool:
        """Whether the main metric is the accuracy."""
        return self.metric == ACCURACY.name

    @property
    def classifies(self) -> bool:
        """Whether predictions are probabilities of classes, [N, C]."""
        return self.shows_accuracy and all(targets.ndim == 1 for targets in self.targets.values())

    @property
    def task_names(self) -> list[str]:
        return list(self.summary["task_names"])

    @property
    def task_labels(self) -> list[str]:
        """Number and name of each task; names alone need not differ."""
        return [f"{number} {name}" for number, name in enumerate(self.task_names, 1)]

    def class_names(self, task: int) -> list[str]:
        """Names of the outputs of a task."""
        member = next(member for member in self.members if task in member.tasks)
        names = member.classes[member.tasks.index(task)]
        return list(names) or [str(output) for output in range(self.predictions(task).shape[1])]

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """metrics.csv, a line a score; `slice` is "" for the whole split, `stderr` NaN where unknown."""
        import pandas as pd

        content = checked(self.path, self.manifest, METRICS)
        frame = pd.read_csv(io.BytesIO(content), float_precision="round_trip", keep_default_na=False)
        return frame.assign(stderr=pd.to_numeric(frame.stderr), task_name=frame.task_name.astype(str).map(from_cell))

    @cached_property
    def accuracy_matrix(self) -> Matrix:
        """R, [episodes, tasks]: the main metric on test examples; NaN where not measured."""
        return matrix_of(self.rows)

    @cached_property
    def isolated(self) -> Array | None:
        """The main metric of a network trained on each task alone, [tasks]; None without --isolated."""
        found = figure(self.summary, "per_task_isolated_acc")
        return None if found is None else np.array(found)

    def predictions(self, task: str | int, split: str = "test", members: int | None = None) -> Array:
        """Weighted mean of the predictions of the members that answer a task, [N, C].

        Args:
            task: number or name, see `task_number`.
            split: test, held_out, ... or train, which means the kept training examples.
            members: use only the first so many members, in the order of joining.

        Raises:
            UserError: there are no such predictions, or a file is damaged.
        """
        number = self._number(task)
        by_task = self.test_predictions if split == "test" else self._member_predictions(split)
        found = list(by_task.get(number, {}).items())[:members]
        if not found:
            raise UserError(f"{self.path} has no predictions for task {task!r} on split {split!r}")
        weights = [self.members[member].weight(number) for member, _ in found]
        return np.average([predictions for _, predictions in found], axis=0, weights=weights)

    def targets_of(self, task: str | int, split: str = "test") -> npt.NDArray[Any]:
        """Targets of the examples of a split, [N, ...]; UserError if there are none, as for train."""
        number, found = self._number(task), self._tensors(TARGETS, split)
        if number not in found:
            raise UserError(f"{self.path} has no targets for task {task!r} on split {split!r}")
        return found[number]

    def names_of(self, task: str | int, split: str = "test") -> list[str]:
        """Names of the examples of a split in the order of the predictions: files; UserError if they have none."""
        numbers = {place: number for number, place in self.places.items()}
        found = read_names(self.path, self.manifest).get((numbers[self._number(task)], split))
        if found is None:
            raise UserError(f"{self.path} has no names for task {task!r} on split {split!r}")
        return found

    def kept(self, task: str | int, episode: int | None = None) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Which training examples of a task are kept after an episode (None: the last one), and their targets.

        Returns:
            Their positions among the task's training examples, [N], in the order of the predictions on the split
            train of that episode's member; and the targets that it was trained on, [N, ...].

        Raises:
            UserError: none are kept.
        """
        number, last = self._number(task), self.manifest.episode if episode is None else episode
        names = map(KEPT_FILE.format, range(last, 0, -1))
        for name in (name for name in names if name in self.manifest.files):
            if number in (positions := self._tensors(name, "positions")):
                return positions[number], self._tensors(name, "targets")[number]
        raise UserError(f"{self.path} keeps no training examples of task {task!r} after episode {last}")

    @cached_property
    def targets(self) -> dict[int, npt.NDArray[Any]]:
        """Task -> targets of the test examples, [N, ...]."""
        return self._tensors(TARGETS, "test")

    @cached_property
    def test_predictions(self) -> dict[int, dict[int, Array]]:
        """Task -> member -> its predictions on the test examples, [N, C], for the members that answer at the end.

        Tasks that no member has learned yet (in the multi-task mode) are missing.
        """
        return self._member_predictions("test")

    def _member_predictions(self, split: str) -> dict[int, dict[int, Array]]:
        found: dict[int, dict[int, Array]] = {}
        for member in answering(self.members):
            for task, values in self._tensors(PREDICTIONS_FILE.format(member.number), split).items():
                found.setdefault(task, {})[member.number] = values.astype(np.float64)
        return dict(sorted(found.items()))

    def against(self, isolated: Mapping[int, float]) -> "Run":
        """The same run with the figures that compare it with `isolated`, by the number that a task has in the files."""
        here = {self.places[task]: value for task, value in isolated.items() if task in self.places}
        found = summarize(self.rows, self.continual, here, self.config["higher_is_better"])
        return replace(self, summary={**self.summary, **found})

    def _number(self, task: str | int) -> int:
        return task_number(self.path, task, {row.task: row.task_name for row in self.rows})

    def _tensors(self, name: str, split: str) -> dict[int, npt.NDArray[Any]]:
        """Task -> the tensor of one split in a file of predictions/."""
        found = read_tensors_of(self.path, self.manifest, name)
        parts = [(key.removeprefix("task_").partition("/"), values) for key, values in found.items()]
        return {self.places.get(int(n), int(n)): values.numpy() for (n, _, of), values in parts if of == split}


def opened(path: Path) -> tuple[dict[str, Any], Manifest]:
    """config.yaml and the manifest of a run with at least one complete episode."""
    if not holds_run(path):
        raise UserError(f"{path} is not the directory of a run (it has no {CONFIG})")
    check_whole(path)
    manifest = read_manifest(path)
    if manifest is None or not manifest.episode:
        raise UserError(f"{path}: no episode is complete yet")
    return read_config(path), manifest


def task_number(path: Path, task: str | int, names: Mapping[int, str]) -> int:
    """The number of the task that is asked for by number or name, or by a text "number=..." or "name=...".

    Args:
        names: of the tasks, by number.

    Raises:
        UserError: there is no such task, or several are meant.
    """
    kind, equals, text = (f"number={task}" if isinstance(task, int) else task).partition("=")
    if not equals or kind not in ("number", "name"):
        kind, text = "", str(task)
    numbered = [number for number in names if kind != "name" and str(number) == text]
    named = [number for number, name in names.items() if kind != "number" and class_name(name) == class_name(text)]
    found = sorted({*numbered, *named})
    if len(found) > 1:
        ways = [f"number={number} for {number} {names[number]!r}" for number in found]
        raise UserError(f"{path}: {text!r} may be several tasks; write {' or '.join(ways)}")
    if not found:
        raise UserError(f"{path}: {unknown('task', text, names.values())}")
    return found[0]


def find_runs(path: Path) -> list[Path]:
    """The run at `path`, or all runs in this folder."""
    if holds_run(path):
        return [path]
    found = sorted(entry for entry in path.iterdir() if entry.is_dir() and holds_run(entry)) if path.is_dir() else []
    if not found:
        raise UserError(f"{path} is not the directory of a run, and has no runs in it")
    return found


def _has_episodes(config: Mapping[str, Any]) -> bool:
    return bool(config["continual"]) and not config.get("derived")
