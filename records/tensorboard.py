"""TensorBoard: a run's curves, pictures, hyperparameters and configuration. docs/tensorboard.md lists every tag."""

import contextlib
import math
import os
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
from google.protobuf.json_format import ParseDict  # type: ignore[import-untyped]
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer.record_writer import RecordWriter

from datasets.objectives import ACCURACY
from evaluation import metrics
from evaluation.measurements import ANYTIME, WITHOUT_TASK, ZERO_SHOT, Measurement, mean_over_tasks
from records.monitor import EpisodeFacts, RunMonitor, RunStart
from records.pictures import heat_map
from records.summary import key_of
from utils.files import yaml_bytes
from utils.settings import Kind

# TensorBoard's names for the types of hyperparameters.
_CURVES = 40  # the most scores of an evaluation that all have one
_TYPES: Mapping[type, Mapping[str, Any]] = {
    bool: {"type": "DATA_TYPE_BOOL", "domain_discrete": [False, True]},
    float: {"type": "DATA_TYPE_FLOAT64"},
    str: {"type": "DATA_TYPE_STRING"},
}

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
    "while learning": {"test accuracy within episodes": ("anytime_accuracy/",)},
    "without the task": {"accuracy where the task is not told (task-trained heads)": ("without_task/",)},
    "calibration": {"average calibration error": ("average_ece$",), "calibration error": ("test_ece/",)},
    "sampling weights": {"sampling weights": ("sampling_weight/",)},
    "cost": {"seconds an episode": ("seconds$",), "peak memory, bytes": ("peak_memory_bytes$",)},
}
_SUMMARY = (
    "avg_acc_final", "avg_incremental_acc", "forgetting_chaudhry", "bwt", "learning_acc", "worst_task_acc",
    "routed_class_acc", "task_identification_acc", "routed_domain_acc", "routed_domain_sum_acc",
    "min_acc", "worst_case_acc", "gain_isolated", "fwt_isolated", "fwt_zero_shot", "train_seconds",
)  # fmt: skip
# Tag of a picture -> its description.
_PICTURES = {
    "accuracy_matrix": "Test accuracy in percent; dark violet is 0, green 75, yellow 100 (colours follow the root of "
                       "the error). A row is an episode, from above; a column a task.",
    "members": "Yellow: the episode trained on the task. A row is an episode, from above; a column a task.",
    "sampling_weights": "Probability of drawing the task in percent, on a logarithmic scale: dark violet is 0.1 or "
                        "less, yellow 100. A row is an episode, from above; a column a task.",
}  # fmt: skip
_LEAST_WEIGHT = 1e-3
Value = dict[str, Any]  # one value of an event, as a plain dictionary


class TensorBoard(RunMonitor):
    """Writes an event file.

    The step of train/* is the number of epochs over the whole run, of anytime_*/* that of gradient steps, of others
    the episode.

    Args:
        open_log: opens a new file by its name.
        kinds: all hyperparameters that any run can have; the first five are shown at first.
        epochs: trained by earlier processes.
    """

    def __init__(self, open_log: Callable[[str], Any], kinds: Mapping[str, Kind], epochs: int = 0) -> None:
        self._kinds, self._epoch = kinds, epochs
        # TensorBoard finds files by this name and reads them in its order; a process may write several.
        self._records = RecordWriter(open_log(f"events.out.tfevents.{time.time_ns() // 1000:016d}.{os.getpid()}"))
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._begun = False

    def run_begins(self, run: RunStart) -> None:
        self._history = History(run.tasks)
        self._sign = 1 if run.config["higher_is_better"] else -1
        rows = {episode: list(group) for episode, group in groupby(run.rows, lambda row: row.episode)}
        for facts in run.episodes:
            self._history.add(facts, rows[facts.episode])
        self._continual, self._isolated = run.config["continual"], run.isolated or {}
        session = {"start_time_secs": time.time(), "hparams": run.hyperparameters}
        self._write(len(run.episodes), [
            _text("config", "text", textwrap.indent(yaml_bytes(run.config).decode(), "    ").encode()),
            _text("custom_scalars__config__", "custom_scalars", _layout()),
            _columns(tuple(self._kinds.items())),
            _hparams("session_start_info", session),
        ])  # fmt: skip
        self._begun = True

    def episode_begins(self, episode: int, episodes: int) -> None:
        self._episodes = episodes

    def member_begins(self, epochs: int, images: int, done: int = 0) -> None:
        self._epoch += done

    def epoch_ends(self, epoch: int, loss: float, lr: float) -> None:
        self._epoch += 1
        self._write(self._epoch, scalars_of({"train/loss": loss, "train/learning_rate": lr}))

    def episode_ends(self, facts: EpisodeFacts, rows: Sequence[Measurement]) -> None:
        self._write_moments(rows)
        first = self._isolated_accuracies(rows)
        self._history.add(facts, rows)
        scalars = {**first, **_of_episode(facts, rows), **_of_tasks(facts, rows), **self._of_matrix()}
        pictures = [_picture(tag, self._episodes, *drawn) for tag, drawn in self._history.pictures().items()]
        self._write(facts.episode, [*scalars_of(scalars), *pictures])

    def run_measured(self, summary: Mapping[str, Any]) -> None:
        found = [key_of(key, summary["metric"]) for key in _SUMMARY]
        self._end("STATUS_SUCCESS", {f"summary/{key}": summary[key] for key in found if summary[key] is not None})

    def close(self) -> None:
        if self._begun:
            with contextlib.suppress(OSError):  # the disk may be full
                self._end("STATUS_FAILURE", {})

    def _end(self, status: str, scalars: Mapping[str, float]) -> None:
        end = _hparams("session_end_info", {"status": status, "end_time_secs": time.time()})
        self._write(len(self._history.main), [*scalars_of(scalars), end])
        self._begun = False

    def _write_moments(self, rows: Sequence[Measurement]) -> None:
        """What was measured within the episode, with --evaluate_every."""
        for step, found in groupby([row for row in rows if row.scenario == ANYTIME], lambda row: row.step):
            self._write(step, scalars_of({f"anytime_{row.metric}/{_tag(row)}": row.main for row in found}))

    def _isolated_accuracies(self, rows: Sequence[Measurement]) -> dict[str, float]:
        """For tasks measured for the first time: one point beside the beginning of each curve."""
        unknown = np.all(np.isnan(self._history.main), axis=0)
        new = [row for row in rows if row.is_test and row.task in self._isolated and unknown[row.task - 1]]
        return {f"isolated_{row.metric}/{_tag(row)}": self._isolated[row.task] for row in new}

    def _of_matrix(self) -> dict[str, float]:
        """Forgetting and backward transfer, which the multi-task mode does not define."""
        if not self._continual:
            return {}
        R = self._sign * self._history.main[:, : len(self._history.main)]
        values = {"forgetting": metrics.forgetting_chaudhry(R), "backward_transfer": metrics.bwt(R)}
        return {tag: value for tag, value in values.items() if not math.isnan(value)}

    def _write(self, step: int, values: Sequence[Value]) -> None:
        event = Event(wall_time=time.time(), step=step, summary={"value": values})
        self._records.write(event.SerializeToString())


class History:
    """The data of the pictures, [episodes so far, tasks], NaN where there is no value."""

    def __init__(self, tasks: int) -> None:
        self.main: metrics.Matrix = np.empty((0, tasks))  # the main metric on the test data
        self.weights = self.main  # probability of drawing each task
        self.trained = self.main  # 1 for tasks that were trained on, 0 for others

    def add(self, facts: EpisodeFacts, rows: Sequence[Measurement]) -> None:
        """Append an episode."""
        self._shares = rows[0].metric == ACCURACY.name
        self.main = _appended(self.main, {row.task: row.main for row in rows if row.is_test}, math.nan)
        self.weights = _appended(self.weights, facts.sampling_weights, math.nan)
        self.trained = _appended(self.trained, dict.fromkeys(facts.tasks, 1.0), 0.0)

    def pictures(self) -> dict[str, list[metrics.Matrix]]:
        """Tag -> the colours to draw, [episodes so far, tasks], in [0, 1], and maybe the shares to write into cells."""
        drawn = {"members": [np.where(np.isnan(self.main), math.nan, self.trained)]}
        if self._shares:  # the root separates 0.87 from 0.96, and is the same in all runs and episodes
            drawn["accuracy_matrix"] = [1 - np.sqrt(1 - self.main), self.main]
        if not np.isnan(self.weights).all():
            shares = np.log(np.maximum(self.weights, _LEAST_WEIGHT)) / math.log(_LEAST_WEIGHT)
            drawn["sampling_weights"] = [1 - shares, self.weights]
        return drawn


def _appended(matrix: metrics.Matrix, values: Mapping[int, float], otherwise: float) -> metrics.Matrix:
    """A matrix with one more row: values by number of the task, from 1, and `otherwise`."""
    row = np.full(matrix.shape[1], otherwise)
    for task, value in values.items():
        row[task - 1] = value
    return np.vstack([matrix, row])


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
    apart = {*WITHOUT_TASK, ANYTIME, ZERO_SHOT}
    for row in [row for row in rows if row.scenario not in apart and not row.slice]:
        for name, value in board_values(row).items():
            scalars[f"{row.split}_{name}/{tags[row.task]}"] = value
    return scalars


def board_values(row: Measurement) -> dict[str, float]:
    """The values that have a curve, by score: where there are many not those of single activations, SITE@ITEM."""
    many = len(row.scores) > _CURVES
    return {name: scored.value for name, scored in row.scores.items() if not (many and "@" in name)}


def _tag(row: Measurement) -> str:
    return f"{row.task:03d} {row.task_name}".replace("/", "-")


def scalars_of(scalars: Mapping[str, float]) -> list[Value]:
    """Values by tag as they stand in an event."""
    return [{"tag": tag, "simple_value": value} for tag, value in scalars.items()]


def _picture(tag: str, rows: int, values: metrics.Matrix, percent: metrics.Matrix | None = None) -> Value:
    png, width, height = heat_map(values, rows, percent)
    return {
        "tag": tag,
        "metadata": {"plugin_data": {"plugin_name": "images"}, "summary_description": _PICTURES[tag]},
        "image": {"width": width, "height": height, "colorspace": 3, "encoded_image_string": png},
    }


@cache
def _layout() -> bytes:
    """The dashboard "Custom Scalars"; the same for all runs, because TensorBoard merges those of all runs."""
    rows = [
        {"title": row, "chart": [{"title": chart, "multiline": {"tag": tags}} for chart, tags in charts.items()]}
        for row, charts in _CHARTS.items()
    ]
    return ParseDict({"category": rows}, Layout()).SerializeToString()


@cache
def _columns(kinds: tuple[tuple[str, Kind], ...]) -> Value:
    """The columns of the dashboard "HParams"; the same for all runs, because TensorBoard takes those of any run."""
    columns = []
    for number, (name, kind) in enumerate(kinds):
        values = _TYPES[kind] if isinstance(kind, type) else {**_TYPES[str], "domain_discrete": list(kind)}
        # TensorBoard shows five columns at first, and prefers those marked as differing between runs.
        columns.append({"name": name, "differs": number < 5, **values})
    metrics_shown = [{"display_name": key, "name": {"tag": f"summary/{key}"}} for key in _SUMMARY]
    return _hparams("experiment", {"hparam_infos": columns, "metric_infos": metrics_shown})


def _hparams(name: str, content: Mapping[str, Any]) -> Value:
    """One of the messages of the dashboard "HParams", which reads the metadata of the value, not the value."""
    data = ParseDict({name: content}, HParamsPluginData()).SerializeToString()
    return {
        "tag": f"_hparams_/{name}",
        "metadata": {"plugin_data": {"plugin_name": "hparams", "content": data}},
        "tensor": {"dtype": "DT_FLOAT", "tensor_shape": {"dim": [{"size": 0}]}},
    }


def _text(tag: str, plugin: str, content: bytes) -> Value:
    return {
        "tag": tag,
        "metadata": {"plugin_data": {"plugin_name": plugin}},
        "tensor": {"dtype": "DT_STRING", "tensor_shape": {}, "string_val": [content]},
    }
