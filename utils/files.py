"""Files that appear whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import Tensor


def write_bytes(path: Path, content: bytes) -> None:
    """Write aside, flush to the disk, rename: a reader sees the old file or the new one."""
    aside = path.with_name(path.name + ".partial")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented JSON; NaN is not JSON, so a value that is undefined must come as None."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Block-style YAML in the order given."""
    write_bytes(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100).encode())


class CsvText:
    """A growing table as comma-separated values: a row becomes text once. Floats keep all their digits."""

    def __init__(self, header: Sequence[str]) -> None:
        self._text = io.StringIO()
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(header)

    def add(self, rows: Iterable[Sequence[object]]) -> bytes:
        """The whole table, these rows at its end."""
        self._writer.writerows(rows)
        return self._text.getvalue().encode()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """safetensors: opens with an ordinary library, runs no code when read."""
    plain = {name: tensor.detach().to("cpu", copy=False).contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(plain))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU."""
    return safetensors.torch.load_file(path)
