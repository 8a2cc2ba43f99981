"""Unpickle downloaded data without running what a pickle may carry.

CIFAR and Mini-ImageNet come as pickles. Only numpy arrays and plain containers are let through; a pickle
that names anything else is refused before it is called.
"""

from __future__ import annotations

import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """What Python 3 writes for bytes in an old pickle protocol; no other codec is looked up."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not admitted")
    return text.encode("latin1")


_ARRAY = np.array(0).__reduce__()[0]  # numpy's own function that rebuilds an array
_SCALAR = np.float64(0).__reduce__()[0]
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("_codecs", "encode"): _latin1,
}


class _Forbidden(pickle.UnpicklingError):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None


def load_pickle(path: Path) -> Any:
    """The content of a pickle of arrays and plain containers; strings of Python 2 become text.

    Raises:
        UserError: the file is damaged, cut short, or names something that is not an array or a plain container.
    """
    try:
        with open(path, "rb") as file:
            return _Unpickler(file, encoding="latin1").load()
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
