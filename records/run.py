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
from records.kept import Checkpoint, Networks, checkpoints_of
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
from records.summary import by_task, costs, examples_to, figure, matrix_of, read_summary, summarize, under_way
from records.tables import METRICS, read_measurements
from utils.errors import UserError, unknown
from utils.files import from_cell

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]
_DEPTH = 3  # of a run in a store: cell/lr0.1/seed0


@dataclass(frozen=True)
class Run:
    """A run, finished or not. Per-task values are in the order in which the tasks were revealed."""

    path: Path
    config: Mapping[str, Any]  # config.yaml
    manifest: Manifest
    rows: Sequence[Measurement]  # metrics.csv
    episodes: Sequence[EpisodeFacts]  # episodes.csv
    members: Sequence[SavedMember]  # all saved networks, in the order of joining
    summary: Mapping[str, Any]  # summary.json; for an unfinished run, the figures so far
    places: Mapping[int, int]  # task numbers in the files -> those used here; they differ in `renumbered` runs only

    @classmethod
    def load(cls, path: str | Path) -> "Run":
        """Read a run directory, also one that a process is writing to; UserError if nothing has been measured yet."""
        path = Path(path).expanduser()
        config, manifest = opened(path, complete=False)
        rows, episodes = read_measurements(path, manifest)
        members = read_members(path, manifest)
        try:
            saved = read_summary(path) or {}
            learned = [row for row in rows if row.is_test and row.episode] or rows  # not those to be learned yet
            places = {row.task: row.task for row in learned}
            summary = {**costs(episodes), "total_seconds": sum(facts.seconds for facts in episodes), **saved}
            run = cls(path, config, manifest, rows, episodes, members, summary, places)
            if not episodes:  # the network of a single task is on its way
                return replace(run, summary=summary | under_way(rows, config["higher_is_better"]))
            return run.against(by_task(saved, "per_task_isolated_acc") if saved else None)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from None

    def renumbered(self) -> "Run":
        """The same run with its tasks numbered from 1 without gaps, which forget.py leaves."""
        places = {number: place for place, number in enumerate(sorted(self.places), 1)}
        return replace(
            self, places=places,
            rows=[replace(row, task=places[row.task]) for row in self.rows if row.task in places],
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
        return bool(self.config["continual"]) and not self.config.get("derived")

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
        member = next(member for member in reversed(self.members) if task in member.tasks)
        names = member.classes[member.tasks.index(task)]
        return list(names) or [str(output) for output in range(self.predictions(task).shape[1])]

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """metrics.csv, a line a score; `slice` is "" for the whole split, `stderr` NaN where unknown."""
        import pandas as pd

        content = checked(self.path, self.manifest, METRICS)
        frame = pd.read_csv(io.BytesIO(content), float_precision="round_trip", keep_default_na=False)
        return frame.assign(stderr=pd.to_numeric(frame.stderr), task_name=frame.task_name.astype(str).map(from_cell))

    def examples_to(self, level: float) -> "pd.DataFrame":
        """For each task how many training examples its episode took until the main metric was first at least `level`.

        Columns episode, task, task_name and examples, <NA> if it never was, counted as --examples does. UserError
        without --evaluate_every, whose test examples and moments these are. See docs/metrics.md.
        """
        import pandas as pd

        better = bool(self.config["higher_is_better"])
        found = examples_to(self.rows, level, continual=self.continual, higher_is_better=better)
        if not found:
            raise UserError(f"{self.path} was not asked about its tasks while it learned them: --evaluate_every does")
        names = {row.task: row.task_name for row in self.rows}
        lines = [(episode, task, names[task], examples) for episode, task, examples in found]
        frame = pd.DataFrame(lines, columns=["episode", "task", "task_name", "examples"])
        return frame.astype({"examples": "Int64"})

    @cached_property
    def accuracy_matrix(self) -> Matrix:
        """R, [episodes, tasks]: the main metric on test examples; NaN where not measured."""
        return matrix_of(self.rows)

    def evaluated(self, score: str, evaluation: str = "interchange") -> "pd.DataFrame":
        """What an evaluation has found in each network about each of its tasks, in the order of joining.

        Columns task, episode (the one of the network), until (the last one in which it answers) and value, NaN where
        the score is not defined. UserError if nothing was asked after an episode; of runs of train_task.py, which ask
        on the way, `metrics` has the answers.
        """
        import pandas as pd

        rows = [row for row in self.rows if row.scenario == evaluation and row.split == "test" and row.episode]
        if not rows:
            raise UserError(f"{self.path} was not asked after its episodes: modelzoo.py --evaluate {evaluation} does")
        replacing, last = [m.episode for m in self.members if m.replaces_earlier], len(self.accuracy_matrix)
        ends = {row.episode: min((e - 1 for e in replacing if e > row.episode), default=last) for row in rows}
        lines = [
            (row.task, row.episode, ends[row.episode], row.scores[score].value if score in row.scores else np.nan)
            for row in rows
        ]  # fmt: skip
        return pd.DataFrame(lines, columns=["task", "episode", "until", "value"])

    def mechanism_matrix(self, score: str = "induction", evaluation: str = "interchange") -> Matrix:
        """R_m, [episodes, tasks]: mean of a score over the networks that answer the task after the episode.

        These are one network, or all members of an ensemble so far that were trained on the task. Those in which the
        score is not defined are left out, NaN if it is in none. UserError if the evaluation was not asked.
        """
        found, R_m = self.evaluated(score, evaluation), np.full(self.accuracy_matrix.shape, np.nan)
        tasks = sorted({row.task for row in self.rows if row.is_test and row.episode})
        for episode, place in np.ndindex(R_m.shape):
            answering_now = (found.episode <= episode + 1) & (found.until >= episode + 1)
            R_m[episode, place] = found.value[answering_now & (found.task == tasks[place])].mean()
        return R_m

    @cached_property
    def checkpoints(self) -> Mapping[int, Checkpoint]:
        """Step -> the network at that step, of a run of train_task.py; other runs have none."""
        return checkpoints_of(Networks(self.path, self.config, self.members), self.manifest, self.rows)

    @cached_property
    def isolated(self) -> Array | None:
        """The main metric of a network trained on each task alone, [tasks]; None without --isolated."""
        found = figure(self.summary, "per_task_isolated_acc")
        return None if found is None else np.array(found)

    def predictions(self, task: str | int, split: str = "test", members: int | None = None) -> Array:
        """Weighted mean of the predictions of the members that answer a task, see `task_number`, [N, C].

        The split train means the kept training examples; `members`: only of the first so many, in the order of joining.
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
        """Positions among a task's training examples of those kept after an episode (None: the last), and the targets.

        [N] and [N, ...], in the order of the predictions on the split train of that episode's member.
        """
        number, last = self._number(task), self.manifest.episode if episode is None else episode
        for name in map(KEPT_FILE.format, range(last, 0, -1)):
            if name in self.manifest.files and number in (positions := self._tensors(name, "positions")):
                return positions[number], self._tensors(name, "targets")[number]
        raise UserError(f"{self.path} keeps no training examples of task {task!r} after episode {last}")

    @cached_property
    def targets(self) -> dict[int, npt.NDArray[Any]]:
        """Task -> targets of the test examples, [N, ...]."""
        return self._tensors(TARGETS, "test")

    @cached_property
    def test_predictions(self) -> dict[int, dict[int, Array]]:
        """Task that is learned -> member that answers at the end -> its predictions on the test examples, [N, C]."""
        return self._member_predictions("test")

    def _member_predictions(self, split: str) -> dict[int, dict[int, Array]]:
        found: dict[int, dict[int, Array]] = {}
        for member in answering(self.members):
            for task, values in self._tensors(PREDICTIONS_FILE.format(member.number), split).items():
                found.setdefault(task, {})[member.number] = values.astype(np.float64)
        return dict(sorted(found.items()))

    def against(self, isolated: Mapping[int, float] | None) -> "Run":
        """The same run with the figures that compare it with `isolated`, by the number that a task has in the files."""
        here = isolated and {self.places[task]: value for task, value in isolated.items() if task in self.places}
        found = summarize(self.rows, self.continual, here, self.config["higher_is_better"])
        return replace(self, summary={**self.summary, **found})

    def _number(self, task: str | int) -> int:
        return task_number(self.path, task, {row.task: row.task_name for row in self.rows})

    def _tensors(self, name: str, split: str) -> dict[int, npt.NDArray[Any]]:
        """Task that was measured -> the tensor of one split in a file of predictions/."""
        found = read_tensors_of(self.path, self.manifest, name)
        named = {f"task_{number}/{split}": place for number, place in self.places.items()}
        return {named[key]: values.numpy() for key, values in found.items() if key in named}


def opened(path: Path, *, complete: bool = True) -> tuple[dict[str, Any], Manifest]:
    """config.yaml and the manifest of a run with a complete episode; or, if it need not be, with measurements."""
    if not holds_run(path):
        raise UserError(f"{path} is not the directory of a run (it has no {CONFIG})")
    check_whole(path)
    manifest = read_manifest(path)
    if manifest is None or not (manifest.episode or (METRICS in manifest.files and not complete)):
        raise UserError(f"{path}: no episode is complete yet")
    return read_config(path), manifest


def measured(path: Path) -> bool:
    """Whether a run has been measured at least once."""
    manifest = read_manifest(path)
    return manifest is not None and METRICS in manifest.files


def task_number(path: Path, task: str | int, names: Mapping[int, str]) -> int:
    """The number of the one task that has a number or name, also as "number=..." or "name=..."; `names`: by number."""
    asked = f"number={task}" if isinstance(task, int) else class_name(task)
    spelt = {n: (str(n), f"number={n}", class_name(name), f"name={class_name(name)}") for n, name in names.items()}
    found = sorted(number for number, ways in spelt.items() if asked in ways)
    if len(found) > 1:
        ways = " or ".join(f"number={number} for {number} {names[number]!r}" for number in found)
        raise UserError(f"{path}: {task!r} may be several tasks; write {ways}")
    if not found:
        labels = [f"{number} {name}" for number, name in sorted(names.items())]
        labels = labels if len(labels) <= 30 else [labels[0], "...", labels[-1]]
        raise UserError(f"{path}: {unknown('task', task, names.values(), labels)}")
    return found[0]


def find_runs(path: Path) -> list[Path]:
    """The run at `path`, all runs in this folder, or else all in the cells of this store."""
    if holds_run(path):
        return [path]
    found, folders = list[Path](), [path] if path.is_dir() else []
    for depth in range(_DEPTH):
        entries = sorted(entry for folder in folders for entry in folder.iterdir() if entry.is_dir())
        found += [entry for entry in entries if holds_run(entry)]
        folders = [] if depth == 0 and found else [entry for entry in entries if not holds_run(entry)]
    if not found:
        raise UserError(f"{path} is not the directory of a run, and has no runs in it")
    return found
