"""Run directories as they are read back: what was measured and predicted, by whom."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from evaluation.measurements import Row
from evaluation.metrics import Matrix, accuracy_matrix
from records.directory import CONFIG, holds_run, read_config, read_measurements, read_summary
from records.manifest import TARGETS, Manifest, checked, read_manifest
from records.monitor import EpisodeFacts
from records.summary import summarize
from utils.errors import UserError

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MemberFacts:
    """A network that a run has saved."""

    number: int
    episode: int
    tasks: tuple[int, ...]
    weights: tuple[float, ...]  # in the mean that answers each of the tasks
    replaces: bool  # whether earlier members do not answer any more
    parameters: int


@dataclass(frozen=True)
class Run:
    """A run, as far as it has come. What it says of tasks is in the order in which they were revealed. Their numbers
    are places in this order, from 1: others than in the files if a task was forgotten.

    Attributes:
        places: by number of a task in the files.
        finished: whether all episodes are complete.
        rows, episodes: of metrics.csv and episodes.csv.
        summary: summary.json; of a run that is going on or was interrupted, what can be said so far.
    """

    path: Path
    config: Mapping[str, Any]
    manifest: Manifest
    rows: Sequence[Row]
    episodes: Sequence[EpisodeFacts]
    members: Sequence[MemberFacts]
    summary: Mapping[str, Any]
    places: Mapping[int, int]

    @property
    def finished(self) -> bool:
        return self.manifest.finished

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def continual(self) -> bool:
        """Whether each task has an episode of its own."""
        return _has_episodes(self.config)

    @property
    def task_names(self) -> list[str]:
        return list(self.summary["task_names"])

    @cached_property
    def matrix(self) -> Matrix:
        """Accuracy matrix [episodes, tasks] on test examples, NaN where there is none."""
        test = [(row.episode, row.task, row.accuracy) for row in self.rows if row.is_test and row.episode]
        return accuracy_matrix(test, len(self.episodes), len(self.task_names))

    @cached_property
    def isolated(self) -> Array | None:
        """Accuracy of a network trained on each task alone, [tasks]; None if the run was not compared with any."""
        found = self.summary["per_task_isolated_acc"]
        return None if found is None else np.array(found)

    @cached_property
    def targets(self) -> dict[int, npt.NDArray[np.int64]] | None:
        """Right classes of the test examples by task, [N]; None for runs of older versions."""
        if TARGETS not in self.manifest.files:
            return None
        return {self._task(name): values for name, values in self._tensors(TARGETS).items() if name.endswith("/test")}

    @cached_property
    def test_predictions(self) -> dict[int, dict[int, Array]]:
        """Task -> member -> its probabilities on the test examples, [N, C], of members that answer at the end.

        A task that no member has learned yet, in the multi-task mode, is missing.
        """
        answering = self.members[max((i for i, member in enumerate(self.members) if member.replaces), default=0) :]
        found: dict[int, dict[int, Array]] = {}
        for member in answering:
            tensors = self._tensors(f"predictions/member_{member.number:03d}.safetensors")
            for name, values in tensors.items():
                if name.endswith("/test"):
                    found.setdefault(self._task(name), {})[member.number] = values.astype(np.float64)
        return dict(sorted(found.items()))

    def against(self, isolated: Sequence[float]) -> Run:
        """The same run, compared with networks that were trained on each task alone, [tasks]."""
        so_far = list(isolated)[: len(self.task_names)]
        return replace(self, summary={**self.summary, **summarize(self.rows, self.continual, so_far)})

    def weight(self, member: int, task: int) -> float:
        """Of a member's probabilities in the mean that answers a task."""
        facts = self.members[member]
        return facts.weights[facts.tasks.index(task)]

    def _task(self, name: str) -> int:
        number = int(name.removeprefix("task_").partition("/")[0])
        return self.places.get(number, number)

    def _tensors(self, name: str) -> dict[str, Any]:
        try:
            return safetensors.numpy.load(checked(self.path, self.manifest, name))
        except UserError:
            raise
        except Exception as error:  # whatever the library finds wrong with it
            raise UserError(f"{self.path / name} is damaged ({error})") from None


def load_run(path: Path) -> Run:
    """Read a run directory; one that a process is writing to as well.

    Raises:
        UserError: there is no run, no episode is complete yet, or a file is damaged.
    """
    if not holds_run(path):
        raise UserError(f"{path} is not the directory of a run (it has no {CONFIG})")
    manifest = read_manifest(path)
    if manifest is None or not manifest.episode:
        raise UserError(f"{path}: no episode is complete yet")
    config = read_config(path)
    rows, episodes = read_measurements(path, manifest)
    try:
        if not all(0 <= row.accuracy <= 1 for row in rows):
            raise ValueError("an accuracy is not between 0 and 1")
        places = {number: place for place, number in enumerate(sorted({row.task for row in rows}), 1)}
        rows = [row._replace(task=places[row.task]) for row in rows]
        episodes = [replace(facts, tasks=[places[task] for task in facts.tasks]) for facts in episodes]
        members = [_member(path, manifest, number, places) for number in range(manifest.members)]
        saved = read_summary(path) or {}
        found = summarize(rows, _has_episodes(config), saved.get("per_task_isolated_acc"))
        return Run(path, config, manifest, rows, episodes, members, {**_costs(episodes), **saved, **found}, places)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); was it made by an older version?"
        ) from None


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


def _member(path: Path, manifest: Manifest, number: int, places: Mapping[int, int]) -> MemberFacts:
    facts = json.loads(checked(path, manifest, f"members/member_{number:03d}.json"))
    return MemberFacts(
        number, facts["episode"], tuple(places[task] for task in facts["tasks"]), tuple(facts["weights"]),
        facts["replaces_earlier"], facts["parameters"],
    )  # fmt: skip


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
