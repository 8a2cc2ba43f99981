"""RunDirectory: writes the files of a run, and commits them together.

The files of an episode are written first and the manifest last: until then the run is what it was before. Files that
the manifest does not name belong to an interrupted commit, and are removed when the run is resumed. Tables are appended
to; the manifest says how long their committed part is, and a resumed run cuts off the rest.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

import safetensors.torch
import yaml
from torch import Tensor

from evaluation.measurements import Measurement
from records.lock import LOCK
from records.manifest import (
    DERIVED,
    GROWING,
    MANIFEST,
    NAMES,
    SUMMARY,
    TARGETS,
    Entry,
    Manifest,
    checked,
    read_manifest,
    reading,
)  # fmt: skip
from records.members import CHECKPOINT_FILE, FACTS_FILE, KEPT_FILE, PREDICTIONS_FILE, WEIGHTS_FILE, SavedMember
from records.monitor import EpisodeFacts
from records.tables import EPISODES, METRICS, episode_line, header, metric_lines, read_measurements
from utils.errors import UserError
from utils.files import PARTIAL, GrowingFile, check_own, json_bytes, tensor_bytes, write_bytes, yaml_bytes
from utils.options import check_text
from utils.yaml_files import load_yaml, parse_yaml

CONFIG = "config.yaml"
_FOLDERS = ("members", "predictions", "state")
_TRAINING = "training-"  # opens the names of files in state/ that belong to an episode under way
_OWN = re.compile(
    rf"(config\.yaml|(manifest|summary|certificate)\.json|{re.escape(TARGETS)}|{re.escape(NAMES)}|{GROWING.pattern}"
    r"|(members|predictions)/(member|kept)_\d{3,}\.(safetensors|json)|state/[A-Za-z0-9_-]+\.safetensors"
    r"|checkpoints/step_\d{12}\.safetensors)"
    rf"({PARTIAL})?"
)
_BEGUN = re.compile(rf"{re.escape(LOCK)}|config\.yaml({PARTIAL})?|manifest\.json{PARTIAL}")  # before the first commit
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it exists
_SECTION = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)  # in what `yaml_bytes` writes, keys of the file
_HASH = 16  # digits of the checksum in the name of a file in state/, so that the old and the new file can coexist

_ByTask = Mapping[tuple[int, str], Tensor]  # by task and split
_Names = Mapping[tuple[int, str], Sequence[str]]


class RunDirectory:
    """config.yaml, episodes.csv, metrics.csv, summary.json, members/, predictions/, state/, manifest.json.

    `manifest` is the committed one, `rows` and `episodes` are all measurements and episodes so far.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._files = dict(manifest.files)
        self._logs: dict[str, GrowingFile] = {}
        self.rows, self.episodes = read_measurements(path, manifest)
        for folder in _FOLDERS:
            (path / folder).mkdir(exist_ok=True)

    @classmethod
    def begin(cls, path: Path, config: Mapping[str, Any]) -> "RunDirectory":
        """An empty run, in place of one that is already there (see check_free). Other files in the folder stay."""
        # The order matters if the process is killed: without a manifest, what is left is never taken for a run,
        # and with the new config.yaml in place a resumed run cannot use the old options.
        for name in (MANIFEST, SUMMARY):
            (path / name).unlink(missing_ok=True)
        write_bytes(path / CONFIG, yaml_bytes(config))
        _clear(path)
        return cls(path, _first_manifest(path))

    @classmethod
    def reopen(cls, path: Path) -> "RunDirectory":
        """The run as it was last committed; the files of an interrupted commit are removed."""
        for folder in (*_FOLDERS, "checkpoints"):
            check_own(path / folder)
        manifest, found = read_manifest(path), _files_in(path)
        if manifest is None:  # it was killed before its first commit
            if not all(map(_BEGUN.fullmatch, found)):
                with reading(path, MANIFEST):
                    raise FileNotFoundError
            manifest = _first_manifest(path)
        for name in manifest.files:
            checked(path, manifest, name)
        for name in found.keys() - manifest.files.keys() - {MANIFEST}:
            if _OWN.fullmatch(name):
                found[name].unlink(missing_ok=True)
        for name, entry in manifest.files.items():
            if GROWING.fullmatch(name):
                os.truncate(path / name, entry.size)
        return cls(path, manifest)

    def log(self, name: str, begin: bytes = b"") -> GrowingFile:
        """A file of the run that is appended to, after its committed part or, if it is new, after `begin`."""
        if name not in self._logs:
            committed = checked(self.path, self.manifest, name) if name in self.manifest.files else None
            self._logs[name] = GrowingFile(self.path / name, committed)
            if committed is None:
                self._logs[name].write(begin)
        return self._logs[name]

    def add_member(self, facts: SavedMember, weights: Mapping[str, Tensor], predictions: _ByTask) -> None:
        """Save a network: its description, its tensors, and its predictions [N, C]."""
        self._write(WEIGHTS_FILE.format(facts.number), tensor_bytes(weights))
        self._write(FACTS_FILE.format(facts.number), json_bytes(facts.to_json()))
        answers = {name: part.float() for name, part in _by_name(predictions).items()}
        self._write(PREDICTIONS_FILE.format(facts.number), tensor_bytes(answers))

    def add_checkpoint(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Save the weights that a network has after so many steps."""
        (self.path / CHECKPOINT_FILE).parent.mkdir(exist_ok=True)
        self._write(CHECKPOINT_FILE.format(step), tensor_bytes(weights))

    def checkpoint(self, step: int) -> dict[str, Tensor]:
        """The saved weights after so many steps."""
        with reading(self.path, CHECKPOINT_FILE.format(step)):
            return safetensors.torch.load((self.path / CHECKPOINT_FILE.format(step)).read_bytes())

    def has_checkpoint(self, step: int) -> bool:
        """Whether the weights after so many steps are saved."""
        return CHECKPOINT_FILE.format(step) in self._files

    def add_rows(self, rows: Iterable[Measurement]) -> None:
        """Append to metrics.csv."""
        new = list(rows)
        self.rows += new
        self.log(METRICS, header(METRICS)).write(metric_lines(new))

    def add_targets(self, targets: _ByTask, names: _Names) -> None:
        """Save targets, [N, ...], and names of examples, if they have some."""
        self._write(TARGETS, tensor_bytes(_by_name(targets)))
        if names:
            self._write(NAMES, json_bytes(_by_name(names)))

    def add_kept(self, episode: int, kept: _ByTask) -> None:
        """Save which training examples are kept after an episode: by task, their "positions" [N] and "targets"."""
        self._write(KEPT_FILE.format(episode), tensor_bytes(_by_name(kept)))

    def add_document(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file of the run."""
        self._write(name, json_bytes(content))

    def add_episode(self, facts: EpisodeFacts, rows: Iterable[Measurement]) -> None:
        """Append to episodes.csv and metrics.csv."""
        self.episodes.append(facts)
        self.log(EPISODES, header(EPISODES)).write(episode_line(facts))
        self.add_rows(rows)

    def commit(self, episode: int, members: int, seconds: float, state: Mapping[str, bytes | None]) -> None:
        """Commit a complete episode with all files written so far; `state`: by part, None if it has not changed."""
        self._replace_state({f"state/{part}-": content for part, content in state.items()}, "state/")
        self._commit(episode, members, seconds)

    def keep_training(self, seconds: float, parts: Mapping[str, bytes]) -> None:
        """Save training that is under way, by name of the network, until the episode is committed."""
        contents = {f"state/{_TRAINING}{part}-": content for part, content in parts.items()}
        self._replace_state(contents, tuple(contents))
        self._commit(self.manifest.episode, self.manifest.members, seconds)

    def finish(self, summary: Mapping[str, Any], unneeded: str) -> None:
        """Write summary.json, and so finish the run; removes the parts of the state that begin with `unneeded`."""
        self._write(SUMMARY, json_bytes(summary))
        self._replace_state({}, f"state/{unneeded}")
        self._commit(self.manifest.episode, self.manifest.members, summary["total_seconds"])
        with contextlib.suppress(OSError):  # it is not empty
            (self.path / "state").rmdir()

    def adopting(self, other: Path, sha256: str, targets: _ByTask, names: _Names) -> "RunDirectory":
        """Copy the files of a finished run that hold what it learned; UserError if its manifest has another sum."""
        manifest = read_manifest(other)
        if manifest is None or manifest.sha256 != sha256:
            raise UserError(f"{other} is not the run that {self.path} extends: put it back, or extend with --overwrite")
        for name in manifest.files:
            if name not in (CONFIG, TARGETS, SUMMARY):
                self._write(name, checked(other, manifest, name))
        self.add_targets(targets, names)
        self._commit(manifest.episode, manifest.members, manifest.seconds)
        return RunDirectory(self.path, self.manifest)

    def state(self) -> dict[str, bytes]:
        """The state of the last `commit`."""
        return {PurePath(name).stem[: -_HASH - 1]: checked(self.path, self.manifest, name) for name in self._files
                if name.startswith("state/") and not name.startswith(f"state/{_TRAINING}")}  # fmt: skip

    def training(self, part: str) -> bytes | None:
        """The state that `keep_training` has saved for a network since the last commit."""
        names = [name for name in self._files if name.startswith(f"state/{_TRAINING}{part}-")]
        return checked(self.path, self.manifest, names[0]) if names else None

    def close(self) -> None:
        """Close the files that are appended to."""
        for log in self._logs.values():
            log.close()

    def _write(self, name: str, content: bytes) -> None:
        write_bytes(self.path / name, content)
        self._files[name] = _entry(content)

    def _replace_state(self, parts: Mapping[str, bytes | None], replaced: str | tuple[str, ...]) -> None:
        """Write parts of the state in place of those whose names begin with `replaced`; None keeps the old content."""
        old = {name for name in self._files if name.startswith(replaced)}
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


def holds_run(path: Path) -> bool:
    """Whether there is a run, finished or not."""
    return os.path.isfile(path / CONFIG)  # noqa: PTH113  # Path.is_file raises for a folder that may not be read


def read_config(path: Path) -> dict[str, Any]:
    """The content of config.yaml of a run."""
    manifest = read_manifest(path)
    if manifest is None:
        return load_yaml(str(path / CONFIG))
    with reading(path, CONFIG):
        return parse_yaml(str(path / CONFIG), checked(path, manifest, CONFIG).decode(), _LOADER)


def shared_config(path: Path, manifest: Manifest) -> Mapping[str, Any]:
    """The content of config.yaml of a run; parts that are alike in several runs are the same objects: change none.

    Of thousands of runs this takes a tenth of the time of `read_config`.
    """
    with reading(path, CONFIG):
        text, found = checked(path, manifest, CONFIG).decode(), dict[str, Any]()
        try:
            for section in _SECTION.split(text)[1:]:
                found |= _section(section)
        except (yaml.YAMLError, TypeError):  # a part refers to another one, or was not written by `yaml_bytes`
            return parse_yaml(str(path / CONFIG), text, _LOADER)
        return found


@lru_cache(1 << 14)
def _section(text: str) -> dict[str, Any]:
    """The content of one key of a config.yaml."""
    return yaml.load(text, _LOADER)  # type: ignore[no-any-return]  # a safe loader


def check_free(path: Path, overwrite: bool, reads: Sequence[Path] = ()) -> None:
    """Check that a run may be put at `path`, before anything is written; the runs in `reads` cannot be replaced."""
    try:
        check_text("the current folder", str(Path.cwd()))  # config.yaml names paths in it
        if os.path.realpath(path) in map(os.path.realpath, reads):
            raise UserError(f"--run_dir {path} is a run that is read here; name another directory")
        if path.exists() and not path.is_dir():
            raise UserError(f"--run_dir {path} is a file; name a directory")
        found = [entry.name for entry in path.iterdir()] if path.exists() else []
        if CONFIG not in found and all(map(_BEGUN.fullmatch, found)):  # nothing, or killed before it wrote config.yaml
            return
        config = (path / CONFIG).read_bytes() if holds_run(path) else b""
    except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
        raise UserError(f"--run_dir {path} cannot be used: {getattr(error, 'strerror', None) or error}") from None
    # Many programs have a config.yaml, and --overwrite removes files; that of a run may be damaged.
    if len(set(re.findall(rb"(?m)^(?:stream|data|hp|method|seed):", config))) < 3:
        raise UserError(f"--run_dir {path} is not empty and not a run; name another directory")
    if not overwrite and not half_made(path):
        resume = "" if reads else "resume it with --resume, "
        raise UserError(
            f"--run_dir {path} already holds a run; {resume}replace it with --overwrite, or name another directory"
        )


def half_made(path: Path) -> Any:
    """If this run is the unfinished work of a program that derives runs: from which one, and how; else None."""
    manifest = read_manifest(path)
    return None if manifest and manifest.finished else read_config(path).get("derived")


def check_whole(path: Path) -> None:
    """Check that a run is not `half_made`: it could not answer for what it was made from."""
    if made := half_made(path):
        raise UserError(f"{path} is half-made ({made}): repeat the command that was stopped")


def _files_in(path: Path) -> dict[str, Path]:
    """The files in the folders of a run and its report, by name."""
    found = [entry for folder in ("", *_FOLDERS, "checkpoints", "figures") for entry in (path / folder).glob("*")]
    return {entry.relative_to(path).as_posix(): entry for entry in found if not entry.is_dir()}


def _clear(path: Path) -> None:
    """Remove a run and its report, except for config.yaml, the lock, and files that belong to somebody else."""
    folders = [path / name for name in (*_FOLDERS, "checkpoints", "figures")]
    for folder in folders:
        if folder.is_symlink():  # what it leads to stays
            folder.unlink()
    for name, entry in _files_in(path).items():
        if name != CONFIG and (_OWN.fullmatch(name) or DERIVED.fullmatch(name)):
            entry.unlink()
    for folder in folders:
        with contextlib.suppress(OSError):  # it is missing, or not empty
            folder.rmdir()


def _first_manifest(path: Path) -> Manifest:
    """Write the manifest of a run that has nothing but config.yaml."""
    manifest = Manifest(files={CONFIG: _entry((path / CONFIG).read_bytes())})
    manifest.write(path)
    return manifest


def _entry(content: bytes) -> Entry:
    return Entry(len(content), hashlib.sha256(content).hexdigest())


def _by_name(content: Mapping[tuple[int, str], Any]) -> dict[str, Any]:
    """The content of a file in predictions/."""
    return {f"task_{task}/{split}": part for (task, split), part in content.items()}
