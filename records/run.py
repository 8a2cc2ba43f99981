"""A run directory as an object: what was measured and predicted, by which networks."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from datasets.objectives import ACCURACY
from evaluation.measurements import Measurement
from evaluation.metrics import Matrix
from records.directory import CONFIG, holds_run, read_config
from records.manifest import TARGETS, Manifest, checked, damaged, read_manifest
from records.members import SavedMember, answering, predictions_file, read_members
from records.monitor import EpisodeFacts
from records.summary import figure, matrix_of, read_summary, summarize
from records.tables import METRICS, read_measurements
from utils.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A run, as far as it has come. Per-task values are in the order in which the tasks were revealed.

    Attributes:
        config: config.yaml.
        rows, episodes: of metrics.csv and episodes.csv.
        members: all networks saved, in the order of joining.
        summary: summary.json; of a run that is not finished, the figures so far.
        places: by number of a task in the files, its number here: the same, but for `renumbered` runs.
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
    def load(cls, path: str | Path) -> Run:
        """Read a run directory; also one that a process is writing to.

        Raises:
            UserError: there is no run, no episode is complete yet, or a file is damaged.
        """
        path = Path(path)
        config, manifest = opened(path)
        rows, episodes = read_measurements(path, manifest)
        members = read_members(path, manifest)
        try:
            if not all(0 <= row.main <= 1 for row in rows if row.metric == ACCURACY.name):
                raise ValueError("an accuracy is not between 0 and 1")
            saved = read_summary(path) or {}
            isolated = figure(saved, "per_task_isolated_acc") if saved else None
            found = summarize(rows, _has_episodes(config), isolated, config["higher_is_better"])
            places = {row.task: row.task for row in rows}
            return cls(path, config, manifest, rows, episodes, members, {**_costs(episodes), **saved, **found}, places)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from None

    def renumbered(self) -> Run:
        """The same run with its tasks numbered from 1 without gaps, also if one was forgotten."""
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
        """Whether each task has an episode of its own."""
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

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv, a line a score; an empty `slice` is the whole split, no `stderr` is NaN."""
        import pandas as pd

        content = checked(self.path, self.manifest, METRICS)
        frame = pd.read_csv(io.BytesIO(content), float_precision="round_trip", keep_default_na=False)
        return frame.assign(stderr=pd.to_numeric(frame.stderr))

    @cached_property
    def accuracy_matrix(self) -> Matrix:
        """R, [episodes, tasks]: the accuracy, or another main metric, on test examples; NaN where not measured."""
        return matrix_of(self.rows)

    @cached_property
    def isolated(self) -> Array | None:
        """The main metric of a network trained on each task alone, [tasks]; None if the run was not compared."""
        found = figure(self.summary, "per_task_isolated_acc")
        return None if found is None else np.array(found)

    @property
    def checkpoints(self) -> list[Path]:
        """Files of weights by time of the clock; streams have none."""
        return sorted(self.path / name for name in self.manifest.files if name.startswith("checkpoints/"))

    def predictions(self, task: str | int, split: str = "test", members: int | None = None) -> Array:
        """Weighted mean of the predictions of the members that answer a task, [N, C].

        Args:
            task: name or number.
            split: test, held_out, ... or train: the training examples that were kept.
            members: of the first so many only, in the order of joining.

        Raises:
            UserError: there are none, or a file is damaged.
        """
        number = task if isinstance(task, int) else self._number(task)
        by_task = self.test_predictions if split == "test" else self._member_predictions(split)
        found = list(by_task.get(number, {}).items())[:members]
        if not found:
            raise UserError(f"{self.path} has no predictions for task {task!r} on split {split!r}")
        weights = [self.members[member].weight(number) for member, _ in found]
        return np.average([predictions for _, predictions in found], axis=0, weights=weights)

    def targets_of(self, task: str | int, split: str = "test") -> npt.NDArray[Any]:
        """Targets of the examples of a split, [N, ...]; not known for train.

        Raises:
            UserError: there are none, or a file is damaged.
        """
        number = task if isinstance(task, int) else self._number(task)
        for other, values in self._tensors(TARGETS, split):
            if other == number:
                return values
        raise UserError(f"{self.path} has no targets for task {task!r} on split {split!r}")

    @cached_property
    def targets(self) -> dict[int, npt.NDArray[Any]]:
        """By task: targets of the test examples, [N, ...]."""
        return dict(self._tensors(TARGETS, "test"))

    @cached_property
    def test_predictions(self) -> dict[int, dict[int, Array]]:
        """Task -> member -> its predictions on the test examples, [N, C], of members that answer at the end.

        A task that no member has learned yet, in the multi-task mode, is missing.
        """
        return self._member_predictions("test")

    def _member_predictions(self, split: str) -> dict[int, dict[int, Array]]:
        found: dict[int, dict[int, Array]] = {}
        for member in answering(self.members):
            for task, values in self._tensors(predictions_file(member.number), split):
                found.setdefault(task, {})[member.number] = values.astype(np.float64)
        return dict(sorted(found.items()))

    def against(self, isolated: Sequence[float]) -> Run:
        """The same run, compared with networks that were trained on each task alone, [tasks]."""
        so_far = list(isolated)[: len(self.task_names)]
        found = summarize(self.rows, self.continual, so_far, self.config["higher_is_better"])
        return replace(self, summary={**self.summary, **found})

    def _number(self, name: str) -> int:
        numbers = {row.task for row in self.rows if row.task_name == name}
        if len(numbers) != 1:
            raise UserError(f"{self.path}: {len(numbers) or 'no'} tasks are named {name!r}; it has {self.task_names}")
        return numbers.pop()

    def _tensors(self, name: str, split: str) -> list[tuple[int, npt.NDArray[Any]]]:
        """Those of a split, by task, of a file in predictions/."""
        content = checked(self.path, self.manifest, name)
        try:
            found = safetensors.numpy.load(content)
            parts = [(key.removeprefix("task_").partition("/"), values) for key, values in found.items()]
            return [(self.places.get(int(task), int(task)), values) for (task, _, of), values in parts if of == split]
        except Exception as error:  # whatever the library finds wrong with it
            raise damaged(self.path, name, error) from None


def opened(path: Path) -> tuple[dict[str, Any], Manifest]:
    """config.yaml and the manifest of a run of which at least one episode is complete.

    Raises:
        UserError: there is none, or a file is damaged.
    """
    if not holds_run(path):
        raise UserError(f"{path} is not the directory of a run (it has no {CONFIG})")
    manifest = read_manifest(path)
    if manifest is None or not manifest.episode:
        raise UserError(f"{path}: no episode is complete yet")
    return read_config(path), manifest


def find_runs(path: Path) -> list[Path]:
    """The run at `path`, or all runs in it.

    Raises:
        UserError: there is none.
    """
    if holds_run(path):
        return [path]
    found = sorted(entry for entry in path.iterdir() if entry.is_dir() and holds_run(entry)) if path.is_dir() else []
    if not found:
        raise UserError(f"{path} is not the directory of a run, and has no runs in it")
    return found


def _has_episodes(config: Mapping[str, Any]) -> bool:
    return bool(config["continual"]) and not config.get("derived")


def _costs(episodes: Sequence[EpisodeFacts]) -> dict[str, Any]:
    """What an unfinished run has cost so far."""
    images, seconds = sum(facts.images for facts in episodes), sum(facts.train_seconds for facts in episodes)
    return {
        "images_trained": images,
        "sample_gradients": sum(facts.sample_gradients for facts in episodes),
        "train_seconds": seconds,
        "images_per_second": images / seconds if seconds else 0.0,
        "total_seconds": sum(facts.seconds for facts in episodes),
    }
