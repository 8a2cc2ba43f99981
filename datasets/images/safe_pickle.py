"""Unpickle downloaded data without running code.

CIFAR and Mini-ImageNet come as pickles of arrays and plain containers; a pickle that names anything else is refused
before the name is imported. Arrays are built by the stand-ins below: numpy's own functions crash on a damaged pickle.
"""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, shortage


class _Dtype:
    """Stands for numpy.dtype: numbers and texts of fixed width, neither objects nor records."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        self._code, self._order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = state[1]

    def array(self, raw: Any, shape: Any, order: Any = "C") -> np.ndarray:
        code = self._order + self._code
        if not re.fullmatch("[|<>=][biufcSU][0-9]{1,5}", code):
            raise pickle.UnpicklingError(f"arrays of {code!r} are not admitted")
        # A byte string of Python 2 has become text.
        return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, code).reshape(shape, order=order)


class _Array(np.ndarray):
    """Stands for numpy.ndarray: empty until it is given a state, which is checked."""

    def __new__(cls, *_: object) -> "_Array":
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        checked = dtype.array(raw, shape, "F" if fortran else "C")
        super().__setstate__((1, checked.shape, checked.dtype, bool(fortran), raw))  # type: ignore[arg-type]


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    # Python 3 writes bytes so in an old protocol; no other codec is looked up.
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
    ("__builtin__", "bytes"): lambda: b"",  # Python 3 writes empty bytes so in an old protocol
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_core}.multiarray", "scalar"] = lambda dtype, raw: dtype.array(raw, ())[()]
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = lambda raw, dtype, shape, order: dtype.array(raw, shape, order)


class _Unpickler(pickle._Unpickler):  # in Python: the one in C allocates 64 GB if four bytes are damaged
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, which no data file needs; it was not run")
        return _ADMITTED[module, name]


def load_pickle(path: Path) -> Any:
    """The content of a pickle, strings of Python 2 as text; UserError if it is damaged or names anything else."""
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except Exception as error:  # a damaged pickle may fail in any way
        undamaged = shortage(error) or (isinstance(error, OSError) and error)
        raise UserError(f"{path} cannot be read: {undamaged or f'{error}; get the file again'}") from None


@contextmanager
def loaded(path: Path, wanted: str) -> Iterator[Any]:
    """The content of a pickle; turns whatever wrong content raises into one UserError that says what is wanted."""
    content = load_pickle(path)
    try:
        yield content
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        raise UserError(f"{path} must hold {wanted}; get the file again") from None
