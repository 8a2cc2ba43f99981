"""manifest.json: which files belong to a run, and their checksums. What it does not name is not part of the run.

It is written last, by one rename, and so commits everything that was written before it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from records.lock import LOCK
from utils.errors import UserError
from utils.files import write_bytes

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
FORMAT = 2  # of a run directory; runs of others are refused
TARGETS = "predictions/targets.safetensors"
# Made from the other files (report.py), at any time: not part of a run.
DERIVED = re.compile(r"report\.html|figures/[a-z_]+\.(png|svg|csv)")
_NAME = re.compile(r"(?:(?:members|predictions|state)/)?[A-Za-z0-9][A-Za-z0-9_.-]*")
# Grow while a run goes on: may be longer than what was committed.
EVENTS = re.compile(r"events\.out\.tfevents\..*")
GROWING = re.compile(r"metrics\.csv|episodes\.csv|events\.out\.tfevents\..*")


class Entry(NamedTuple):
    """The first `size` bytes of a file, and their SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """How far a run has come, and the files that say so."""

    episode: int = 0  # the last one that is complete
    members: int = 0  # networks saved until then
    seconds: float = 0.0  # of all processes of the run until then
    files: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return "summary.json" in self.files

    def write(self, run: Path) -> None:
        """Commit."""
        write_bytes(run / MANIFEST, self.content())

    def content(self) -> bytes:
        """The text of the file."""
        content = {"format": FORMAT, "episode": self.episode, "members": self.members, "seconds": self.seconds,
                   "files": {name: list(entry) for name, entry in sorted(self.files.items())}}  # fmt: skip
        content["sha256"] = _own_sum(content)
        return (json.dumps(content, indent=1) + "\n").encode()


def read_manifest(run: Path) -> Manifest | None:
    """The manifest of a run directory; None if there is none, so that nothing of a run is complete.

    Raises:
        UserError: it is damaged, or was not written by this program.
    """
    path = run / MANIFEST
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > 1 << 28:
            raise ValueError("it is too large, or no ordinary file")
        content = json.loads(path.read_bytes())
        if content.get("format") != FORMAT:
            raise UserError(
                f"{path} is of a run of format {content.get('format', 1)!s:.20}; this version reads format {FORMAT} "
                "only: make the run again, with --overwrite"
            )
        stated = content.pop("sha256")
        if stated != _own_sum(content):
            raise ValueError("its checksum is wrong")
        files = {str(name): Entry(*entry) for name, entry in content["files"].items()}
        for name, entry in files.items():
            if not _NAME.fullmatch(name) or not isinstance(entry.size, int) or not isinstance(entry.sha256, str):
                raise ValueError(f"{name!r} is no file of a run")
        numbers = [content["episode"], content["members"], content["seconds"]]
        whole = all(type(number) is int and 0 <= number < 1 << 32 for number in numbers[:2])
        if not whole or not isinstance(numbers[2], (int, float)) or not 0 <= numbers[2] < math.inf:
            raise ValueError("it does not say how far the run has come")
        return Manifest(numbers[0], numbers[1], float(numbers[2]), files)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise UserError(
            f"{path} is damaged ({error}); the files it lists cannot be checked without it: run again with --overwrite"
        ) from None


def checked(run: Path, manifest: Manifest, name: str) -> bytes:
    """What was committed of a file of the run.

    Raises:
        UserError: it is not what was written; says what can be done.
    """
    path, entry = run / name, manifest.files.get(name)
    if entry is None:
        raise UserError(f"{path} is not in {MANIFEST}: it does not belong to the run")
    try:
        status = path.lstat()
        size, exact = status.st_size, manifest.finished or not GROWING.fullmatch(name)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no ordinary file")
        if size < entry.size or (exact and size > entry.size):
            raise ValueError(f"has {size:,} bytes instead of {entry.size:,}")
        with open(path, "rb") as file:
            content = file.read(entry.size)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy(name)}") from None
    except (OSError, ValueError) as error:
        raise damaged(run, name, getattr(error, "strerror", None) or error) from None
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise damaged(run, name, "its checksum is wrong")
    return content


def damaged(run: Path, name: str, reason: object) -> UserError:
    """The error for a file of a run that holds something else than what belongs there."""
    return UserError(f"{run / name} is damaged ({' '.join(str(reason).split())[:200]}); {remedy(name)}")


def is_removed_log(run: Path, name: str) -> bool:
    """Whether it is what TensorBoard shows, and was removed to save room, which changes nothing else."""
    return bool(EVENTS.match(name)) and not (run / name).exists()


def remedy(name: str) -> str:
    """From what a file of a run can be made again."""
    if name == TARGETS:
        return "the data give it again"
    if name.startswith("predictions/"):
        return f"members/{name.removeprefix('predictions/')} and the data give it again"
    if name.startswith("state/"):
        return "only the run, repeated with --overwrite, gives it again"
    if name == "summary.json":
        return "metrics.csv and episodes.csv give all of its figures again"
    if EVENTS.match(name):
        return "TensorBoard shows it, nothing else needs it: --resume goes on without it if it is removed"
    if name == "metrics.csv":
        return "predictions/ and the data give it again"
    return "only the run, repeated with --overwrite, gives it again"


def verify(run: Path) -> tuple[list[str], list[str]]:
    """What is wrong with the files of a run, a line each; and what lies there without being part of it.

    Raises:
        UserError: there is no run, or its manifest is damaged.
    """
    manifest = read_manifest(run)
    if manifest is None:
        raise UserError(f"{run} has no {MANIFEST}: it is no run, or one in which nothing is complete yet")
    wrong = [line for name in manifest.files if (line := _damage(run, manifest, name))]
    if wrong and read_manifest(run) != manifest:
        return verify(run)  # the run is going on, and has committed something meanwhile
    found = [path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if not path.is_dir()]
    return wrong, [
        name for name in found if name not in (*manifest.files, MANIFEST, LOCK) and not DERIVED.fullmatch(name)
    ]


def _damage(run: Path, manifest: Manifest, name: str) -> str:
    try:
        checked(run, manifest, name)
    except UserError as error:
        return str(error)
    return ""


def _own_sum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
