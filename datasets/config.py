"""What is learned: the tasks of a dataset YAML and which of their examples are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError
from utils.settings import NoSettings, Range, read, setting

_GROUP = "what is learned"


@dataclass(frozen=True)
class TaskConfig:
    """One task of a stream, as written in the dataset YAML."""

    classes: tuple[int | str, ...]  # labels in the data set's encoding; output i of the head is classes[i]
    name: str | None = None
    label_noise: float = 0.0  # share of the training labels replaced by labels drawn at random


class Tasks:
    """The list of tasks: each a list of classes, or a mapping with `classes` and optionally `name`, `label_noise`."""

    @staticmethod
    def read(where: str, value: object) -> tuple[TaskConfig, ...]:
        """
        Raises:
            UserError: names the task.
        """
        if not isinstance(value, list) or not value:
            raise UserError(f"{where} must be a list with at least one task, such as [[0, 1], [2, 3]]")
        path = where.removesuffix(": tasks")
        return tuple(_task(f"{path}: task {number}", task) for number, task in enumerate(value, 1))


class TaskNumbers:
    """Numbers of tasks, from 1."""

    @staticmethod
    def read(where: str, value: object) -> tuple[int, ...]:
        """
        Raises:
            UserError: not a list of task numbers.
        """
        return tuple(Range(1).check(where, number) for number in (value if isinstance(value, list) else [value]))


@dataclass(frozen=True)
class DataConfig:
    """Which tasks, in which order, and how many of their examples."""

    dataset: str = setting(str, "name of the data set")
    tasks: tuple[TaskConfig, ...] = setting(Tasks, "classes of each task")
    samples: int | None = setting(
        Range(1), "keep only N training examples per class (default: all)", default=None, option="samples",
        group=_GROUP
    )  # fmt: skip
    hold_out: float = setting(
        Range(0, 0.9, whole=False), "share of each class's training examples that nothing is trained on, 0 to 0.9: to "
        "calibrate and combine members on (default: 0)", default=0.0, option="hold_out", metavar="F", group=_GROUP,
    )  # fmt: skip
    forgotten: tuple[int, ...] = setting(TaskNumbers, "tasks that the stream does not have any more", default=())
    data_dir: Path = setting(
        Path, "where the data lies or is downloaded to, torchvision's root (default: ./data)", default=Path("data"),
        option="data_dir", metavar="DIR", group=_GROUP, free=True, machine=True,
    )  # fmt: skip
    path: str = setting(str, "the dataset YAML", default="", machine=True)
    settings: Any = field(default_factory=NoSettings)  # of the data set

    @property
    def stream(self) -> str:
        """The stream's name: that of its YAML file."""
        return Path(self.path).stem


Builder = TypeVar("Builder", bound=Callable[..., Any])


def declares(settings: type) -> Callable[[Builder], Builder]:
    """Mark a stream builder as having settings of its own, which stand beside `dataset` and `tasks` in its YAML."""

    def mark(builder: Builder) -> Builder:
        builder.Settings = settings  # type: ignore[attr-defined]
        return builder

    return mark


@dataclass(frozen=True)
class _TaskEntry:
    name: str | None = setting(str, "of the task", default=None)
    label_noise: float = setting(Range(0, 1, whole=False), "share of random training labels", default=0.0)
    classes: Any = setting(Tasks, "of the task", default=None)


def _task(where: str, task: object) -> TaskConfig:
    entry, classes = _TaskEntry(), task
    if isinstance(task, Mapping):
        given = {key: value for key, value in task.items() if value is not None}
        classes = given.pop("classes", None)
        if "classes" not in task:
            read(_TaskEntry, where, given)
            raise UserError(f"{where}: key 'classes' is missing")
        entry = read(_TaskEntry, where, given)
    if not isinstance(classes, list) or not all(isinstance(c, (int, str)) and not isinstance(c, bool) for c in classes):
        raise UserError(f"{where} must be a list of classes such as [0, 1], or a mapping with the key 'classes'")
    if not classes:
        raise UserError(f"{where} has no classes; name at least two, such as [0, 1]")
    twice = [c for i, c in enumerate(classes) if c in classes[:i]]
    if twice:
        raise UserError(f"{where} has class {twice[0]!r} twice; name each class of a task once")
    if len(classes) < 2:
        raise UserError(f"{where} has the single class {classes[0]!r}; a task needs at least two classes")
    return TaskConfig(tuple(classes), entry.name, entry.label_noise)
