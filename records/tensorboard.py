"""TensorBoard: a run's curves, pictures, hyperparameters and configuration. docs/tensorboard.md lists every tag."""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets.objectives import ACCURACY
from evaluation import metrics
from evaluation.measurements import WITHOUT_TASK, Measurement, mean_over_tasks
from records.monitor import EpisodeFacts, RunMonitor, RunStart
from records.pictures import heat_map
from records.summary import key_of
from utils.files import yaml_bytes
from utils.settings import Kind

# TensorBoard's numbers for the types of a tensor, the end of a session, and the types of hyperparameters.
_FLOAT, _STRING = 1, 7
_SUCCESS, _FAILURE = 1, 2
_KINDS = {str: 1, bool: 2, float: 3}

# The dashboard "Custom Scalars": title of a row -> title of a chart -> patterns of the tags that it shows.
_CHARTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "overview": {
        "average accuracy": ("average_accuracy$",),
        "forgetting": ("forgetting$",),
        "throughput, images a second": ("images_per_second$",),
    },
    "transfer": {
        "transfer curves: test accuracy, and where Isolated ended": ("test_accuracy/", "isolated_accuracy/"),
        "backward transfer": ("backward_transfer$",),
    },
    "without the task": {"accuracy where the task is not told": ("without_task/",)},
    "calibration": {"average calibration error": ("average_ece$",), "calibration error": ("test_ece/",)},
    "sampling weights": {"sampling weights": ("sampling_weight/",)},
    "cost": {"seconds an episode": ("seconds$",), "peak memory, bytes": ("peak_memory_bytes$",)},
}
_SUMMARY = (
    "avg_acc_final", "avg_incremental_acc", "forgetting_chaudhry", "bwt", "learning_acc", "worst_task_acc",
    "class_incremental_acc", "task_identification_acc", "domain_incremental_acc",
    "gain_isolated", "fwt_isolated", "train_seconds",
)  # fmt: skip
# Tag of a picture -> its description.
_PICTURES = {
    "accuracy_matrix": "Test accuracy: dark violet is 0, yellow 1. A row is an episode, from above; a column a task.",
    "members": "Yellow: the episode trained on the task. A row is an episode, from above; a column a task.",
    "sampling_weights": "Probability of drawing the task, on a logarithmic scale: dark violet is 0.001 or less, "
                        "yellow 1. A row is an episode, from above; a column a task.",
}  # fmt: skip
_LEAST_WEIGHT = 1e-3


class TensorBoard(RunMonitor):
    """Writes an event file. The step of train/* is the number of epochs over the whole run, that of others the episode.

    Args:
        open_log: opens a new file by its name.
        kinds: all hyperparameters that any run can have; the first five are shown at first.
        epochs: trained by earlier processes.
    """

    def __init__(self, open_log: Callable[[str], Any], kinds: Mapping[str, Kind], epochs: int = 0) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # slow to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._kinds, self._epoch = Event, kinds, epochs
        # TensorBoard finds files by this name and reads them in its order; a process may write several.
        self._records = RecordWriter(open_log(f"events.out.tfevents.{time.time_ns() // 1000:016d}.{os.getpid()}"))
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._history = History(0)
        self._begun = False

    def run_begins(self, run: RunStart) -> None:
        self._history = History(run.tasks)
        self._sign = 1 if run.config["higher_is_better"] else -1
        rows = {episode: list(group) for episode, group in groupby(run.rows, lambda row: row.episode)}
        for facts in run.episodes:
            self._history.add(facts, rows[facts.episode])
        self._continual, self._isolated = run.config["continual"], run.isolated
        event = self._new_event(len(run.episodes))
        _add_string(event, "config", "text", textwrap.indent(yaml_bytes(run.config).decode(), "    ").encode())
        _add_layout(event)
        _add_experiment(event, self._kinds)
        _add_session_start(event, run.hyperparameters)
        self._write(event)
        self._begun = True

    def episode_begins(self, episode: int, episodes: int) -> None:
        self._episodes = episodes

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        self._epoch += done

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        self._epoch += 1
        event = self._new_event(self._epoch)
        _add_scalars(event, {"train/loss": loss, "train/learning_rate": lr})
        self._write(event)

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Measurement]) -> None:
        event = self._new_event(facts.episode)
        _add_scalars(event, self._isolated_accuracies(rows))
        self._history.add(facts, rows)
        _add_scalars(event, {**_of_episode(facts, rows), **_of_tasks(facts, rows), **self._of_matrix()})
        for tag, values in self._history.pictures().items():
            _add_picture(event, tag, values, self._episodes)
        self._write(event)

    def run_measured(self, summary: Mapping[str, Any]) -> None:
        event = self._new_event(len(self._history.main))
        found = {key: key_of(key, summary["metric"]) for key in _SUMMARY}
        _add_scalars(event, {f"summary/{key}": summary[key] for key in found.values() if summary[key] is not None})
        _add_session_end(event, _SUCCESS)
        self._write(event)
        self._begun = False

    def close(self) -> None:
        if self._begun:
            event = self._new_event(len(self._history.main))
            _add_session_end(event, _FAILURE)
            with contextlib.suppress(OSError):  # the disk may be full
                self._write(event)

    def _isolated_accuracies(self, rows: Sequence[Measurement]) -> dict[str, float]:
        """For tasks measured for the first time: one point beside the beginning of each curve."""
        if self._isolated is None:
            return {}
        new = [row for row in rows if row.is_test and row.task not in self._history.measured]
        return {f"isolated_{row.metric}/{_tag(row)}": self._isolated[row.task - 1] for row in new}

    def _of_matrix(self) -> dict[str, float]:
        """Forgetting and backward transfer, which the multi-task mode does not define."""
        if not self._continual:
            return {}
        R = self._sign * np.stack(self._history.main)[:, : len(self._history.main)]
        values = {"forgetting": metrics.forgetting_chaudhry(R), "backward_transfer": metrics.bwt(R)}
        return {tag: value for tag, value in values.items() if not math.isnan(value)}

    def _new_event(self, step: int) -> Any:
        return self._event(wall_time=time.time(), step=step)

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


class History:
    """The data of the pictures: for each episode a row of [tasks], NaN where there is no value.

    Attributes:
        main: the main metric on the test data.
        weights: probability of drawing each task.
        trained: 1 for tasks that were trained on, 0 for others.
        measured: numbers of the tasks that were measured in any episode.
    """

    def __init__(self, tasks: int) -> None:
        self._tasks = tasks
        self.measured: set[int] = set()
        self.main: list[npt.NDArray[np.float64]] = []
        self.weights: list[npt.NDArray[np.float64]] = []
        self.trained: list[npt.NDArray[np.float64]] = []

    def add(self, facts: EpisodeFacts, rows: Sequence[Measurement]) -> None:
        """Append an episode."""
        test = {row.task: row.main for row in rows if row.is_test}
        self.measured |= test.keys()
        self.main.append(self._row(test, math.nan))
        self._shares = rows[0].metric == ACCURACY.name
        self.weights.append(self._row(facts.sampling_weights, math.nan))
        self.trained.append(self._row(dict.fromkeys(facts.tasks, 1.0), 0.0))

    def pictures(self) -> dict[str, metrics.Matrix]:
        """Tag -> the matrix to draw, [episodes so far, tasks], in [0, 1]."""
        main = np.stack(self.main)
        drawn = {"members": np.where(np.isnan(main), math.nan, np.stack(self.trained))}
        if self._shares:
            drawn["accuracy_matrix"] = main
        weights = np.stack(self.weights)
        if not np.isnan(weights).all():
            drawn["sampling_weights"] = 1 - np.log(np.maximum(weights, _LEAST_WEIGHT)) / math.log(_LEAST_WEIGHT)
        return drawn

    def _row(self, values: Mapping[int, float], otherwise: float) -> npt.NDArray[np.float64]:
        row = np.full(self._tasks, otherwise)
        for task, value in values.items():
            row[task - 1] = value
        return row


def _of_episode(facts: EpisodeFacts, rows: Sequence[Measurement]) -> dict[str, float]:
    test = [row for row in rows if row.is_test]
    without_task = {row.scenario for row in rows} & {*WITHOUT_TASK}
    shown = [name for name in test[0].scores if name != "loss"]
    return {
        **{f"without_task/{name}": mean_over_tasks(rows, name) or 0.0 for name in sorted(without_task)},
        **{f"average_{name}": sum(row.scores[name].value for row in test) / len(test) for name in shown},
        "images_per_second": facts.images_per_second,
        "seconds": facts.seconds,
        "peak_memory_bytes": facts.peak_memory_bytes,
    }


def _of_tasks(facts: EpisodeFacts, rows: Sequence[Measurement]) -> dict[str, float]:
    tags = {row.task: _tag(row) for row in rows}
    scalars = {f"sampling_weight/{tags[task]}": weight for task, weight in facts.sampling_weights.items()}
    for row in [row for row in rows if row.scenario not in WITHOUT_TASK and not row.slice]:
        for name, scored in row.scores.items():
            scalars[f"{row.split}_{name}/{tags[row.task]}"] = scored.value
    return scalars


def _tag(row: Measurement) -> str:
    return f"{row.task:03d} {row.task_name}".replace("/", "-")


def _add_scalars(event: Any, scalars: Mapping[str, float]) -> None:
    for tag, value in scalars.items():
        event.summary.value.add(tag=tag, simple_value=value)


def _add_picture(event: Any, tag: str, values: metrics.Matrix, rows: int) -> None:
    picture = heat_map(values, rows)
    value = event.summary.value.add(tag=tag)
    value.metadata.plugin_data.plugin_name = "images"
    value.metadata.summary_description = _PICTURES[tag]
    value.image.width, value.image.height, value.image.colorspace = picture.width, picture.height, 3
    value.image.encoded_image_string = picture.png


def _add_layout(event: Any) -> None:
    """The dashboard "Custom Scalars"; the same for all runs, because TensorBoard merges those of all runs."""
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    layout = Layout()
    for title, charts in _CHARTS.items():
        category = layout.category.add(title=title)
        for name, tags in charts.items():
            category.chart.add(title=name).multiline.tag.extend(tags)
    _add_string(event, "custom_scalars__config__", "custom_scalars", layout.SerializeToString())


def _add_experiment(event: Any, kinds: Mapping[str, Kind]) -> None:
    """The columns of the dashboard "HParams"; the same for all runs, because TensorBoard takes those of any run."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData()
    for number, (name, kind) in enumerate(kinds.items()):
        # TensorBoard shows five columns at first, and prefers those marked as differing between runs.
        info = data.experiment.hparam_infos.add(name=name, differs=number < 5)
        info.type = _KINDS[kind] if isinstance(kind, type) else _KINDS[str]
        if not isinstance(kind, type) or kind is bool:
            info.domain_discrete.extend([False, True] if isinstance(kind, type) else kind)
    for key in _SUMMARY:
        data.experiment.metric_infos.add(display_name=key).name.tag = f"summary/{key}"
    _add_hparams(event, "experiment", data)


def _add_session_start(event: Any, hyperparameters: Mapping[str, bool | float | str]) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData()
    data.session_start_info.start_time_secs = time.time()
    for name, value in hyperparameters.items():
        kind = "bool" if isinstance(value, bool) else "string" if isinstance(value, str) else "number"
        setattr(data.session_start_info.hparams[name], f"{kind}_value", value)
    _add_hparams(event, "session_start_info", data)


def _add_session_end(event: Any, status: int) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData()
    data.session_end_info.status, data.session_end_info.end_time_secs = status, time.time()
    _add_hparams(event, "session_end_info", data)


def _add_hparams(event: Any, name: str, data: Any) -> None:
    """The dashboard reads the metadata of the value, not the value."""
    value = event.summary.value.add(tag=f"_hparams_/{name}")
    value.metadata.plugin_data.plugin_name = "hparams"
    value.metadata.plugin_data.content = data.SerializeToString()
    value.tensor.dtype = _FLOAT
    value.tensor.tensor_shape.dim.add(size=0)


def _add_string(event: Any, tag: str, plugin: str, content: bytes) -> None:
    value = event.summary.value.add(tag=tag)
    value.metadata.plugin_data.plugin_name = plugin
    value.tensor.dtype = _STRING
    value.tensor.tensor_shape.SetInParent()
    value.tensor.string_val.append(content)
