"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor

PARTIAL = ".partial"


def write_bytes(path: Path, content: bytes) -> None:
    """Write aside, flush to the disk, rename: a reader sees the old file or the new one.

    Raises:
        OSError: the disk is full, read-only...; names `path`, and nothing is left behind.
    """
    with written_whole(path) as file:
        file.buffer.write(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[io.TextIOWrapper]:
    """A new text file that appears when it is complete, and not at all if an exception comes before.

    Raises:
        OSError: see write_bytes.
    """
    aside = path.with_name(path.name + PARTIAL)
    try:
        with open(aside, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """A new folder, or an empty one filled, that appears with all its files or not at all.

    Raises:
        OSError: see write_bytes; or there is something in the folder.
    """
    beside = next(folder for folder in path.parents if folder.is_dir())  # on the same disk, and it exists
    aside = beside / f"{path.name}-{os.getpid()}{PARTIAL}"
    aside.mkdir()
    try:
        for name, content in files.items():
            write_bytes(aside / name, content)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def beside(run: str | Path, suffix: str) -> Path:
    """The directory whose name is that of a run and `suffix`."""
    path = Path(run)
    path = path if path.name not in ("", "..") else path.resolve()
    return path.with_name(path.name + suffix)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Indented JSON; NaN is not JSON, so a value that is undefined must come as None."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def yaml_bytes(content: Mapping[str, Any]) -> bytes:
    """Block-style YAML in the order given."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100).encode()


# YAML 1.1, which PyYAML follows, takes 1e-5 (no dot) for text; people write it for a number.
NUMBER = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")


class _Dumper(yaml.SafeDumper):
    """Puts a text like 1e-5 between quotation marks."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", *NUMBER)


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as comma-separated values. Floats keep all their digits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class GrowingFile:
    """A file that is only ever added to, and the SHA-256 of what it holds.

    Args:
        begun: what an existing file is known to begin with; the rest of it is cut off. None for a new file.
    """

    def __init__(self, path: Path, begun: bytes | None = None) -> None:
        self._file = open(path, "xb" if begun is None else "r+b", buffering=0)  # noqa: SIM115
        self._size = len(begun or b"")
        self._sum = hashlib.sha256(begun or b"")
        self._file.truncate(self._size)
        self._file.seek(self._size)
        self._synced = False

    def write(self, content: bytes) -> None:
        """To the end, at once.

        Raises:
            OSError: the disk is full.
        """
        if self._file.write(content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._file.name))
        self._sum.update(content)
        self._size += len(content)
        self._synced = False

    def sum(self) -> tuple[int, str]:
        """Bytes so far, all on the disk, and their checksum."""
        if not self._synced:
            os.fsync(self._file.fileno())
            self._synced = True
        return self._size, self._sum.hexdigest()

    def close(self) -> None:
        self._file.close()


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """safetensors: opens with an ordinary library, runs no code when read."""
    plain = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    return safetensors.torch.load_file(path)
