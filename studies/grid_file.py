"""Reading the keys of a YAML file that the grids of both programs and published tables have in common."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from records.configuration import data_section, net_sections
from studies.planned import PlannedJob
from utils.errors import UserError, unknown
from utils.settings import Declaration, Range

PROJECT = Path(__file__).resolve().parent.parent
FILES = ("data_config", "hp_config")
SECTIONS = ("data.", "net.", "hp.", "settings.")
_LABEL = 80  # the most characters


class StreamEntry(NamedTuple):
    """An entry of `streams`: a stream, what is trained on it, and the options of this entry only."""

    path: str
    hyperparams: Sequence[str]
    options: Mapping[str, Any]
    vary: Mapping[str, Sequence[Any]]

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """Every combination of the values in `vary`, by key."""
        lists = [[(key, value) for value in values] for key, values in self.vary.items()]
        return [dict(values) for values in itertools.product(*lists)]


class Options(NamedTuple):
    """The options that a grid of one program can set, by name; `others`: keys to suggest for an unknown one."""

    declared: Mapping[str, Declaration]
    others: Sequence[str] = ()

    def check(self, where: str, key: str, value: object, others: Sequence[str] = (), files: Sequence[str] = ()) -> Any:
        """The checked value; dotted keys are checked later, with the whole configuration.

        `others` are more keys to suggest, `files` those of FILES that are accepted.
        """
        if key == "continual" and key in self.others:
            if not isinstance(value, bool):
                raise UserError(f"{where}: {key} is {value!r}; it must be true or false")
            return value
        if str(key).startswith(SECTIONS):
            return value
        if key not in self.declared and key not in files:
            raise UserError(f"{where}: {unknown('key', key, [*others, *files, *self.others, *self.declared])}")
        if key in self.declared:
            self.declared[key].check(f"{where}: {key}", value)
        return file_of(where, key, value) if key in (*files, "method_config") else value


def listed(path: str, content: Mapping[str, Any], key: str) -> list[Any]:
    """The list at a key of a file; UserError if there is none, or an empty one."""
    if key not in content:
        raise UserError(f"{path}: key {key!r} is missing")
    if not isinstance(content[key], list) or not content[key]:
        raise UserError(f"{path}: {key} is {content[key]!r}; it must be a list with at least one entry")
    return content[key]


def file_of(path: str, key: str, name: object) -> str:
    """The path of a file, relative to the current directory, else to the project."""
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: {key}: {name!r} is not the path of a YAML file")
    return str(PROJECT / name) if not Path(name).exists() and (PROJECT / name).exists() else name


def _loadable(path: str, key: str, names: Sequence[object], load: Callable[[str], object]) -> list[str]:
    files = [file_of(path, key, name) for name in names]
    try:
        for file in files:
            load(file)
    except UserError as error:
        raise UserError(f"{path}: {key}: {error}") from None
    return files


def read_streams(path: str, content: Mapping[str, Any], options: Options) -> list[StreamEntry]:
    """The entries of `streams`; UserError names the file and the key.

    An entry is a path, or a mapping {stream: path} that may have `hyperparams` and `vary` of its own, and options.
    """
    found = []
    for entry in listed(path, content, "streams"):
        own: dict[str, Any] = dict(entry) if isinstance(entry, dict) else {"stream": entry}
        if "stream" not in own:
            raise UserError(f"{path}: streams: {entry!r} has no key 'stream', the path of a YAML file")
        (stream,) = _loadable(path, "streams", [own.pop("stream")], data_section)
        hyper = _loadable(path, "hyperparams", listed(path, {**content, **own}, "hyperparams"), net_sections)
        vary = _varied(path, own.pop("vary", content.get("vary", {})), options)
        own.pop("hyperparams", None)
        known = ("stream", "hyperparams", "vary")
        more = {key: options.check(f"{path}: streams", key, value, known) for key, value in own.items()}
        found.append(StreamEntry(stream, hyper, more, vary))
    return found


def _varied(path: str, content: object, options: Options) -> dict[str, list[Any]]:
    if not isinstance(content, dict) or not all(isinstance(values, list) and values for values in content.values()):
        raise UserError(f"{path}: vary must map settings to lists of values, such as vary: {{hp.lr: [0.01, 0.1]}}")
    return {key: [options.check(f"{path}: vary", key, each) for each in values] for key, values in content.items()}


def read_seeds(path: str, content: Mapping[str, Any]) -> list[int]:
    """The seeds of a file: a list, or their number."""
    if "seeds" in content and not isinstance(content["seeds"], list):
        return list(range(Range(1, 10**4).check(f"{path}: seeds", content["seeds"])))
    return [Range(0, 2**63 - 1).check(f"{path}: seeds", seed) for seed in listed(path, content, "seeds")]


def check_label(where: str, label: object) -> str:
    """The label of a row of the tables; UserError if it is not one line of text."""
    if not isinstance(label, str) or not label.isprintable() or not 0 < len(label) <= _LABEL:
        raise UserError(f"{where}: label is {label!r}; it must be a line of text of at most {_LABEL} characters")
    return label


def in_words(values: Mapping[str, Any]) -> list[str]:
    """Varied settings as they stand in a label: lr 0.1."""
    return [f"{key.rpartition('.')[2]} {value}" for key, value in values.items()]


def arguments(given: Mapping[str, Any]) -> list[str]:
    """Options as a command line."""
    found = []
    for key, value in given.items():
        if key.startswith(SECTIONS):
            found.append(f"--set={key}={json.dumps(value)}")
        elif value is not False:
            found.append(f"--{key}" if value is True else f"--{key}={value}")
    return found


def directory_name(stream: str, net: str, label: str) -> str:
    """The name of a directory, without what file systems may not like in a label."""
    return f"{stream}-{net}-{re.sub('[^A-Za-z0-9._+-]+', '_', label)}"


def undashed(error: UserError) -> str:
    """The error message with options as they are written in a grid, without dashes."""
    return re.sub(r"--(set )?(?=[a-z])", "", str(error))


def distinct(path: str, jobs: Sequence[PlannedJob]) -> tuple[PlannedJob, ...]:
    """The jobs; UserError if two runs of them have one directory."""
    names = set()
    for run in (run for job in jobs for run in job.runs):
        if run.name.casefold() in names:  # some file systems ignore case
            raise UserError(f"{path}: two runs would be {run.directory}; rename a stream, hyperparams, label or seed")
        names.add(run.name.casefold())
    return tuple(jobs)
