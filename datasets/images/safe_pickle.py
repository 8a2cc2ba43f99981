"""Unpickle downloaded data without running code.

CIFAR and Mini-ImageNet come as pickles of arrays and plain containers; a pickle that names anything else is refused
before the name is imported. Arrays are built by the stand-ins below: numpy's own functions crash on a damaged pickle.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError


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

    def __new__(cls, *_: object) -> _Array:
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        checked = dtype.array(raw, shape, "F" if fortran else "C")
        super().__setstate__((1, checked.shape, checked.dtype, bool(fortran), raw))  # type: ignore[arg-type]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stands for codecs.encode, with which Python 3 writes bytes in an old protocol; looks up no other codec."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not admitted")
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # Python 3 writes empty bytes so in an old protocol
}
for _core in ("numpy.core", "numpy._core"):
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Array
    _ADMITTED[f"{_core}.multiarray", "scalar"] = lambda dtype, raw: dtype.array(raw, ())[()]
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = lambda raw, dtype, shape, order: dtype.array(raw, shape, order)


class _ForbiddenNameError(Exception):
    pass


class _Unpickler(pickle._Unpickler):  # in Python: the one in C allocates 64 GB if four bytes are damaged
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise _ForbiddenNameError(f"{module}.{name}")
        return _ADMITTED[module, name]


def load_pickle(path: Path) -> Any:
    """The content of a pickle of arrays and plain containers; strings of Python 2 become text.

    Raises:
        UserError: the file is damaged or cut short, or names something that is not an array or a plain container.
    """
    if not path.is_file():
        raise UserError(f"{path} cannot be read: it is not a file")
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except _ForbiddenNameError as error:
        raise UserError(
            f"{path} wants to run {error}, which no data file needs; it was not run: get the file again from its source"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged pickle may fail in any way
        raise UserError(f"{path} is damaged or cut short ({error}); get the file again") from None


def load_dictionary(path: Path) -> dict[str, Any]:
    """`load_pickle` of a file that must hold a dictionary.

    Raises:
        UserError: see load_pickle; or it holds something else.
    """
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a dictionary, not {type(content).__name__}; get the file again")
    return content
