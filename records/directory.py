"""The files of a run: facts, written as they happen, and committed together.

An episode's files are written first and the manifest last: until then the run is what it was before. What
the manifest does not name is half-done, and is removed when the run is resumed. Tables are appended to; of these the
manifest names how much belongs to the run, and the rest is cut off.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
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
    TARGETS,
    Entry,
    Manifest,
    checked,
    damaged,
    is_removed_log,
    read_manifest,
)
from records.members import SavedMember, facts_file, predictions_file, weights_file
from records.monitor import EpisodeFacts
from records.tables import EPISODES, METRICS, episode_line, header, metric_lines, read_measurements
from utils.errors import UserError
from utils.files import PARTIAL, GrowingFile, json_bytes, tensor_bytes, write_bytes, yaml_bytes
from utils.yaml_files import load_yaml, parse_yaml

CONFIG = "config.yaml"
_FOLDERS = ("members", "predictions", "state")
_TRAINING = "training-"  # in state/: training under way; other files there belong to the last complete episode
_OWN = re.compile(
    r"config\.yaml|manifest\.json|summary\.json|certificate\.json|(members|predictions)/member_\d{3,}\.(safetensors|json)"
    rf"|{re.escape(TARGETS)}"
    r"|state/[A-Za-z0-9_-]+\.safetensors"
)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first is ten times as fast
_HASH = 16  # of its checksum in the name of a file in state/, so that the old and the new one can lie side by side


class RunDirectory:
    """config.yaml, episodes.csv, metrics.csv, summary.json, members/, predictions/, state/, manifest.json.

    Attributes:
        manifest: what is committed.
        rows, episodes: all measurements and episodes so far.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._files = dict(manifest.files)
        self._logs: dict[str, GrowingFile] = {}
        self.rows, self.episodes = read_measurements(path, manifest)

    @classmethod
    def begin(cls, path: Path, config: Mapping[str, Any]) -> RunDirectory:
        """An empty run in place of the one that was there (see check_free); the folder is locked and stays so.
        Files that people have put beside a run stay.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            # First what makes it a run, so that one that is half removed is never taken for one; with the new
            # config.yaml before the rest goes, the old options are never gone on with.
            for name in (MANIFEST, "summary.json"):
                (path / name).unlink(missing_ok=True)
            write_bytes(path / CONFIG, yaml_bytes(config))
            _clear(path)
            return cls._opened(path, {CONFIG: _entry(yaml_bytes(config))})
        except OSError as error:
            raise UserError(f"--run_dir {path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def reopen(cls, path: Path) -> RunDirectory:
        """The run as it was last committed; what was half-done is removed. The folder is locked.

        Raises:
            UserError: a file is missing or damaged: names it, and what can be done.
        """
        manifest = read_manifest(path)
        if manifest is None:
            return cls._begin_again(path)
        # What TensorBoard shows can be removed to save room.
        gone = {name for name in manifest.files if is_removed_log(path, name)}
        manifest = replace(manifest, files={name: e for name, e in manifest.files.items() if name not in gone})
        for name in manifest.files:
            checked(path, manifest, name)
        for folder in _FOLDERS:
            if (path / folder).is_symlink():
                raise UserError(f"{path / folder} is a link; a run keeps its files in its own directory")
        try:
            folders = [path / "state"] if manifest.finished else [path, *(path / name for name in _FOLDERS)]
            leftovers = [entry for folder in folders for entry in folder.glob("*")
                         if not entry.is_dir() and _ours(path, entry)
                         and entry.relative_to(path).as_posix() not in (*manifest.files, MANIFEST)]  # fmt: skip
            _remove(leftovers)
            for name, entry in manifest.files.items():
                if GROWING.fullmatch(name) and (path / name).stat().st_size > entry.size:
                    os.truncate(path / name, entry.size)
            for folder in _FOLDERS:
                (path / folder).mkdir(exist_ok=True)
            return cls(path, manifest)
        except OSError as error:
            raise UserError(f"--run_dir {path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def _begin_again(cls, path: Path) -> RunDirectory:
        """A run that was killed before it had begun: there is a config.yaml, which is whole, and nothing else."""
        try:
            more = [entry for folder in (path, *(path / name for name in _FOLDERS)) for entry in folder.glob("*")
                    if entry.name not in (CONFIG, LOCK, *_FOLDERS) and not entry.name.endswith(PARTIAL)]  # fmt: skip
            if more:
                raise UserError(
                    f"{path / MANIFEST} is missing; without it {more[0]} and other files cannot be checked: "
                    "run again with --overwrite"
                )
            content = (path / CONFIG).read_bytes()
            _remove(entry for entry in path.iterdir() if entry.name not in (CONFIG, LOCK))
            return cls._opened(path, {CONFIG: _entry(content)})
        except OSError as error:
            raise UserError(f"--run_dir {path} cannot be written: {error.strerror or error}") from None

    @classmethod
    def _opened(cls, path: Path, files: Mapping[str, Entry]) -> RunDirectory:
        for folder in _FOLDERS:
            (path / folder).mkdir(exist_ok=True)
        manifest = Manifest(files=files)
        manifest.write(path)
        return cls(path, manifest)

    def log(self, name: str) -> GrowingFile:
        """A new file that grows with the run."""
        self._logs[name] = GrowingFile(self.path / name)
        return self._logs[name]

    def add_member(
        self, facts: SavedMember, weights: Mapping[str, Tensor], predictions: Mapping[tuple[int, str], Tensor]
    ) -> None:
        """Save a network: its tensors, what they belong to, and its predictions [N, C] by task and split."""
        self._write(weights_file(facts.number), tensor_bytes(weights))
        self._write(facts_file(facts.number), json_bytes(facts.to_json()))
        self._write(predictions_file(facts.number), tensor_bytes(by_name(predictions, torch.float32)))

    def add_targets(self, targets: Mapping[tuple[int, str], Tensor]) -> None:
        """Save the targets, [N] each, of the examples of some splits by task and split."""
        self._write(TARGETS, tensor_bytes(by_name(targets)))

    def add_document(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file that belongs to the run."""
        self._write(name, json_bytes(content))

    def add_episode(self, facts: EpisodeFacts, rows: Iterable[Measurement]) -> None:
        """Append to episodes.csv and metrics.csv."""
        new = list(rows)
        self.rows += new
        self.episodes.append(facts)
        self._table(EPISODES).write(episode_line(facts))
        self._table(METRICS).write(metric_lines(new))

    def _table(self, name: str) -> GrowingFile:
        """A table that is appended to; what lies behind its committed part is cut off when it is opened."""
        if name not in self._logs:
            begun = self._committed(name) if name in self.manifest.files else None
            self._logs[name] = GrowingFile(self.path / name, begun)
            if begun is None:
                self._logs[name].write(header(name))
        return self._logs[name]

    def commit(self, episode: int, members: int, seconds: float, state: Mapping[str, bytes | None]) -> None:
        """The episode is complete, and everything that was written belongs to the run.

        Args:
            members: how many networks were saved so far.
            seconds: that the run has taken so far.
            state: part -> what is needed to go on; None for parts that are as before.
        """
        self._replace_state({f"state/{part}-": content for part, content in state.items()}, lambda name: True)
        self._commit(episode, members, seconds)

    def keep_training(self, seconds: float, parts: Mapping[str, bytes]) -> None:
        """Training that is under way, by the name of the network; counts until the next commit."""
        self._replace_state(
            {f"state/{_TRAINING}{part}-": content for part, content in parts.items()},
            lambda name: any(name.startswith(f"state/{_TRAINING}{part}-") for part in parts),
        )
        self._commit(self.manifest.episode, self.manifest.members, seconds)

    def finish(self, summary: Mapping[str, Any], unneeded: str) -> None:
        """Write summary.json: the run is complete. Its state is kept, so that more tasks can join.

        Args:
            unneeded: opens the names of the parts of the state that are not kept.
        """
        self._write("summary.json", json_bytes(summary))
        self._replace_state({}, lambda name: name.startswith(f"state/{unneeded}"))
        self._commit(self.manifest.episode, self.manifest.members, summary["total_seconds"])
        with contextlib.suppress(OSError):  # there is state in it
            (self.path / "state").rmdir()

    def adopting(self, other: Path, targets: Mapping[tuple[int, str], Tensor]) -> RunDirectory:
        """Go on from where another run was finished: its episodes, members, predictions and state, in one commit.

        Args:
            targets: see add_targets; more than the other run's.

        Raises:
            UserError: a file of the other run is missing or damaged.
        """
        manifest = read_manifest(other)
        if manifest is None or not manifest.finished:
            raise UserError(f"{other} is not the directory of a finished run")
        for name in manifest.files:
            if name not in (CONFIG, TARGETS, "summary.json") and not is_removed_log(other, name):
                self._write(name, checked(other, manifest, name))
        self.add_targets(targets)
        self._commit(manifest.episode, manifest.members, manifest.seconds)
        return RunDirectory(self.path, self.manifest)

    def state(self) -> dict[str, bytes]:
        """What `commit` was given last."""
        return {_part(name): self._committed(name) for name in self._files
                if name.startswith("state/") and not name.startswith(f"state/{_TRAINING}")}  # fmt: skip

    def training(self, part: str) -> bytes | None:
        """What `keep_training` was given last, since the last commit."""
        names = [name for name in self._files if name.startswith(f"state/{_TRAINING}{part}-")]
        return self._committed(names[0]) if names else None

    def close(self) -> None:
        """Nothing more will be written."""
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
    """Whether there is something to go on with."""
    try:
        return (path / CONFIG).is_file()
    except (OSError, ValueError) as error:
        raise UserError(f"--run_dir {path} cannot be used: {error}") from None


def read_config(path: Path) -> dict[str, Any]:
    """config.yaml of a run, as it was written.

    Raises:
        UserError: it is damaged.
    """
    manifest = read_manifest(path)
    if manifest is None:
        return load_yaml(str(path / CONFIG))
    try:
        return parse_yaml(str(path / CONFIG), checked(path, manifest, CONFIG).decode(), _LOADER)
    except UnicodeDecodeError as error:
        raise damaged(path, CONFIG, error) from None


def check_free(path: Path, overwrite: bool, reads: Sequence[Path] = ()) -> None:
    """Check, before anything is loaded or written, that a run may be put at `path`.

    Args:
        reads: runs that are needed, so that they cannot be replaced.

    Raises:
        UserError: there is a run and `overwrite` is not set, or one of `reads`, or something that is not a run.
    """
    try:
        if os.path.realpath(path) in map(os.path.realpath, reads):
            raise UserError(f"--run_dir {path} is a run that is read here; name another directory")
        if not path.exists() or (path.is_dir() and all(_trace(entry) for entry in path.iterdir())):
            return
    except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
        raise UserError(f"--run_dir {path} cannot be used: {getattr(error, 'strerror', None) or error}") from None
    if not path.is_dir():
        raise UserError(f"--run_dir {path} is a file; name a directory")
    if not _is_run(path):
        raise UserError(f"--run_dir {path} is not empty and not a run; name another directory")
    if not overwrite:
        resume = "" if reads else "go on with it with --resume, "
        raise UserError(
            f"--run_dir {path} already holds a run; {resume}replace it with --overwrite, or name another directory"
        )


def _is_run(path: Path) -> bool:
    """Whether this program has made it: many programs have a config.yaml, and a run that is replaced is removed."""
    try:
        with open(path / CONFIG, "rb") as file:
            lines = file.read(1 << 24).splitlines()
    except OSError:
        return False
    keys = {line.partition(b":")[0] for line in lines}
    return len(keys & {b"stream", b"data", b"hp", b"method", b"seed"}) >= 3  # it may be damaged


def _trace(entry: Path) -> bool:
    """Of a run that was killed before it had written its first file, or of one that has just begun."""
    return entry.name in (LOCK, CONFIG + PARTIAL)


def _ours(path: Path, entry: Path) -> bool:
    """Whether a file can only be from an interrupted commit: what people put beside a run is left alone."""
    name = entry.relative_to(path).as_posix().removesuffix(PARTIAL)
    return bool(_OWN.fullmatch(name) or GROWING.fullmatch(name))


def _clear(path: Path) -> None:
    """Remove a run and its report, but for config.yaml and the lock."""

    def made_here(entry: Path) -> bool:
        return _ours(path, entry) or bool(DERIVED.fullmatch(entry.relative_to(path).as_posix()))

    for entry in list(path.iterdir()):
        if entry.name in (*_FOLDERS, "figures") and entry.is_dir() and not entry.is_symlink():
            _remove(inner for inner in list(entry.iterdir()) if made_here(inner))
            with contextlib.suppress(OSError):  # something else lies there
                entry.rmdir()
        elif entry.name in _FOLDERS or (entry.name != CONFIG and made_here(entry)):
            _remove([entry])


def _remove(entries: Iterable[Path]) -> None:
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _entry(content: bytes) -> Entry:
    return Entry(len(content), hashlib.sha256(content).hexdigest())


def by_name(tensors: Mapping[tuple[int, str], Tensor], kind: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a file of predictions/: task_<id>/<split>."""
    return {f"task_{task}/{split}": tensor.to(kind or tensor.dtype, copy=True)
            for (task, split), tensor in tensors.items()}  # fmt: skip


def _part(name: str) -> str:
    return name.removeprefix("state/").removesuffix(".safetensors")[: -_HASH - 1]
