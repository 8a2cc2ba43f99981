"""The stream of arrays: tabular data, embeddings and time series, with classes or real numbers as targets.

{dataset: arrays, file: sensors.npz}                          a task for each value of the array `task`
{dataset: arrays, file: sensors.csv, tasks: [2023, 2022]}     some of them, in this order
{dataset: arrays, file: embeddings.npz, tasks: [[cat, dog], [car, ship]]}   tasks are classes of y
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from datasets.arrays.files import Array, Arrays, Names, read_arrays, texts
from datasets.arrays.scaling import ArrayPreprocess, ScaledNumbers, moments
from datasets.config import ClassList, DataConfig
from datasets.objectives import CrossEntropy, Objective
from datasets.task import HELD_OUT, TEST, TRAIN, Examples, StreamSpec, Table, Task, TaskStream
from datasets.validation import VALIDATION, real_test, taken
from utils.compute import place
from utils.errors import UserError, expanded, unknown
from utils.seeding import derive_seed, generator
from utils.settings import Range, read, setting

_LARGEST = 1e18  # target: its square is finite in single precision
AUTO, CLASSES, REAL = "auto", "classes", "real"


class TaskValue:
    """A value of the array `task`: a whole number or a text."""

    @staticmethod
    def read(where: str, value: object) -> str:
        """The value as a text; a UserError begins with `where`."""
        if type(value) not in (int, str) or value == "":
            raise UserError(f"{where} is {value!r}; it must be a value of the array of tasks, a whole number or a text")
        return str(value)


@dataclass(frozen=True)
class ArrayTask:
    """The examples of one task: those with a value of the array `task`, of some classes of y, or of both."""

    task: str | None = setting(TaskValue, "value of the array `task`", default=None)
    classes: tuple[int | str, ...] | None = setting(
        ClassList, "classes of the task (default: all it has)", default=None
    )
    name: str | None = setting(str, "name of the task", default=None)
    label_noise: ClassVar[float] = 0.0


class ArrayTasks:
    """The tasks of a stream: each a value of the array `task`, a list of classes, or a mapping."""

    @staticmethod
    def read(where: str, value: object) -> tuple[ArrayTask, ...]:
        """The checked tasks; a UserError names the wrong one."""
        if not isinstance(value, list) or not value:
            raise UserError(f"{where} must be a list of values of the array of tasks, or of lists of classes")
        path, found = where.removesuffix(": tasks"), []
        for number, entry in enumerate(value, 1):
            key = "classes" if isinstance(entry, list) else "task"
            content: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {key: entry}
            found.append(read(ArrayTask, f"{path}: task {number}", content))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class ArraySettings:
    """Keys of the dataset YAML beside `dataset` and `tasks`."""

    file: str = setting(str, "npz, parquet or csv; relative to --data_dir")
    X: str = setting(str, "array of the features, [N, D], or series [N, C, L]; of npz alone", default="X")
    y: str = setting(str, "array or column of the targets", default="y")
    task: str = setting(str, "array or column that says of which task an example is", default="task")
    split: str = setting(str, "array or column with train or test", default="split")
    kind: str = setting(
        (AUTO, CLASSES, REAL), "of the targets; auto: whole numbers, texts and truth values are classes", default=AUTO
    )
    scale: bool = setting(
        bool, "features, and targets that are real, are scaled by mean and sd of the first task's training examples",
        default=True,
    )  # fmt: skip
    test_share: float = setting(
        Range(0.01, 0.9, whole=False), "share of test examples where the file has no split", default=0.25
    )

    @property
    def names(self) -> Names:
        return Names(self.X, self.y, self.task, self.split)


@dataclass(frozen=True)
class ArrayConfig(DataConfig):
    """Which tasks, in which order; without `tasks` the file says: its values of `task`, in the order of appearance."""

    tasks: tuple[Any, ...] = setting(ArrayTasks, "the tasks", default=())

    def __post_init__(self) -> None:
        # Without the file there are no tasks yet: a YAML file is checked before --data_dir is known.
        if not self.tasks and isinstance(self.settings, ArraySettings):
            with contextlib.suppress(UserError):
                values = self.arrays.task
                found = [None] if values is None else dict.fromkeys(values.tolist())
                object.__setattr__(self, "tasks", tuple(ArrayTask(task=value) for value in found))

    @property
    def arrays(self) -> Arrays:
        """The arrays of the file; with validation without the rows that its `split` calls test."""
        path = self.data_dir / expanded(self.settings.file)
        try:
            found = path.stat()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{self.path}: file: {path} cannot be read: {reason}") from None
        return _read(path.absolute(), self.settings.names, self.validation > 0, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, names: Names, training_only: bool, changed: int, size: int) -> Arrays:
    """The arrays of a file, read once: the configuration asks for its tasks, and then the stream for everything."""
    return read_arrays(path, names, training_only)


@dataclass(frozen=True)
class Labels:
    """The class of each of N examples."""

    names: tuple[str, ...]  # of all classes of the file, sorted by value
    codes: Array  # [N] int64, places in `names`

    @classmethod
    def of(cls, y: Array) -> "Labels":
        values, codes = np.unique(y, return_inverse=True)
        return cls(tuple(texts(values).tolist()), codes)


@dataclass(frozen=True)
class Rows:
    """Rows of one task by split, and its targets by row of the file."""

    splits: Mapping[str, Array]  # row numbers
    targets: Array  # [N] int64 or [N, D] float32
    classes: tuple[str, ...] = ()


def arrays(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream of a file of arrays; UserError says in one line what does not fit."""
    assert isinstance(config, ArrayConfig)
    own: ArraySettings = config.settings
    data = config.arrays
    labels = _labels(config, own, data)
    groups = _groups(data.task, labels, len(data.X))
    nothing: Array = np.zeros(len(data.X), bool)
    tested = _share(data.X, groups, ~nothing, own.test_share) if data.tested is None else data.tested
    if config.validation:
        training = ~tested
        data, groups, nothing = data.rows(training), groups[training], nothing[training]
        labels = None if labels is None else replace(labels, codes=labels.codes[training])
        tested = _share(data.X, groups, ~nothing, config.validation, _salt(seed, VALIDATION))
    else:
        tested = real_test(config, lambda: tested)
    held = nothing
    if config.hold_out:  # no task is trained on what another one holds out
        held = _share(data.X, groups, ~tested, config.hold_out, _salt(seed, "hold_out"))
    # The first task gives the scale, also when it is forgotten; the others need not be in the file any more.
    numbers = sorted({1, *config.numbers})
    found = {number: _rows(config, data, labels, tested, held, seed, number) for number in numbers}
    preprocess, objective = _scaled(own, data, found[1], labels is None, device)
    store = place(torch.from_numpy(data.X), device)
    tasks = tuple(
        _task(config, number, rows, store, device) for number, rows in found.items() if number in config.numbers
    )
    spec = StreamSpec(config.stream, tuple(store.shape[1:]), objective, preprocess)
    return TaskStream(spec, tasks, validated=config.validation > 0)


arrays.Settings = ArraySettings  # type: ignore[attr-defined]
arrays.Config = ArrayConfig  # type: ignore[attr-defined]


def _labels(config: ArrayConfig, own: ArraySettings, data: Arrays) -> Labels | None:
    """The classes of the targets, None if these are real numbers; UserError if they can be neither."""
    where, y = f"{config.path}: {own.y}", data.y
    real = own.kind == REAL or (own.kind == AUTO and y.dtype.kind == "f")
    if real and y.dtype.kind not in "iubf":
        raise UserError(f"{config.path}: kind: real needs numbers; {own.y} has texts")
    if y.ndim > 1 + real or not y.size:
        needed = "real numbers must be [N] or [N, D]" if real else "classes must be [N]"
        raise UserError(f"{where} has the shape {list(y.shape)}; {needed}")
    if real:
        if np.abs(y.astype(np.float64)).max() > _LARGEST:
            raise UserError(f"{where} has numbers beyond {_LARGEST:g}; give them in a larger unit")
        return None
    labels = Labels.of(y)
    if own.kind == AUTO and y.dtype.kind in "iu" and 2 * len(labels.names) > len(y) > 2:
        found = f"{len(labels.names):,} different whole numbers in {len(y):,} examples"
        raise UserError(f"{where} has {found}; write kind: real if they are no classes, else kind: classes")
    return labels


def _scaled(
    own: ArraySettings, data: Arrays, first: Rows, real: bool, device: torch.device
) -> tuple[ArrayPreprocess, Objective]:  # fmt: skip
    """What puts features and targets on the scale of the first task: later ones are not known when it is learned."""
    rows = first.splits[TRAIN]
    objective: Objective = CrossEntropy()
    if real:
        mean, sd = moments(first.targets[rows]) if own.scale else ([0.0], [1.0])
        objective = ScaledNumbers(torch.tensor(mean, device=device), torch.tensor(sd, device=device))
    if not own.scale:
        return ArrayPreprocess(columns=data.columns), objective
    mean, sd = moments(data.X[rows])
    scales = torch.tensor(mean, device=device), torch.tensor(sd, device=device)
    return ArrayPreprocess(*scales, data.columns), objective


def _task(config: ArrayConfig, number: int, rows: Rows, store: Tensor, device: torch.device) -> Task:
    asked = config.tasks[number - 1]
    splits = {
        split: Examples(
            store, torch.from_numpy(part).to(store.device), torch.from_numpy(rows.targets[part]).to(device)
        )
        for split, part in rows.splits.items()
    }  # fmt: skip
    chosen = "/".join(map(str, asked.classes or rows.classes)) if asked.task is None else asked.task
    width = len(rows.classes) or rows.targets.shape[1]
    return Task(number, asked.name or chosen or "all", width, Table(splits[TRAIN]), splits, rows.classes)


def _rows(
    config: ArrayConfig, data: Arrays, labels: Labels | None, tested: Array, held: Array, seed: int, number: int
) -> Rows:  # fmt: skip
    """The rows of a task; UserError if it has none, or too few classes."""
    task, where = config.tasks[number - 1], f"{config.path}: task {number}"
    mine = np.ones(len(data.X), bool)
    if task.task is not None:
        if data.task is None:
            raise UserError(f"{where}: {config.settings.file} has no array {config.settings.task!r}, which tells tasks")
        mine = data.task == task.task
        if not mine.any():
            raise UserError(f"{where}: {unknown('task', task.task, {*data.task.tolist()})}")
    if labels is None:
        if task.classes is not None:
            raise UserError(f"{where} names classes, but {config.settings.y} has real numbers; leave them out")
        targets = data.y.astype(np.float32).reshape(len(data.y), -1)
        classes: tuple[str, ...] = ()
    else:
        targets, classes = _targets(where, labels, mine, mine & ~tested, task.classes)
        mine &= targets >= 0
    splits = {TRAIN: mine & ~tested & ~held, TEST: mine & tested}
    if config.hold_out:
        splits[HELD_OUT] = mine & held
    for split, chosen in splits.items():
        if not chosen.any():
            raise UserError(f"{where} has no {split} examples")
    if config.samples is not None and labels is not None:
        _limit(config, splits, targets, generator(seed, "samples", number))
    return Rows({split: chosen.nonzero()[0] for split, chosen in splits.items()}, targets, classes)


def _targets(
    where: str, labels: Labels, mine: Array, training: Array, wanted: Sequence[int | str] | None
) -> tuple[Array, tuple[str, ...]]:  # fmt: skip
    """The class of each row, [N] int64, -1 where it has none of the task's, and the names of the classes."""
    known, present = (  # sorted
        {labels.names[code]: None for code in np.unique(labels.codes[rows]).tolist()} for rows in (mine, training)
    )
    classes = tuple(known if wanted is None else map(str, wanted))
    for name in classes:
        if name not in present:
            lack = f"class {name!r} has no training examples"
            raise UserError(f"{where}: {lack if name in known else unknown('class', name, known)}")
    if len(classes) < 2:
        raise UserError(f"{where} has the single class {classes[0]!r}; a task needs at least two classes")
    places = {name: number for number, name in enumerate(classes)}
    return np.array([places.get(name, -1) for name in labels.names])[labels.codes], classes


def _groups(tasks: Array | None, labels: Labels | None, count: int) -> Array:
    """The number of the class and task of each of `count` examples, [N] int64."""
    codes = np.zeros(count, np.int64) if labels is None else labels.codes
    return codes if tasks is None else codes + (codes.max() + 1) * np.unique(tasks, return_inverse=True)[1]


def _members(groups: Array, among: Array) -> Iterator[Array]:
    """The rows of each group among some examples, [K] each."""
    rows = among.nonzero()[0]
    rows = rows[groups[rows].argsort(kind="stable")]
    yield from np.split(rows, np.diff(groups[rows]).nonzero()[0] + 1)


def _share(X: Array, groups: Array, among: Array, share: float, salt: bytes = b"") -> Array:
    """Which examples are of a share of each group among some examples, [N] bool, for testing or to be held out.

    Those whose features have the smallest hash with the salt, whatever other examples there are; equal examples of a
    group are never on both sides.
    """
    hashes = [hashlib.blake2b(row.tobytes(), digest_size=8, salt=salt).digest() for row in X]
    order = np.frombuffer(b"".join(hashes), ">u8")
    chosen = np.zeros(len(X), bool)
    for rows in _members(groups, among):
        if count := taken(share, len(rows)):
            chosen[rows] = order[rows] <= np.sort(order[rows])[count - 1]
    return chosen


def _salt(seed: int, name: str) -> bytes:
    return derive_seed(seed, name).to_bytes(8, "big")


def _limit(config: ArrayConfig, splits: Mapping[str, Array], targets: Array, rng: torch.Generator) -> None:
    """Leave at most `samples` training examples of each class, of which the share hold_out is held out."""
    assert config.samples is not None
    held = min(config.samples - 1, max(1, round(config.hold_out * config.samples))) if config.hold_out else 0
    most = {HELD_OUT: held, TRAIN: config.samples - held}
    if config.hold_out and not held:
        raise UserError(f"--hold_out {config.hold_out:g} leaves no training example of a class, of one; leave it out")
    for split in [split for split in (TRAIN, HELD_OUT) if split in splits]:
        for label in range(int(targets.max()) + 1):
            rows = (splits[split] & (targets == label)).nonzero()[0]
            splits[split][rows[torch.randperm(len(rows), generator=rng).numpy()[most[split] :]]] = False
