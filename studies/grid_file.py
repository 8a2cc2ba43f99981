"""Reading the keys of a YAML file that the grids of both programs and published tables have in common."""

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from records.configuration import data_section, net_sections
from studies.planned import PlannedJob
from training.recipe import Recipe
from utils.errors import UserError, unknown
from utils.settings import Declaration, Range, declarations

PROJECT = Path(__file__).resolve().parent.parent
FILES = ("data_config", "hp_config")
SECTIONS = ("data.", "net.", "hp.", "settings.", "ask.")
VARYING = ("vary", "together", "rates")
RATE = "hp.lr"
_LABEL = 80  # the most characters
_HASH = 10  # digits of the checksum in the name of a directory
_NAMED = re.compile(rf"-[0-9a-f]{{{_HASH}}}$")


class Pairing(NamedTuple):
    """A stream and what is trained on it: the paths of their YAML files, the options of both, and what varies.

    `together` are settings that change at the same time, a mapping for each step; `rates` learning rates.
    """

    path: str
    hyper: str
    options: Mapping[str, Any]
    vary: Mapping[str, Sequence[Any]]
    together: Sequence[Mapping[str, Any]] = ()
    rates: Sequence[float] = ()

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """Every step of `together` with every combination of the values in `vary`, by key."""
        lists = [[(key, value) for value in values] for key, values in self.vary.items()]
        return [{**step, **dict(values)} for step in self.together or ({},) for values in itertools.product(*lists)]

    @property
    def axes(self) -> list[tuple[str, ...]]:
        """The settings that vary; those that vary together are one axis, the first."""
        together = [tuple(self.together[0])] if self.together else []
        return [*together, *((key,) for key in self.vary)]


class Options(NamedTuple):
    """The options that a grid of one program can set, by name; `others`: keys to suggest for an unknown one.

    `rates`: whether one process of the program trains at several learning rates.
    """

    declared: Mapping[str, Declaration]
    others: Sequence[str] = ()
    rates: bool = False

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


def read_streams(path: str, content: Mapping[str, Any], options: Options) -> list[Pairing]:
    """The entries of `streams`, each with each of its `hyperparams`; UserError names the file and the key.

    An entry of either is a path, or a mapping {stream: path} or {hp_config: path} with options and with what varies:
    `vary`, `together` and, if the program has it, `rates`. Of a stream they stand in the place of those of the file, of
    `hyperparams` in the place of those of the stream, in `vary` key by key.
    """
    found = []
    for entry in listed(path, content, "streams"):
        stream, own = _entry(path, "streams", "stream", entry, options, data_section, ("hyperparams",))
        above = {key: content[key] for key in VARYING if key in content} | own
        for row in listed(path, {**content, **own}, "hyperparams"):
            hyper, more = _entry(path, "hyperparams", "hp_config", row, options, net_sections)
            varied = {**_mapping(path, above.get("vary", {})), **_mapping(path, more.get("vary", {}))}
            given = {**above, **more}
            rest = {key: value for key, value in given.items() if key not in (*VARYING, "hyperparams")}
            pairing = Pairing(
                stream, hyper, rest, _varied(path, varied, options),
                _together(path, given.get("together", []), options), _rates(path, given.get("rates")),
            )  # fmt: skip
            _check_once(path, pairing)
            found.append(pairing)
    return found


def _entry(
    path: str, key: str, name: str, entry: object, options: Options, load: Callable[[str], object],
    more: Sequence[str] = (),
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """The file of an entry, and its other keys, of which the options are checked."""
    own: dict[str, Any] = dict(entry) if isinstance(entry, dict) else {name: entry}
    if name not in own:
        raise UserError(f"{path}: {key}: {entry!r} has no key {name!r}, the path of a YAML file")
    file = file_of(path, key, own.pop(name))
    try:
        load(file)
    except UserError as error:
        raise UserError(f"{path}: {key}: {error}") from None
    known = (*(axis for axis in VARYING if axis in ("vary", "together") or options.rates), *more)
    unchecked = {axis: own.pop(axis) for axis in known if axis in own}
    return file, {each: options.check(f"{path}: {key}", each, value, (name, *known)) for each, value in own.items()} | (
        unchecked
    )


def _mapping(path: str, content: object) -> dict[str, list[Any]]:
    if not isinstance(content, dict) or not all(isinstance(values, list) and values for values in content.values()):
        raise UserError(f"{path}: vary must map settings to lists of values, such as vary: {{hp.lr: [0.01, 0.1]}}")
    return content


def _varied(path: str, content: Mapping[str, Sequence[Any]], options: Options) -> dict[str, list[Any]]:
    return {key: [options.check(f"{path}: vary", key, each) for each in values] for key, values in content.items()}


def _together(path: str, content: object, options: Options) -> list[dict[str, Any]]:
    whole = isinstance(content, list) and all(isinstance(step, dict) and step for step in content)
    if not whole or any(step.keys() != content[0].keys() for step in content):  # type: ignore[index, union-attr, attr-defined]
        raise UserError(
            f"{path}: together must list mappings with the same keys, such as together: "
            "[{data.length: 3, hp.batch: 64}, {data.length: 5, hp.batch: 32}]"
        )
    steps: list[dict[str, Any]] = content  # type: ignore[assignment]
    return [{key: options.check(f"{path}: together", key, value) for key, value in step.items()} for step in steps]


def _rates(path: str, content: object) -> list[float]:
    if content is None:
        return []
    if not isinstance(content, list) or not content:
        raise UserError(f"{path}: rates is {content!r}; it must be a list of learning rates, such as [0.001, 0.01]")
    return list(dict.fromkeys(declarations(Recipe)["lr"].check(f"{path}: rates", rate) for rate in content))


def _check_once(path: str, pairing: Pairing) -> None:
    """Refuse a setting that two of the keys vary."""
    for key in pairing.together[0] if pairing.together else ():
        if key in pairing.vary:
            raise UserError(f"{path}: {key} stands in vary and in together; leave one out")
    given = {*pairing.vary, *pairing.options, *(pairing.together[0] if pairing.together else ())}
    if pairing.rates and RATE in given:
        raise UserError(f"{path}: rates and {RATE} are two ways to say the same; leave one out")


def read_seeds(path: str, content: Mapping[str, Any], key: str = "seeds") -> list[int]:
    """The seeds of a file: a list, or their number."""
    if key in content and not isinstance(content[key], list):
        return list(range(Range(1, 10**4).check(f"{path}: {key}", content[key])))
    return [Range(0, 2**63 - 1).check(f"{path}: {key}", seed) for seed in listed(path, content, key)]


def check_label(where: str, label: object) -> str:
    """The label of a row of the tables; UserError if it is not one line of text."""
    if not isinstance(label, str) or not label.isprintable() or not 0 < len(label) <= _LABEL:
        raise UserError(f"{where}: label is {label!r}; it must be a line of text of at most {_LABEL} characters")
    return label


def in_words(values: Mapping[str, Any]) -> list[str]:
    """Varied settings as they stand in a label: lr 0.1."""
    return [f"{key.rpartition('.')[2]} {_word(value)}" for key, value in values.items()]


def _word(value: Any) -> str:
    """A value in words; a mapping such as {mixer: based, feature: 4} is "based feature 4"."""
    if isinstance(value, Mapping):
        first, *others = value.items()
        return " ".join([str(first[1]), *(f"{key} {_word(each)}" for key, each in others)])
    return " + ".join(map(_word, value)) if isinstance(value, (list, tuple)) else str(value)


def arguments(given: Mapping[str, Any]) -> list[str]:
    """Options as a command line."""
    found = []
    for key, value in given.items():
        if key.startswith(SECTIONS):
            found.append(f"--set={key}={json.dumps(value)}")
        elif value is not False:
            found.append(f"--{key}" if value is True else f"--{key}={value}")
    return found


class DirectoryNames:
    """Names of directories in a store: words to read, and a checksum of what determines the results.

    What has the same checksum has one directory, whatever a grid calls it: one that is already there, or the first.
    """

    def __init__(self, store: Path) -> None:
        found = sorted(store.iterdir()) if store.is_dir() else ()
        self._existing = {path.name[-_HASH:]: path.name for path in found if _NAMED.search(path.name)}

    def agree(self, name: str) -> bool:
        """Whether a directory has, or would get, this name, and no other one of the same checksum."""
        return self._existing.get(name[-_HASH:], name) == name

    def name(self, words: Sequence[str], determined_by: str) -> str:
        """The name of the directory of what `determined_by` tells apart."""
        checksum = hashlib.sha256(determined_by.encode()).hexdigest()[:_HASH]
        return self._existing.setdefault(checksum, f"{file_name(words)}-{checksum}")


def file_name(words: Sequence[str]) -> str:
    """A name of some words without what file systems may not like; empty words are left out."""
    return "-".join(re.sub("[^A-Za-z0-9._+-]+", "_", word) for word in words if word)


def undashed(error: UserError) -> str:
    """The error message with options as they are written in a grid, without dashes."""
    return re.sub(r"--(set )?(?=[a-z])", "", str(error))


def distinct(path: str, jobs: Sequence[PlannedJob]) -> tuple[PlannedJob, ...]:
    """The jobs; UserError if two of their runs would stand at one place of the tables."""
    places = set()
    for run in (run for job in jobs for run in job.runs):
        place = f"{run.table}, {run.label}, seed {run.replicate}"
        if place in places:
            raise UserError(f"{path}: two runs would be {place}; rename a stream, hyperparams, label or seed")
        places.add(place)
    return tuple(jobs)
