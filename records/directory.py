"""RunDirectory: writes the files of a run, and commits them together.

The files of an episode are written first and the manifest last: until then the run is what it was before. Files that
the manifest does not name belong to an interrupted commit, and are removed when the run is resumed. Tables are appended
to; the manifest says how long their committed part is, and a resumed run cuts off the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from evaluation.measurements import Measurement
from records.lock import LOCK
from records.manifest import (
    DERIVED,
    GROWING,
    MANIFEST,
    SUMMARY,
    TARGETS,
    Entry,
    Manifest,
    checked,
    damaged,
    read_manifest,
)  # fmt: skip
from records.members import SavedMember, facts_file, predictions_file, weights_file
from records.monitor import EpisodeFacts
from records.tables import EPISODES, METRICS, episode_line, header, metric_lines, read_measurements
from utils.errors import UserError
from utils.files import PARTIAL, GrowingFile, json_bytes, tensor_bytes, write_bytes, yaml_bytes
from utils.yaml_files import load_yaml, parse_yaml

CONFIG = "config.yaml"
_FOLDERS = ("members", "predictions", "state")
_TRAINING = "training-"  # opens the names of files in state/ that belong to an episode under way
_OWN = re.compile(
    rf"(config\.yaml|(manifest|summary|certificate)\.json|{re.escape(TARGETS)}|{GROWING.pattern}"
    r"|(members|predictions)/member_\d{3,}\.(safetensors|json)|state/[A-Za-z0-9_-]+\.safetensors)"
)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it exists
_HASH = 16  # digits of the checksum in the name of a file in state/, so that the old and the new file can coexist


class RunDirectory:
    """config.yaml, episodes.csv, metrics.csv, summary.json, members/, predictions/, state/, manifest.json.

    Attributes:
        manifest: the committed one.
        rows, episodes: all measurements and episodes so far.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._files = dict(manifest.files)
        self._logs: dict[str, GrowingFile] = {}
        self.rows, self.episodes = read_measurements(path, manifest)

    @classmethod
    def begin(cls, path: Path, config: Mapping[str, Any]) -> RunDirectory:
        """An empty run, in place of one that is already there (see check_free). Other files in the folder stay.

        Raises:
            UserError: the folder cannot be written.
        """
        with _written(path):
            # The order matters if the process is killed: without a manifest, what is left is never taken for a run,
            # and with the new config.yaml in place a resumed run cannot use the old options.
            for name in (MANIFEST, SUMMARY):
                (path / name).unlink(missing_ok=True)
            write_bytes(path / CONFIG, yaml_bytes(config))
            _clear(path)
            return cls._opened(path)

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """The run as it was last committed; the files of an interrupted commit are removed."""
        manifest = read_manifest(path)
        if manifest is None:
            return cls._begin_again(path)
        for name in manifest.files:
            checked(path, manifest, name)
        for folder in _FOLDERS:
            if (path / folder).is_symlink():
                raise UserError(f"{path / folder} is a link; a run keeps its files in its own directory")
        with _written(path):
            folders = ["state"] if manifest.finished else ["", *_FOLDERS]
            found = [entry for folder in folders for entry in (path / folder).glob("*") if not entry.is_dir()]
            kept = {path / name for name in (*manifest.files, MANIFEST)}
            _remove(entry for entry in found if entry not in kept and _ours(path, entry))
            for name, entry in manifest.files.items():
                if GROWING.fullmatch(name) and (path / name).stat().st_size > entry.size:
                    os.truncate(path / name, entry.size)
            for folder in _FOLDERS:
                (path / folder).mkdir(exist_ok=True)
            return cls(path, manifest)

    @classmethod
    def _begin_again(cls, path: Path) -> RunDirectory:
        """A run that was killed before its first commit: it has a complete config.yaml and nothing else."""
        with _written(path):
            for folder in ("", *_FOLDERS):
                for entry in (path / folder).glob("*"):
                    if entry.name not in (CONFIG, LOCK, *_FOLDERS) and not entry.name.endswith(PARTIAL):
                        raise UserError(
                            f"{path / MANIFEST} is missing; without it {entry} and other files cannot be checked: "
                            "run again with --overwrite"
                        )
            _remove(entry for entry in list(path.iterdir()) if entry.name not in (CONFIG, LOCK))
            return cls._opened(path)

    @classmethod
    def _opened(cls, path: Path) -> RunDirectory:
        for folder in _FOLDERS:
            (path / folder).mkdir(exist_ok=True)
        manifest = Manifest(files={CONFIG: _entry((path / CONFIG).read_bytes())})
        manifest.write(path)
        return cls(path, manifest)

    def log(self, name: str) -> GrowingFile:
        """A new file of the run that is appended to."""
        self._logs[name] = GrowingFile(self.path / name)
        return self._logs[name]

    def add_member(
        self, facts: SavedMember, weights: Mapping[str, Tensor], predictions: Mapping[tuple[int, str], Tensor]
    ) -> None:
        """Save a network: its description, its tensors, and its predictions [N, C] by task and split."""
        self._write(weights_file(facts.number), tensor_bytes(weights))
        self._write(facts_file(facts.number), json_bytes(facts.to_json()))
        self._write(predictions_file(facts.number), tensor_bytes(by_name(predictions, torch.float32)))

    def add_targets(self, targets: Mapping[tuple[int, str], Tensor]) -> None:
        """Save targets, [N, ...], by task and split."""
        self._write(TARGETS, tensor_bytes(by_name(targets)))

    def add_document(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run."""
        self._write(name, json_bytes(content))

    def add_episode(self, facts: EpisodeFacts, rows: Iterable[Measurement]) -> None:
        """Append to episodes.csv and metrics.csv."""
        new = list(rows)
        self.rows += new
        self.episodes.append(facts)
        self._table(EPISODES).write(episode_line(facts))
        self._table(METRICS).write(metric_lines(new))

    def _table(self, name: str) -> GrowingFile:
        """A table to append to; whatever follows its committed part is cut off when it is opened."""
        if name not in self._logs:
            begun = self._committed(name) if name in self.manifest.files else None
            self._logs[name] = GrowingFile(self.path / name, begun)
            if begun is None:
                self._logs[name].write(header(name))
        return self._logs[name]

    def commit(self, episode: int, members: int, seconds: float, state: Mapping[str, bytes | None]) -> None:
        """Commit a complete episode with all files written so far.

        Args:
            members: number of networks saved so far.
            seconds: wall time of the run so far.
            state: part -> state to resume from; None for parts that have not changed.
        """
        self._replace_state({f"state/{part}-": content for part, content in state.items()}, lambda name: True)
        self._commit(episode, members, seconds)

    def keep_training(self, seconds: float, parts: Mapping[str, bytes]) -> None:
        """Save training that is under way, by name of the network, until the episode is committed."""
        self._replace_state(
            {f"state/{_TRAINING}{part}-": content for part, content in parts.items()},
            lambda name: any(name.startswith(f"state/{_TRAINING}{part}-") for part in parts),
        )
        self._commit(self.manifest.episode, self.manifest.members, seconds)

    def finish(self, summary: Mapping[str, Any], unneeded: str) -> None:
        """Write summary.json, and so finish the run; removes the parts of the state that begin with `unneeded`."""
        self._write(SUMMARY, json_bytes(summary))
        self._replace_state({}, lambda name: name.startswith(f"state/{unneeded}"))
        self._commit(self.manifest.episode, self.manifest.members, summary["total_seconds"])
        with contextlib.suppress(OSError):  # it is not empty
            (self.path / "state").rmdir()

    def adopting(self, other: Path, targets: Mapping[tuple[int, str], Tensor]) -> RunDirectory:
        """Copy the episodes, members, predictions and state of a finished run to extend it; `targets`: of all tasks."""
        manifest = read_manifest(other)
        assert manifest is not None
        for name in manifest.files:
            if name not in (CONFIG, TARGETS, SUMMARY):
                self._write(name, checked(other, manifest, name))
        self.add_targets(targets)
        self._commit(manifest.episode, manifest.members, manifest.seconds)
        return RunDirectory(self.path, self.manifest)

    def state(self) -> dict[str, bytes]:
        """The state of the last `commit`."""
        return {_part(name): self._committed(name) for name in self._files
                if name.startswith("state/") and not name.startswith(f"state/{_TRAINING}")}  # fmt: skip

    def training(self, part: str) -> bytes | None:
        """The state that `keep_training` has saved for a network since the last commit."""
        names = [name for name in self._files if name.startswith(f"state/{_TRAINING}{part}-")]
        return self._committed(names[0]) if names else None

    def close(self) -> None:
        """Close the files that are appended to."""
        for log in self._logs.values():
            log.close()

    def _write(self, name: str, content: bytes) -> None:
        write_bytes(self.path / name, content)
        self._files[name] = _entry(content)

    def _replace_state(self, parts: Mapping[str, bytes | None], replaced: Callable[[str], bool]) -> None:
        old = {name for name in self._files if name.startswith("state/") and replaced(name)}
        for prefix, content in parts.items():
            if content is None:
                old -= {name for name in old if name.startswith(prefix)}
                continue
            entry = _entry(content)
            name = f"{prefix}{entry.sha256[:_HASH]}.safetensors"
            if self._files.get(name) != entry:
                self._write(name, content)
            old.discard(name)
        for name in old:
            del self._files[name]

    def _commit(self, episode: int, members: int, seconds: float) -> None:
        self._files.update({name: Entry(*log.sum()) for name, log in self._logs.items()})
        before, self.manifest = self.manifest, Manifest(episode, members, seconds, dict(self._files))
        self.manifest.write(self.path)
        for name in before.files.keys() - self._files.keys():
            with contextlib.suppress(OSError):
                (self.path / name).unlink()

    def _committed(self, name: str) -> bytes:
        return checked(self.path, self.manifest, name)


def holds_run(path: Path) -> bool:
    """Whether there is a run, finished or not."""
    try:
        return (path / CONFIG).is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"--run_dir {path} cannot be used: {error}") from None


def read_config(path: Path) -> dict[str, Any]:
    """The content of config.yaml of a run."""
    manifest = read_manifest(path)
    if manifest is None:
        return load_yaml(str(path / CONFIG))
    try:
        return parse_yaml(str(path / CONFIG), checked(path, manifest, CONFIG).decode(), _LOADER)
    except UnicodeDecodeError as error:
        raise damaged(path, CONFIG, error) from None


def check_free(path: Path, overwrite: bool, reads: Sequence[Path] = ()) -> None:
    """Check that a run may be put at `path`; to be called before anything is loaded or written.

    Args:
        reads: runs that are read, and so cannot be replaced.

    Raises:
        UserError: a run is there and `overwrite` is not set, or it is one of `reads`; or something else is there.
    """
    try:
        if os.path.realpath(path) in map(os.path.realpath, reads):
            raise UserError(f"--run_dir {path} is a run that is read here; name another directory")
        begun = {LOCK, CONFIG + PARTIAL}  # all that there is of a run that was killed before it had written config.yaml
        if not path.exists() or (path.is_dir() and begun.issuperset(entry.name for entry in path.iterdir())):
            return
    except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
        raise UserError(f"--run_dir {path} cannot be used: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_dir():
        raise UserError(f"--run_dir {path} is a file; name a directory")
    if not _is_run(path):
        raise UserError(f"--run_dir {path} is not empty and not a run; name another directory")
    if not overwrite:
        resume = "" if reads else "resume it with --resume, "
        raise UserError(
            f"--run_dir {path} already holds a run; {resume}replace it with --overwrite, or name another directory"
        )


def _is_run(path: Path) -> bool:
    """Whether config.yaml is one of this program; many programs have one, and --overwrite removes files."""
    try:
        with open(path / CONFIG, "rb") as file:
            lines = file.read(1 << 24).splitlines()
    except OSError:
        return False
    keys = {line.partition(b":")[0] for line in lines}
    return len(keys & {b"stream", b"data", b"hp", b"method", b"seed"}) >= 3  # it may be damaged


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--run_dir {path} cannot be written: {error.strerror or error}") from None


def _ours(path: Path, entry: Path) -> bool:
    """Whether a file has the name of a file of a run; all others belong to somebody else."""
    return bool(_OWN.fullmatch(entry.relative_to(path).as_posix().removesuffix(PARTIAL)))


def _clear(path: Path) -> None:
    """Remove a run and its report, except for config.yaml, the lock, and files that belong to somebody else."""

    def removed(entry: Path) -> bool:
        derived = DERIVED.fullmatch(entry.relative_to(path).as_posix())
        return entry.name != CONFIG and bool(derived or _ours(path, entry))

    for folder in (path / name for name in (*_FOLDERS, "figures")):
        if folder.is_dir() and not folder.is_symlink():
            _remove(filter(removed, list(folder.iterdir())))
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        elif folder.name in _FOLDERS:
            folder.unlink(missing_ok=True)
    _remove(filter(removed, list(path.iterdir())))


def _remove(entries: Iterable[Path]) -> None:
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _entry(content: bytes) -> Entry:
    return Entry(len(content), hashlib.sha256(content).hexdigest())


def by_name(tensors: Mapping[tuple[int, str], Tensor], kind: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a file in predictions/, named task_<id>/<split>."""
    return {f"task_{task}/{split}": tensor.to(kind or tensor.dtype, copy=True)
            for (task, split), tensor in tensors.items()}  # fmt: skip


def _part(name: str) -> str:
    return name.removeprefix("state/").removesuffix(".safetensors")[: -_HASH - 1]
