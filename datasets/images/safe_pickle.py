"""Unpickle downloaded data without running what a pickle may carry.

CIFAR and Mini-ImageNet come as pickles. Only arrays of plain values and plain containers are let through; a
pickle that names anything else is refused before it is called. Arrays are put together here, from checked
parts: numpy's own functions trust what they are given, and one wrong byte makes them crash or read foreign memory.
"""

from __future__ import annotations

import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import UserError


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What Python 3 writes for bytes in an old pickle protocol; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        what = repr(encoding) if isinstance(encoding, str) else type(encoding).__name__
        raise pickle.UnpicklingError(f"the codec {what} is not admitted")
    return text.encode("latin1")


def _bytes(raw: Any) -> Any:
    """Raw values of an array; a string of Python 2 has come as text."""
    return raw.encode("latin1") if isinstance(raw, str) else memoryview(raw).cast("B")


def _no_bytes() -> bytes:
    """What Python 3 writes for empty bytes in an old pickle protocol; a size is not accepted."""
    return b""


class _Kind:
    """Stands for numpy.dtype: numbers and texts of fixed width, no objects and no records."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufcSU][0-9]{1,5}", code):
            what = repr(code) if isinstance(code, str) else type(code).__name__
            raise pickle.UnpicklingError(f"arrays of {what} are not admitted")
        self._code, self._order = code, "|"

    def __setstate__(self, state: Any) -> None:
        _, order, subarray, names, fields, *_ = state
        if order not in ("|", "<", ">", "=") or (subarray, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("records are not admitted")
        self._order = order

    def values(self, raw: Any) -> np.ndarray:
        return np.frombuffer(_bytes(raw), np.dtype(self._order + self._code))


class _Array(np.ndarray):
    """An array in the making: empty, until its state comes."""

    def __new__(cls, *_: object) -> _Array:
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        checked = _shaped(kind, raw, shape, "F" if fortran else "C")
        super().__setstate__((1, checked.shape, checked.dtype, bool(fortran), raw))  # type: ignore[arg-type]


def _shaped(kind: Any, raw: Any, shape: Any, order: Any) -> np.ndarray:
    """numpy._core.numeric._frombuffer without its first argument's freedom: `raw` is bytes, `shape` sizes."""
    if not isinstance(kind, _Kind) or not all(isinstance(side, int) and side >= 0 for side in shape):
        raise pickle.UnpicklingError("the description of an array is damaged")
    return kind.values(raw).reshape(shape, order=order)


def _frombuffer(raw: Any, kind: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    if axis_order is not None:
        raise pickle.UnpicklingError("the description of an array is damaged")
    return _shaped(kind, raw, shape, order)


def _scalar(kind: Any, raw: Any) -> Any:
    if len(raw) > 1000:  # each is a copy, and the same bytes can be named again and again
        raise pickle.UnpicklingError("the description of a number is damaged")
    return _shaped(kind, raw, (), "C")[()]


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _latin1,
    ("__builtin__", "bytes"): _no_bytes,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _frombuffer),
        )
    },
}


class _Forbidden(pickle.UnpicklingError):
    pass


class _Unpickler(pickle._Unpickler):  # in Python: in C, four bytes of a damaged file can ask for 64 GB
    """What it makes is limited as well: one byte is enough for a new container, four for a second copy of all bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file, encoding="latin1")
        self._operations, self._copied, self._size = 0, 0, size

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None

    def _encode(self, text: str, encoding: str = "latin1") -> bytes:
        self._copied += len(text)
        if self._copied > self._size:
            raise pickle.UnpicklingError("the same bytes are copied again and again")
        return _latin1(text, encoding)

    def count(self, code: int) -> None:
        """Before every operation."""
        self._operations += 1
        if self._operations > _MOST_OPERATIONS:
            raise pickle.UnpicklingError("it has too many parts")
        keys = self.stack[-2:-1] if code == pickle.SETITEM[0] else self.stack  # type: ignore[attr-defined]
        if code in (pickle.SETITEMS[0], pickle.DICT[0]):
            keys = keys[::2]
        # Tuples in tuples in tuples: it would take for ever to compare or hash them.
        if code in _HASHING and not all(key is None or isinstance(key, (str, bytes, int, float)) for key in keys):
            raise pickle.UnpicklingError("only texts and numbers are admitted as keys")


def _counted(code: int, load: Callable[[Any], None]) -> Callable[[Any], None]:
    def counted(unpickler: Any) -> None:
        unpickler.count(code)
        load(unpickler)

    return counted


_MOST_OPERATIONS = 2_000_000  # CIFAR-100 takes 300,000
_HASHING = {op[0] for op in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT, pickle.ADDITEMS, pickle.FROZENSET)}
_Unpickler.dispatch = {code: _counted(code, load) for code, load in pickle._Unpickler.dispatch.items()}


def load_pickle(path: Path) -> Any:
    """The content of a pickle of arrays and plain containers; strings of Python 2 become text.

    Raises:
        UserError: the file is damaged, cut short, or names something that is not an array or a plain container.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} cannot be read: it is not a file")
        with open(path, "rb") as file:
            return _Unpickler(file, path.stat().st_size).load()
    except _Forbidden as error:
        raise UserError(
            f"{path} wants to run {error}, which no data file needs; it was not run: get the file again from its source"
        ) from None
    except (
        pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError, ValueError,
        OverflowError, MemoryError, RecursionError, struct.error, zlib.error,
    ) as error:  # fmt: skip
        raise UserError(f"{path} is damaged or cut short ({error}); get the file again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
