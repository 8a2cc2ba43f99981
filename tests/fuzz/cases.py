"""A case of the fuzzer: a command, the files that it finds, and what came of it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CANARY = "canary"


@dataclass(frozen=True)
class Link:
    """A symbolic link in place of a file."""

    target: str


@dataclass(frozen=True)
class Folder:
    """A folder in place of a file."""


Files = dict[Any, Any]  # path, text or bytes, in the folder of the case -> bytes, Link or Folder


@dataclass
class Case:
    """A command and the files that it finds."""

    kind: str
    seed: int
    arguments: list[str]
    files: Files
    program: str = "modelzoo"
    told: str = ""  # what was changed
    writes: tuple[str, ...] | None = None  # what may be written; None: the run


@dataclass(frozen=True)
class Answer:
    """What came of a case."""

    kind: str
    seed: int
    code: int | str  # "accepted" if it was training
    wrong: str  # "" if nothing is
    seconds: float = 0.0
    bytes: int = 0
    line: str = ""  # stderr


def write(files: Files) -> None:
    """Into the current folder."""
    for name, content in files.items():
        path = Path(os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Folder):
            path.mkdir(exist_ok=True)
        elif isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content)
