"""manifest.json: the files that belong to a run, and their checksums.

It is written last, by one rename, and so commits everything that was written before it.
"""

import contextlib
import hashlib
import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from records.lock import LOCK
from utils.errors import SignalError, TrainingError, UserError, enough_memory
from utils.files import PARTIAL, write_bytes

MANIFEST = "manifest.json"
SUMMARY = "summary.json"
FORMAT = 3  # of a run directory; others are refused
TARGETS = "predictions/targets.safetensors"
NAMES = "predictions/names.json"  # of the examples, such as files
# Reports can be made from the other files at any time: they are not part of a run.
DERIVED = re.compile(rf"(report\.html|figures/[a-z_]+\.(png|svg|csv))({PARTIAL})?")
_NAME = re.compile(r"(?:(?:members|predictions|state|checkpoints)/)?[A-Za-z0-9][A-Za-z0-9_.-]*")
EVENTS = re.compile(r"events\.out\.tfevents\..*")
# Files that are appended to: they may be longer than their committed part.
GROWING = re.compile(rf"metrics\.csv|episodes\.csv|{EVENTS.pattern}")
# How a file can be made again, by the beginning of its name.
_REMEDIES = {
    MANIFEST: "the files it lists cannot be checked without it: run again with --overwrite",
    **dict.fromkeys((TARGETS, NAMES, "predictions/kept_"), "the data give it again"),
    "predictions/": "{member} and the data give it again",
    SUMMARY: "metrics.csv and episodes.csv give all of its figures again",
    "metrics.csv": "predictions/ and the data give it again",
    "events.": "only TensorBoard needs it: remove it, and --resume continues without it",
}


class Entry(NamedTuple):
    """The first `size` bytes of a file, and their SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The progress of a run and its committed files."""

    episode: int = 0  # the last complete one
    members: int = 0  # networks saved by then
    seconds: float = 0.0  # wall time by then, summed over the processes of the run
    files: Mapping[str, Entry] = field(default_factory=dict)
    sha256: str = ""  # of the manifest that was read: no two runs have the same

    @property
    def finished(self) -> bool:
        return SUMMARY in self.files

    def write(self, run: Path) -> None:
        write_bytes(run / MANIFEST, self.content())

    def content(self) -> bytes:
        """The text of the file."""
        content = {"format": FORMAT, "episode": self.episode, "members": self.members, "seconds": self.seconds,
                   "files": {name: list(entry) for name, entry in sorted(self.files.items())}}  # fmt: skip
        content["sha256"] = _own_sum(content)
        return (json.dumps(content, indent=1) + "\n").encode()


def read_manifest(run: Path) -> Manifest | None:
    """The manifest of a run directory; None if there is none, so that no episode is complete."""
    path = run / MANIFEST
    with reading(run, MANIFEST):
        try:
            content = json.loads(_content(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        if content.get("format") != FORMAT:
            raise UserError(
                f"{path} is of a run of format {content.get('format', 1)!s:.20}; this version reads format {FORMAT} "
                "only: make the run again, with --overwrite"
            )
        if (own := content.pop("sha256")) != _own_sum(content):
            raise ValueError("its checksum is wrong")
        # TensorBoard files may be deleted to save room, which changes nothing else.
        files = {name: Entry(int(size), checksum) for name, (size, checksum) in content["files"].items()
                 if not EVENTS.match(name) or (run / name).exists()}  # fmt: skip
        if outside := [name for name in files if not _NAME.fullmatch(name)]:
            raise ValueError(f"{outside[0]!r} is no file of a run")
        return Manifest(content["episode"], content["members"], content["seconds"], files, own)


def checked(run: Path, manifest: Manifest, name: str) -> bytes:
    """The committed content of a file of the run; UserError if it is missing or its checksum is wrong."""
    path, entry = run / name, manifest.files.get(name)
    if entry is None:
        raise UserError(f"{path} is not in {MANIFEST}: it does not belong to the run")
    grows = GROWING.fullmatch(name) and not manifest.finished
    with reading(run, name):
        content = _content(path, entry.size if grows else -1)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise ValueError("its checksum is wrong")
    return content


def _content(path: Path, size: int = -1) -> bytes:
    if not stat.S_ISREG(path.lstat().st_mode):  # a link would lead outside the run, a device may have no end
        raise ValueError("it is no ordinary file")
    with open(path, "rb") as file:
        return file.read(size)


@contextlib.contextmanager
def reading(run: Path, name: str) -> Iterator[None]:
    """Turn what goes wrong in reading a file into one line; only wrong content that was read is called damage."""
    try:
        with enough_memory(f"reading {run / name}", "the file may be well; try again when more is free"):
            yield
    except (UserError, TrainingError, SignalError):
        raise
    except FileNotFoundError:
        raise UserError(f"{run / name} is missing; {_remedy(name)}") from None
    except (OSError, ImportError) as error:  # a lazy import fails too when too many files are open
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{run / name} cannot be read ({reason}); try again when it can") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{run / name} is damaged ({reason}); {_remedy(name)}") from None


def _remedy(name: str) -> str:
    found = (remedy for start, remedy in _REMEDIES.items() if name.startswith(start))
    remedy = next(found, "only the run, repeated with --overwrite, gives it again")
    return remedy.format(member=name.replace("predictions/", "members/"))


def verify(run: Path) -> tuple[list[str], list[str]]:
    """One line for each damaged file of a run, and the names of files that are not part of the run."""
    manifest = read_manifest(run)
    if manifest is None:
        raise UserError(f"{run} has no {MANIFEST}: it is no run, or one in which nothing is complete yet")
    wrong = [line for name in manifest.files if (line := _damage(run, manifest, name))]
    if wrong and read_manifest(run) != manifest:
        return verify(run)  # a process is writing to the run, and has committed something meanwhile
    found = [path.relative_to(run).as_posix() for path in sorted(run.rglob("*")) if not path.is_dir()]
    known = {*manifest.files, MANIFEST, LOCK}
    return wrong, [name for name in found if name not in known and not DERIVED.fullmatch(name)]


def _damage(run: Path, manifest: Manifest, name: str) -> str:
    try:
        checked(run, manifest, name)
    except UserError as error:
        return str(error)
    return ""


def _own_sum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
