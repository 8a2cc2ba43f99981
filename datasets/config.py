"""The settings of a dataset YAML: its tasks, and which of their examples are used."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets.scenarios import SCENARIOS
from utils.errors import UserError, unknown
from utils.settings import NoSettings, Range, read, setting

_GROUP = "what is learned"
WRITTEN, SEED = "written", "seed"


def class_name(written: str) -> str:
    """A name in Unicode's composed form: systems and editors write the é of café in two ways."""
    return unicodedata.normalize("NFC", written)


class ClassList:
    """The classes of a task: at least two different whole numbers or texts."""

    @staticmethod
    def read(where: str, value: object) -> tuple[int | str, ...]:
        """The checked classes; a UserError names the task."""
        task = where.removesuffix(": classes")
        if not isinstance(value, list) or not all(type(entry) in (int, str) for entry in value):
            raise UserError(f"{task} must be a list of classes such as [0, 1], or a mapping with the key 'classes'")
        value = [class_name(entry) if isinstance(entry, str) else entry for entry in value]
        if len(value) < 2:
            has = f"the single class {value[0]!r}" if value else "no classes"
            raise UserError(f"{task} has {has}; a task needs at least two classes, such as [0, 1]")
        if len(set(value)) < len(value):
            twice = next(entry for entry in value if value.count(entry) > 1)
            raise UserError(f"{task} has class {twice!r} twice; name each class of a task once")
        return tuple(value)


class GroupList:
    """The output of each class of a task, from 0; several classes can have the same."""

    @staticmethod
    def read(where: str, value: object) -> tuple[int, ...]:
        """The checked outputs, of which none is left out; a UserError begins with `where`."""
        groups = tuple(Range(0).check(where, number) for number in (value if isinstance(value, list) else [value]))
        if len(set(groups)) < 2 or set(groups) != set(range(max(groups) + 1)):
            raise UserError(f"{where} is {value!r}; it must have all numbers from 0 on, such as [0, 1, 0]")
        return groups


@dataclass(frozen=True)
class TaskConfig:
    """One task of a stream, as written in the dataset YAML."""

    # Labels in the data set's encoding; output i of the head is classes[i].
    classes: tuple[int | str, ...] = setting(ClassList, "classes of the task")
    name: str | None = setting(str, "name of the task", default=None)
    label_noise: float = setting(Range(0, 1, whole=False), "share of random training labels", default=0.0)
    groups: tuple[int, ...] | None = setting(GroupList, "output of each class (default: one each)", default=None)


class TaskList:
    """The tasks of a stream: each a mapping with keys of a settings class, or its value of one key alone."""

    def __init__(self, of: type, key: str, example: str) -> None:
        self._of, self._key, self._example = of, key, example

    def read(self, where: str, value: object) -> tuple[Any, ...]:
        """The checked tasks; a UserError names the wrong one."""
        if not isinstance(value, list) or not value:
            raise UserError(f"{where} must be a list with at least one {self._example}")
        path = where.removesuffix(": tasks")
        entries = (task if isinstance(task, Mapping) else {self._key: task} for task in value)
        return tuple(read(self._of, f"{path}: task {number}", entry) for number, entry in enumerate(entries, 1))


class TaskNumbers:
    """Numbers of tasks, from 1."""

    @staticmethod
    def read(where: str, value: object) -> tuple[int, ...]:
        """The checked numbers; a UserError begins with `where`."""
        return tuple(Range(1).check(where, number) for number in (value if isinstance(value, list) else [value]))


class TaskOrder:
    """The order in which tasks arrive: as written, drawn from the seed, or drawn from a number of its own."""

    kind = str

    @staticmethod
    def read(where: str, value: object) -> str | int:
        """The checked value; a UserError begins with `where`."""
        if isinstance(value, str):
            if value not in (WRITTEN, SEED):
                raise UserError(f"{where}: {unknown('task_order', value, (WRITTEN, SEED))}; or give a whole number")
            return value
        return Range(0, 2**63 - 1).check(where, value)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DataConfig:
    """Which tasks, in which order, and how many of their examples."""

    dataset: str = setting(str, "name of the data set")
    tasks: tuple[TaskConfig, ...] = setting(
        TaskList(TaskConfig, "classes", "task, such as [[0, 1], [2, 3]]"), "classes of each task"
    )
    samples: int | None = setting(
        Range(1), "use up to N training examples per class (default: all)", default=None, option="samples", group=_GROUP
    )
    hold_out: float = setting(
        Range(0, 0.9, whole=False), "share of each class's training examples that nothing is trained on, 0 to 0.9: to "
        "calibrate and combine members on (default: 0)", default=0.0, option="hold_out", metavar="F", group=_GROUP,
    )  # fmt: skip
    validation: float = setting(
        Range(0, 0.9, whole=False), "share of each class's training examples that takes the place of the test "
        "examples, which are not read, 0 to 0.9: to choose settings (default: 0)",
        default=0.0, option="validation", metavar="F", group=_GROUP,
    )  # fmt: skip
    first_tasks: int | None = setting(
        Range(1), "learn the first N tasks of the stream alone (default: all)", default=None, option="first_tasks",
        group=_GROUP,
    )  # fmt: skip
    scenario: str = setting(
        SCENARIOS, "task: it is told, and each has a head; domain: it is not told, all share a head; class: it is not "
        "told, one head of all classes seen (default: task)",
        default="task", option="scenario", metavar="NAME", group=_GROUP,
    )  # fmt: skip
    blur: float = setting(
        Range(0, 1, whole=False), "share of each task's training examples that arrives with its neighbours", default=0.0
    )
    task_order: str | int = setting(
        TaskOrder, "order in which tasks arrive: as written, or drawn from the seed or from a number", default=WRITTEN
    )  # fmt: skip
    forgotten: tuple[int, ...] = setting(TaskNumbers, "tasks removed from the stream", default=(), internal=True)
    data_dir: Path = setting(
        Path, "where the data lies or is downloaded to, torchvision's root (default: ./data)", default=Path("data"),
        option="data_dir", metavar="DIR", group=_GROUP, free=True, machine=True,
    )  # fmt: skip
    path: str = setting(str, "the dataset YAML", default="", machine=True, internal=True)
    settings: Any = field(default_factory=NoSettings)  # of the data set

    @property
    def numbers(self) -> list[int]:
        """The numbers of the tasks that the stream has, from 1."""
        among = range(1, len(self.tasks) + 1)[: self.first_tasks]
        return [number for number in among if number not in self.forgotten]

    @property
    def drawn(self) -> str:
        """The first setting, such as "class_order: seed", that draws what the tasks are from the seed; "" if none."""
        found = {key: getattr(self.settings, key, None) for key in ("class_order", "views")}
        keys = ("class_order", "task_order", "views")
        return next((f"{key}: seed" for key in keys if {**found, "task_order": self.task_order}[key] == SEED), "")

    @property
    def numbered_order(self) -> int | None:
        """The number that the order of the tasks is drawn from; None if it is as written or drawn from the seed."""
        return self.task_order if isinstance(self.task_order, int) else None

    def baselines(self, task: int) -> dict[str, float]:
        """The main score of answers to a task, by its place in the stream, that need no network, by name; if known."""
        return {}

    @property
    def stream(self) -> str:
        """The stream's name: that of its YAML file."""
        return Path(self.path).stem
