"""YAML files and command line -> one frozen, fully resolved RunConfig, or a UserError that says what to write.

The command line wins over the hyperparameter YAML, which wins over the defaults below.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, unknown
from utils.files import NUMBER


@dataclass(frozen=True)
class TaskConfig:
    """One task of a stream, as written in the dataset YAML."""

    classes: tuple[int | str, ...]  # labels in the data set's encoding; output i of the head is classes[i]
    name: str | None = None
    label_noise: float = 0.0  # share of the training labels replaced by labels drawn at random


@dataclass(frozen=True)
class DatasetConfig:
    """Which tasks, in which order."""

    path: str
    dataset: str
    tasks: tuple[TaskConfig, ...]
    root: str | None = None  # image_folder: the folder that holds train/ and test/, relative to --data_dir
    image_size: int | None = None  # image_folder: side of the square images, in pixels
    augment: str = "crop_flip"  # image_folder: crop_flip, crop or none


@dataclass(frozen=True)
class HyperConfig:
    """How one network is trained."""

    model: str
    epochs: int = 100
    batch: int = 16
    lr: float = 0.01
    l2_reg: float = 1e-5
    dropout: float = 0.2
    path: str = ""  # of the YAML


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run; written to config.yaml with every default filled in."""

    dataset: DatasetConfig
    hyper: HyperConfig
    method: str = "zoo"
    continual: bool = False
    rounds: int | None = None
    warm_start: bool = False
    tasks_per_round: int = 5
    replay_frac: float = 1.0
    memory: int | None = None  # training examples of past tasks that are kept, in total
    memory_per_class: int | None = None  # the same for each class of each past task
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the method, see config/method/
    samples: int | None = None
    hold_out: float = 0.0  # share of each class's training examples that no network is trained on
    selection: str = "boosting"
    seed: int = 0
    augment: bool = True
    forgotten: tuple[int, ...] = ()  # tasks that the stream does not have any more, by number
    data_dir: Path = field(default_factory=lambda: Path("data"))
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None  # of the CPU; as many as it has cores if None

    @property
    def stream(self) -> str:
        """The stream's name: that of its YAML file."""
        return Path(self.dataset.path).stem


@dataclass(frozen=True)
class Range:
    """The numbers that an option or key accepts."""

    low: float
    high: float = math.inf
    whole: bool = True
    open_low: bool = False
    open_high: bool = False

    def describe(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return f"{kind} {low}"
        return f"{kind} {low} and {'below' if self.open_high else 'at most'} {self.high:g}"

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and abs(value) < _HUGE

    def check(self, where: str, value: object) -> Any:
        """`value` if it is a number in the range; `where` opens the error message.

        Raises:
            UserError: not a number, not whole where it must be, or out of range.
        """
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (self.whole and not isinstance(value, int)) or value not in self:  # type: ignore[operator]
            raise UserError(f"{where} is {value!r}; it must be {self.describe()}")
        return value if self.whole else float(value)  # type: ignore[arg-type]


Known = Mapping[str, Range | Sequence[str] | None]
_HUGE = 2**63
_LARGEST_YAML = 16 << 20  # bytes
_DEEPEST_YAML = 32
_LONGEST_VALUE = 3000  # characters; Python refuses to print numbers that are not much longer
RANGES = {
    "epochs": Range(1, 10**6),
    # Batch normalisation cannot normalise one value a channel.
    "batch": Range(2, 65536),
    "lr": Range(0, 1000, whole=False, open_low=True),
    "l2_reg": Range(0, 1000, whole=False),
    "dropout": Range(0, 1, whole=False, open_high=True),
    "label_noise": Range(0, 1, whole=False),
    "image_size": Range(8, 1024),
    "rounds": Range(1, 10**6),
    "tasks_per_round": Range(1),
    "replay_frac": Range(0, 1, whole=False),
    "samples": Range(1),
    "hold_out": Range(0, 0.9, whole=False),
    "memory": Range(1),
    "memory_per_class": Range(1),
    "seed": Range(0, 2**63 - 1),
    "threads": Range(1, 1024),
    "checkpoint_minutes": Range(0, 1e6, whole=False),
}
AUGMENTATIONS = ("crop_flip", "crop", "none")


def check_range(where: str, name: str, value: object) -> Any:
    """`value` if it is a number in the range of `name`; `where` opens the error message.

    Raises:
        UserError: not a number, not whole where it must be, or out of range.
    """
    return RANGES[name].check(where, value)


def load_dataset_config(path: str) -> DatasetConfig:
    """Read a dataset YAML: `dataset`, `tasks` and, for image_folder, `root`, `image_size`, `augment`.

    A task is a list of classes, or a mapping with `classes` and optionally `name` and `label_noise`.

    Raises:
        UserError: names the file and the key.
    """
    return _dataset(path, path, load_yaml(path))


def _dataset(where: str, path: str, content: Mapping[str, Any]) -> DatasetConfig:
    """`where` opens error messages, `path` is the YAML's."""
    _check_keys(where, content, DatasetConfig, required=("dataset", "tasks"), hidden=("path",))
    name = _text(where, content, "dataset")
    if name != "image_folder":
        for key in ("root", "image_size", "augment"):
            if key in content:
                raise UserError(f"{where}: key {key!r} is only for dataset: image_folder, not for {name}")
    options: dict[str, Any] = {}
    if "root" in content:
        options["root"] = _text(where, content, "root")
    if "image_size" in content:
        options["image_size"] = check_range(f"{where}: image_size", "image_size", content["image_size"])
    if "augment" in content:
        options["augment"] = _text(where, content, "augment")
        if options["augment"] not in AUGMENTATIONS:
            raise UserError(f"{where}: augment: {unknown('augmentation', options['augment'], AUGMENTATIONS)}")
    tasks = content["tasks"]
    if not isinstance(tasks, list) or not tasks:
        raise UserError(f"{where}: tasks must be a list with at least one task, such as [[0, 1], [2, 3]]")
    return DatasetConfig(
        path, name, tuple(_task(where, number, task) for number, task in enumerate(tasks, 1)), **options
    )


def load_hyper_config(path: str, overrides: Mapping[str, Any]) -> HyperConfig:
    """Read a hyperparameter YAML: `model` and optionally epochs, batch, lr, l2_reg, dropout.

    `overrides` come from the command line and win where they are not None.

    Raises:
        UserError: names the file and the key.
    """
    values = _hyper(path, load_yaml(path))
    values.update({key: value for key, value in overrides.items() if value is not None})
    return HyperConfig(**values, path=path)


def _hyper(where: str, content: Mapping[str, Any]) -> dict[str, Any]:
    _check_keys(where, content, HyperConfig, required=("model",), hidden=("path",))
    values: dict[str, Any] = {"model": _text(where, content, "model")}
    for key in content:
        if key != "model":
            values[key] = check_range(f"{where}: {key}", key, content[key])
    return values


# Keys of config.yaml that older versions did not write, and what they did.
ADDED: Mapping[str, Any] = {"hold_out": 0.0, "forgotten": []}
# Accuracies of single tasks can be compared between runs in which these agree.
RECIPE = ("dataset", "hyper", "samples", "hold_out", "forgotten", "augment")


def recipe(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.yaml has of RECIPE; the same YAML is the same wherever it lies."""
    values = {key: config.get(key, ADDED.get(key)) for key in RECIPE}
    return {key: {name: entry for name, entry in value.items() if name != "path"} if isinstance(value, dict) else value
            for key, value in values.items()}  # fmt: skip


def saved_config(path: str, content: Mapping[str, Any]) -> RunConfig:
    """The configuration of a run from its config.yaml. Settings of the method are not checked here.

    Raises:
        UserError: names the file and the key.
    """
    values: dict[str, Any] = {}
    content = {**ADDED, **content}
    for option in fields(RunConfig):
        where, key = f"{path}: {option.name}", option.name
        if key not in content:
            raise UserError(f"{path}: key {key!r} is missing")
        value = content[key]
        if key in ("dataset", "hyper", "settings"):
            if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
                raise UserError(f"{where} must hold keys and values")
            value = _saved_part(where, key, value)
        elif key == "forgotten":
            numbers = value if isinstance(value, list) else [value]
            value = tuple(Range(1).check(where, number) for number in numbers)
        elif key in RANGES and not (value is None and option.default is None):
            value = check_range(where, key, value)
        elif key not in RANGES and not isinstance(value, bool if isinstance(option.default, bool) else str):
            raise UserError(
                f"{where} is {value!r}; it must be {'true or false' if option.default is False else 'a text'}"
            )
        values[key] = Path(value) if key == "data_dir" else value
    return RunConfig(**values)


def _saved_part(where: str, key: str, content: Mapping[str, Any]) -> Any:
    if key == "settings":
        return dict(content)
    given = {name: value for name, value in content.items() if value is not None and name != "path"}
    path = _text(where, content, "path") if "path" in content else ""
    if key == "hyper":
        return HyperConfig(**_hyper(where, given), path=path)
    if given.get("dataset") != "image_folder":
        given.pop("augment", None)  # its default
    tasks = given.get("tasks")
    if isinstance(tasks, list):
        given["tasks"] = [_without_none(task) for task in tasks]
    return _dataset(where, path, given)


def _without_none(task: Any) -> Any:
    return {key: value for key, value in task.items() if value is not None} if isinstance(task, dict) else task


def _task(path: str, number: int, task: object) -> TaskConfig:
    where = f"{path}: task {number}"
    options: dict[str, Any] = {}
    classes = task
    if isinstance(task, dict):
        _check_keys(where, task, TaskConfig, required=("classes",))
        classes = task["classes"]
        if "name" in task:
            options["name"] = _text(where, task, "name")
        if "label_noise" in task:
            options["label_noise"] = check_range(f"{where}: label_noise", "label_noise", task["label_noise"])
    if not isinstance(classes, list) or not all(isinstance(c, (int, str)) and not isinstance(c, bool) for c in classes):
        raise UserError(f"{where} must be a list of classes such as [0, 1], or a mapping with the key 'classes'")
    if not classes:
        raise UserError(f"{where} has no classes; name at least two, such as [0, 1]")
    twice = [c for i, c in enumerate(classes) if c in classes[:i]]
    if twice:
        raise UserError(f"{where} has class {twice[0]!r} twice; name each class of a task once")
    if len(classes) < 2:
        raise UserError(f"{where} has the single class {classes[0]!r}; a task needs at least two classes")
    return TaskConfig(tuple(classes), **options)


def _check_keys(
    where: str, content: Mapping[str, Any], cls: type, required: Iterable[str], hidden: Iterable[str] = ()
) -> None:
    known = [f.name for f in fields(cls) if f.name not in hidden]
    for key in content:
        if key not in known:
            raise UserError(f"{where}: {unknown('key', key, known)}")
    for key in required:
        if key not in content:
            raise UserError(f"{where}: key {key!r} is missing")


def _text(where: str, content: Mapping[str, Any], key: str) -> str:
    value = content[key]
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {key} is {value!r}; it must be a text, such as {key}: {_EXAMPLES.get(key, 'name')}")
    return value


_EXAMPLES = {"dataset": "cifar100", "model": "conv", "root": "my_images", "augment": "crop_flip"}


class _Loader(yaml.SafeLoader):
    """The safe loader that also reads 1e-5 as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if key.value in [earlier.value for earlier in keys[:i]]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", *NUMBER)


def load_settings(path: str, known: Known, stream: str) -> dict[str, Any]:
    """Read the settings of a method, all of them; those below `streams: <name>` win for the stream of that name.

    Args:
        known: the numbers that each setting accepts, or its words; None where they are not checked.

    Raises:
        UserError: names the file and the key.
    """
    content = load_yaml(path)
    presets = content.pop("streams", {})
    if not isinstance(presets, dict):
        raise UserError(f"{path}: key 'streams' is {presets!r}; it must map names of streams to settings")
    preset = presets.get(stream, {})
    if not isinstance(preset, dict):
        raise UserError(f"{path}: key 'streams: {stream}' is {preset!r}; it must map names of settings to values")
    return check_settings(path, {**content, **preset}, known)


def check_settings(path: str, settings: dict[str, Any], known: Known) -> dict[str, Any]:
    """All settings of a method, each with a value that it accepts.

    Raises:
        UserError: names the file and the key.
    """
    for key in settings:
        if key not in known:
            raise UserError(f"{path}: {unknown('key', str(key), [*known, 'streams'])}")
    for key, accepted in known.items():
        if key not in settings:
            raise UserError(f"{path}: key {key!r} is missing")
        value = settings[key]
        if accepted is None:
            continue
        if isinstance(accepted, Range):
            settings[key] = accepted.check(f"{path}: key {key!r}", value)
        elif value not in accepted:
            raise UserError(f"{path}: key {key!r} is {value!r}; it must be {' or '.join(accepted)}")
    return settings


def load_yaml(path: str) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        UserError: names the file and, where it can, the line.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read(_LARGEST_YAML + 1)
        if len(content) > _LARGEST_YAML:
            raise UserError(f"{path} is larger than {_LARGEST_YAML >> 20} MiB, which no configuration is")
    except FileNotFoundError:
        folder = Path(path).parent
        known = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
        raise UserError(f"{path} does not exist" + (f"; {folder} has {', '.join(known)}" if known else "")) from None
    except (OSError, UnicodeDecodeError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UserError(f"{path} cannot be read: {error}") from None
    return parse_yaml(path, content)


def parse_yaml(path: str, text: str, loader: Any = None) -> dict[str, Any]:
    """The keys and values of the text of a YAML file; neither anchors nor deep nesting nor endless numbers.

    Args:
        loader: one of PyYAML's safe ones.

    Raises:
        UserError: names the file and, where it can, the line.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader or yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise UserError(f"{path} has an anchor (&) or an alias (*); write the values out")
            if isinstance(event, yaml.ScalarEvent) and (len(event.value) > _LONGEST_VALUE or _halved(event.value)):
                what = "a value that is too long" if len(event.value) > _LONGEST_VALUE else "half a character"
                raise UserError(f"{path} has {what} in line {event.start_mark.line + 1}")  # type: ignore[union-attr]
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST_YAML:
                raise UserError(f"{path} is nested too deeply")
        content = yaml.load(text, Loader=loader or _Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except (
        ValueError,
        AttributeError,
        TypeError,
        LookupError,
        OverflowError,
    ) as error:  # from PyYAML's dates and numbers
        raise UserError(f"{path} is not valid YAML: a value cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, such as 'dataset: cifar100'")
    return content


def _halved(text: str) -> bool:
    """Whether a text has a surrogate, which no file can be written with."""
    return any("\ud800" <= character <= "\udfff" for character in text)
