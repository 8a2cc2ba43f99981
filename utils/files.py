"""Write files so that they appear whole or not at all, in JSON, YAML, CSV and safetensors."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import yaml

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_A = TypeVar("_A")
_B = TypeVar("_B")
AT_ONCE = 16  # threads that wait for the disk
PARTIAL = r"\.[0-9a-f]{16}\.partial"  # ends the name of a temporary file, as a regular expression


def write_bytes(path: Path, content: bytes) -> None:
    """Write a temporary file, flush it to the disk and rename it: a reader sees the old file or the new one.

    The temporary file is of this call alone, so that no link is followed and two writers do not meet.
    """
    with written_whole(path) as file:
        file.write(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to; it appears when the block ends, and not at all after an exception. OSError names `path`."""
    aside = _aside(path)
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise


def side_by_side(write: Callable[[_A], _B], items: Iterable[_A]) -> list[_B]:
    """What `write` returns for each item, of several at once: flushes that wait for the disk together cost one.

    The first exception is raised when those under way have ended.
    """
    found = list(items)
    if min(len(found), AT_ONCE) <= 1:
        return list(map(write, found))
    with ThreadPoolExecutor(min(len(found), AT_ONCE)) as pool:
        return list(pool.map(write, found))


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder that appears with all its files or not at all; OSError if it exists and is not empty.

    A file may lie in a folder below: its name has a / then.
    """
    parent = next(folder for folder in path.parents if folder.is_dir())  # on the same disk, and it exists
    aside = _aside(parent / path.name)
    aside.mkdir()
    try:
        for name, content in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(aside / name, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")


def check_own(folder: Path) -> None:
    """UserError if a folder to write in is a link: it would lead to files of somebody else."""
    if folder.is_symlink():
        raise UserError(f"{folder} is a link; a run keeps its files in its own directory")


def beside(run: str | Path, suffix: str) -> Path:
    """The path next to a run directory whose name is that of the run plus `suffix`."""
    path = Path(run)
    path = path if path.name not in ("", "..") else path.resolve()
    return path.with_name(path.name + suffix)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Indented JSON; undefined values must be None, as JSON has no NaN."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def yaml_bytes(content: Mapping[str, Any]) -> bytes:
    """Block-style YAML with the keys in their order."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100).encode()


# YAML 1.1, which PyYAML follows, reads 1e-5 (no dot) as text, but people mean the number.
NUMBER = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]  # six times as fast where it exists
    """Quotes a text that looks like a number, such as 1e-5."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", *NUMBER)


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Comma-separated values; a text that a spreadsheet would run gets a ' before it, which `from_cell` takes away."""
    lines = list[str]()
    # A carriage return in a field is quoted only if it may end a line.
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n").writerows(map(_cell, row) for row in rows)
    return "".join(line[:-2] + "\n" for line in lines).encode()


_FORMULA = re.compile(r"'*([=@\t\r]|[+-](?![\d.]+(e[-+]?\d+)?$))", re.ASCII)  # -0.5 is a number


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def from_cell(text: str) -> str:
    """The text that `csv_bytes` has written as this one."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


class GrowingFile:
    """A file that is only appended to, after the bytes `begun` that it has (None creates it), with its SHA-256."""

    def __init__(self, path: Path, begun: bytes | None = None) -> None:
        self._file = open(path, "xb" if begun is None else "r+b", buffering=0)  # noqa: SIM115
        self._size = len(begun or b"")
        self._sum = hashlib.sha256(begun or b"")
        self._file.truncate(self._size)
        self._file.seek(self._size)

    def write(self, content: bytes) -> None:
        """Append; OSError if the disk is full."""
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file.name))
        self._sum.update(content)
        self._size += len(content)

    def sum(self) -> tuple[int, str]:
        """Flush to the disk; size in bytes and checksum."""
        os.fsync(self._file.fileno())
        return self._size, self._sum.hexdigest()

    def close(self) -> None:
        self._file.close()


def tensor_bytes(tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file: any library opens it, and reading it runs no code."""
    import safetensors.torch  # loads torch, which takes seconds: programs that read no tensors do without

    plain, places = dict[str, "Tensor"](), set[int]()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        plain[name] = own.clone() if place in places else own  # the format has no tensors that share memory
        places.add(place)
    return safetensors.torch.save(plain, metadata)


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """All tensors of a safetensors file, on the CPU."""
    import safetensors.torch

    return safetensors.torch.load_file(path)
