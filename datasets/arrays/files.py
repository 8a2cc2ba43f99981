"""A file of arrays -> checked arrays of N examples: npz, or a table in parquet or csv.

npz        the arrays X [N, ...], y, and perhaps task and split, by name; nothing pickled is read
a table    columns y, and perhaps task and split; all others are the features X, in the order of the file
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, one_line, unknown

TRAINING, TESTING = "train", "test"  # values of `split`
SUFFIXES = ".npz", ".parquet", ".csv"
_SHOWN = 60  # columns that an error message lists
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Names:
    """The names of the arrays or columns."""

    X: str = "X"  # of npz alone
    y: str = "y"
    task: str = "task"
    split: str = "split"


@dataclass(frozen=True)
class Arrays:
    """N examples, checked."""

    X: Array  # float32 [N, ...], finite
    y: Array  # [N] or [N, D] as in the file: whole numbers, texts, truth values or finite real numbers
    task: Array | None  # [N] texts
    tested: Array | None  # [N] bool: test examples
    columns: tuple[str, ...] = ()  # the names of the features of a table

    def rows(self, chosen: Array) -> "Arrays":
        """Those of the examples that are chosen, [N] bool."""
        parts = (None if part is None else part[chosen] for part in (self.X, self.y, self.task, self.tested))
        return Arrays(*parts)  # type: ignore[arg-type]


def read_arrays(path: Path, names: Names, training_only: bool = False) -> Arrays:
    """The arrays of a file, or its training rows; UserError says in one line what is missing or does not fit."""
    found, columns = _columns(path, names, [names.y])
    if training_only:
        found = _training(path, names, found)
    X = _features(path, names.X, found[names.X], columns)
    y, task, split = (_optional(path, found, given, len(X)) for given in (names.y, names.task, names.split))
    assert y is not None
    if y.dtype.kind not in "iubfU":
        raise UserError(f"{path}: {names.y} has values of {y.dtype}; they must be numbers or texts")
    if y.dtype.kind == "f":
        _check_finite(f"{path}: {names.y}", y)
    if task is not None and (task.ndim != 1 or task.dtype.kind not in "iubfU"):
        raise UserError(f"{path}: {names.task} must be one number or text for each example")
    if task is not None and task.dtype.kind == "f":
        _check_finite(f"{path}: {names.task}", task)
    return Arrays(X, y, None if task is None else texts(task), _tested(path, names.split, split), columns)


def _training(path: Path, names: Names, found: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays without the rows that `split` calls test."""
    count = len(found[names.X]) if found[names.X].ndim else 0
    tested = _tested(path, names.split, _optional(path, found, names.split, count))
    if tested is None:
        return dict(found)
    # Arrays of another length are left as they are, and found out later.
    kept = {name: array[~tested] for name, array in found.items() if array.ndim and len(array) == count}
    return {**found, **kept}


def read_inputs(path: Path, names: Names, columns: Sequence[str] = ()) -> Array:
    """The features of a file alone, float32 or uint8 [N, ...]; y is not needed. UserError as in read_arrays.

    `columns`: the features that are wanted of a table, by name in this order; others may be there.
    """
    found, named = _columns(path, names, wanted=columns)
    values = _features(path, names.X, found[names.X], named)
    return found[names.X] if found[names.X].dtype == np.uint8 else values  # images


def texts(values: Array) -> Array:
    """Numbers and texts as texts, in which 2, 2.0 and "2" are the same."""
    if values.dtype.kind == "f":
        return np.array([str(int(value)) if value.is_integer() else str(value) for value in values.tolist()])
    return values.astype(str)


def _columns(
    path: Path, names: Names, needed: Sequence[str] = (), wanted: Sequence[str] = ()
) -> tuple[dict[str, Array], tuple[str, ...]]:  # fmt: skip
    """The arrays of a file by name, those of a table with its features as one, and the names of these features.

    `needed`: what must be beside the features; if it is empty they alone are read. `wanted`: the features of a table
    (default: all other columns).
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: files of arrays end in {', '.join(SUFFIXES)}")
    try:
        found, columns = _npz(path, names, needed) if path.suffix == ".npz" else _table(path, names, needed, wanted)
        bytes_of = {name: array for name, array in found.items() if array.dtype.kind == "S"}
        return {**found, **{name: np.char.decode(array, "utf-8") for name, array in bytes_of.items()}}, columns
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)[:200]
        raise UserError(f"{path} cannot be read: {reason}") from None


def _npz(path: Path, names: Names, needed: Sequence[str]) -> tuple[dict[str, Array], tuple[str, ...]]:
    file = np.load(path, allow_pickle=False)
    if isinstance(file, np.ndarray):
        raise UserError(f"{path} is a single array; save several with numpy.savez")
    with file:
        if missing := [name for name in (names.X, *needed) if name not in file.files]:
            raise UserError(f"{path}: {unknown('array', missing[0], file.files)}")
        asked = vars(names).values() if needed else [names.X]
        return {name: file[name] for name in asked if name in file.files}, ()


def _table(
    path: Path, names: Names, needed: Sequence[str], wanted: Sequence[str]
) -> tuple[dict[str, Array], tuple[str, ...]]:  # fmt: skip
    import pandas  # slow to import

    try:
        frame = pandas.read_csv(path) if path.suffix == ".csv" else pandas.read_parquet(path)
    except ImportError:
        raise UserError(f"{path}: parquet needs the package pyarrow; install it, or save npz or csv") from None
    frame.columns = frame.columns.astype(str)
    if missing := [name for name in (*needed, *wanted) if name not in frame.columns]:
        raise UserError(f"{path}: {unknown('column', missing[0], frame.columns)}")
    if frame.empty:
        raise UserError(f"{path} has no rows")
    others = {names.y, names.task, names.split}
    features = frame[list(wanted) or [name for name in frame.columns if name not in others]]
    if features.shape[1] == 0:
        raise UserError(f"{path} has no columns of features beside {', '.join(frame.columns)}")
    if unnamed := [name for name in features.columns if name.startswith("Unnamed: ")]:  # as pandas calls it
        raise UserError(f"{path}: column {unnamed[0].split()[1]}, from 0, has no name; drop it if it numbers the rows")
    wrong = [name for name, kind in features.dtypes.items() if not pandas.api.types.is_numeric_dtype(kind)]
    if wrong:
        shown = f"{', '.join(wrong[:_SHOWN])}{' ...' * (len(wrong) > _SHOWN)}"
        raise UserError(f"{path}: features must be numbers; no numbers are in {shown}: encode or drop them")
    found = {name: _labels(path, name, frame[name]) for name in (others & {*frame.columns} if needed else ())}
    return {**found, names.X: features.to_numpy(np.float64, na_value=np.nan)}, tuple(features.columns)


def _labels(path: Path, name: str, column: Any) -> Array:
    """A column as numbers or texts."""
    if column.isna().any():
        raise UserError(f"{path}: {name} is missing in row {int(column.isna().to_numpy().argmax())}, from 0")
    values = column.to_numpy()
    return values if values.dtype.kind in "iubf" else column.astype(str).to_numpy(str)


def _features(path: Path, name: str, values: Array, columns: Sequence[str]) -> Array:
    """The features as float32, of a table with the names `columns`; UserError if they are none."""
    where = f"{path}: {name}"
    if values.dtype.kind not in "iubf":
        raise UserError(f"{where} has values of {values.dtype}; features must be numbers")
    if values.ndim < 2 or 0 in values.shape:
        raise UserError(f"{where} has the shape {list(values.shape)}; features must be [N, D], or series [N, C, L]")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, dtype=np.float32)
    for column, part in zip(columns, values.T, strict=True) if columns else [(name, values)]:
        _check_finite(f"{path}: {column}", part)
    return values


def _check_finite(where: str, values: Array) -> None:
    wrong = ~np.isfinite(values.reshape(len(values), -1)).all(1)
    if wrong.any():
        rows = f"row {int(wrong.argmax())}, from 0" + f", and {wrong.sum() - 1:,} more" * int(wrong.sum() > 1)
        raise UserError(f"{where} has missing or infinite values in {rows}; fill them in, or drop the examples")


def _optional(path: Path, found: Mapping[str, Array], name: str, count: int) -> Array | None:
    """An array with a value for each of `count` examples; None if there is none, and the name is the usual one."""
    if name not in found:
        if name not in vars(Names()).values():
            raise UserError(f"{path}: {unknown('array', name, found)}")
        return None
    array = found[name]
    if array.ndim == 0 or len(array) != count:
        length = "a single value" if array.ndim == 0 else f"{len(array):,} values"
        raise UserError(f"{path}: {name} has {length}, but there are {count:,} examples")
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _tested(path: Path, name: str, split: Array | None) -> Array | None:
    if split is None:
        return None
    if split.ndim > 1:
        raise UserError(f"{path}: {name} has the shape {list(split.shape)}; it must be one text for each example")
    if wrong := sorted({*texts(split.ravel()).tolist()} - {TRAINING, TESTING}):
        raise UserError(f"{path}: {name} has the value {wrong[0]!r}; it must be {TRAINING} or {TESTING}")
    return split == TESTING
