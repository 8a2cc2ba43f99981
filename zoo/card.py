"""The model card of an exported zoo: what a stranger has to know before using it. Template: card.md."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from datasets.config import DataConfig
from datasets.objectives import CrossEntropy, Scores
from evaluation.accuracy import MIXED_EXAMPLES
from evaluation.measurements import (
    CLASS_INCREMENTAL,
    DOMAIN_INCREMENTAL,
    TASK_IDENTIFICATION,
    Measurement,
    mean_over_tasks,
)
from records.configuration import hyperparameters
from records.directory import read_config
from utils.errors import one_line
from zoo.saved import PLAIN, SavedTask, Zoo

_ELSEWHERE = ("data.samples", "data.hold_out")  # of the card
_CHANNELS = {1: "grey", 3: "red, green and blue"}
_PACKAGES = {"model.onnx": ("onnx", "onnxruntime"), "model.pt2": ("torch",)}


class Line(NamedTuple):
    """Figures of a task, on its test images."""

    task: SavedTask
    output: str
    networks: int
    n: int
    accuracy: float
    ece: float


def model_card(zoo: Zoo, outputs: Mapping[str, SavedTask], parameters: int, files: Sequence[str]) -> str:
    """Markdown.

    Args:
        zoo: combined as it is exported.
        outputs: by name, the task of each.
        parameters: of what is exported.
        files: that it is exported to.

    Raises:
        UserError: a file of the run is damaged.
    """
    config, raw, rows = zoo.config, read_config(zoo.path), zoo.measurements()
    lines = _lines(zoo, outputs, rows)
    numbers = [line.task.number for line in lines]
    used = {member for number in numbers for member in zoo.combinations[number].members}
    recipe = {key: value for key, value in hyperparameters(config).items() if key not in _ELSEWHERE}
    recipe |= {"precision": config.precision, "commit": raw["commit"] or "not known"}
    if raw["uncommitted_changes"]:
        recipe["commit"] = f"{recipe['commit']}, with changes"
    recipe["versions"] = ", ".join(f"{name} {version}" for name, version in raw["versions"].items())
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["text"] = plain_text
    return environment.get_template("card.md").render(
        zoo=zoo, config=config, lines=lines, files=files, parameters=parameters, networks=len(used), recipe=recipe,
        name=zoo.path.absolute().name, dataset=_named(config.data),
        channels=_CHANNELS.get(zoo.input_shape[0], "channels"), episode=rows[0].episode, mixed=MIXED_EXAMPLES,
        label_noise={number: config.data.tasks[number - 1].label_noise for number in numbers},
        versions={name: importlib.metadata.version(name) for file in files for name in _PACKAGES[file]},
        recomputed=zoo.combined_as != PLAIN, told_nothing=_told_nothing(zoo, numbers, rows),
    )  # fmt: skip


def plain_text(text: object) -> str:
    """On one line, and nothing in it means something to Markdown: names of tasks and classes are not to be trusted."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", one_line(text))


def _named(data: DataConfig) -> str:
    """The data set, and the folder that its images lie in."""
    return " ".join([data.dataset, Path(getattr(data.settings, "root", "")).name])


def _lines(zoo: Zoo, outputs: Mapping[str, SavedTask], rows: Sequence[Measurement]) -> list[Line]:
    """As the run measured them; of another combination than the run's, from the predictions that it saved."""
    found: dict[int, Scores] = {row.task: row.scores for row in rows if row.is_test}
    if zoo.combined_as != PLAIN:
        for number, said in zoo.said_about("test").items():
            found[number] = CrossEntropy().evaluate(said.of(zoo.combinations[number]), said.targets)
    return [_line(zoo, task, output, found[task.number]) for output, task in outputs.items()]


def _line(zoo: Zoo, task: SavedTask, output: str, scores: Scores) -> Line:
    accuracy, networks = scores["accuracy"], len(zoo.combinations[task.number].members)
    return Line(task, output, networks, accuracy.n, accuracy.value, scores["ece"].value)


def _told_nothing(zoo: Zoo, numbers: Sequence[int], rows: Sequence[Measurement]) -> dict[str, float]:
    """Mean accuracy by scenario: of the run's own combination of all its tasks, or it was not measured."""
    if zoo.combined_as != PLAIN or len(numbers) < len(zoo.tasks) or len(numbers) == 1:
        return {}
    scenarios = (CLASS_INCREMENTAL, DOMAIN_INCREMENTAL, TASK_IDENTIFICATION)
    return {name: value for name in scenarios if (value := mean_over_tasks(rows, name)) is not None}
