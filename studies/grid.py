"""Plan a benchmark: read the grid of config/benchmark/*.yaml, check it and list its runs.

Published tables (studies/papers.py) are read and planned with the same functions.
"""

import itertools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from methods import METHOD_OPTIONS, METHODS
from records.configuration import data_section, net_sections
from records.invocation import KEPT, options, parse, with_settings
from studies.store import PlannedRun
from utils.errors import UserError, unknown
from utils.settings import Range
from utils.yaml_files import load_yaml

PROJECT = Path(__file__).resolve().parent.parent
AXES = ("streams", "hyperparams", "methods", "seeds", "vary")
FILES = ("data_config", "hp_config")
# Options that the grid or the program sets itself.
_OWN = {
    "data_config", "hp_config", "method", "seed", "run_dir", "overwrite", "resume", "verify", "extend", "quiet",
    "isolated", "continual",
}  # fmt: skip
_SECTIONS = ("data.", "net.", "hp.", "settings.")
# The options of modelzoo.py that a grid can set, by name.
OPTIONS = {declared.option: declared for declared in options().values() if declared.option not in _OWN}


class MethodEntry(NamedTuple):
    """A row of the tables: a method, its label and the options of this entry only."""

    method: str
    label: str
    options: Mapping[str, Any]


class Setup(NamedTuple):
    """What is run with every seed: the paths of its stream and of its network and recipe, and a method."""

    stream: str
    hyper: str
    entry: MethodEntry


@dataclass(frozen=True)
class Grid:
    """All runs, one seed after the other, and their options in words for the notes below the tables."""

    runs: tuple[PlannedRun, ...]
    options: str


def load_grid(path: str, store: Path) -> Grid:
    """Read a grid and plan its runs, whose directories are in `store`; UserError names the file and the key."""
    content = load_yaml(path)
    common = {key: option(path, key, value, AXES) for key, value in content.items() if key not in AXES}
    streams = _files(path, content, "streams", data_section)
    hyperparams = _files(path, content, "hyperparams", net_sections)
    entries = [method_entry(f"{path}: methods", entry) for entry in listed(path, content, "methods")]
    entries = _varied(path, content.get("vary", {}), entries)
    setups = [Setup(stream, hyper, entry) for stream in streams for hyper in hyperparams for entry in entries]
    return planned(path, "methods", store, setups, common, read_seeds(path, content))


def planned(
    path: str, key: str, store: Path, setups: Sequence[Setup], common: Mapping[str, Any], seeds: Sequence[int]
) -> Grid:
    """Every setup with every seed; errors name the file and the key that lists the methods."""
    entries = [setup.entry for setup in setups]
    used = set[str]().union(*(METHODS[entry.method].options for entry in entries))
    for name in common:
        if name in METHOD_OPTIONS and name not in used:
            raise UserError(f"{path}: {name} is not used by any method of the grid; leave it out")
    models = [_run(f"{path}: {key}", store, setup, common) for setup in setups]
    runs = tuple(_with_seed(run, seed) for seed in seeds for run in models)
    names = set()
    for run in runs:
        if run.name.casefold() in names:  # some file systems ignore case
            raise UserError(f"{path}: two runs would be {run.directory}; rename a stream, hyperparams, label or seed")
        names.add(run.name.casefold())
    notes = [f"{name} {value}" for name, value in common.items()]
    notes += [f"{entry.label}: {name} {value}" for entry in entries for name, value in entry.options.items()]
    notes += [f"{run.label}: all tasks at once" for run in runs if not run.config.continual]
    return Grid(runs, "; ".join(dict.fromkeys(notes)) or "all defaults")


def listed(path: str, content: Mapping[str, Any], key: str) -> list[Any]:
    """The list at a key of a file; UserError if there is none, or an empty one."""
    if key not in content:
        raise UserError(f"{path}: key {key!r} is missing")
    if not isinstance(content[key], list) or not content[key]:
        raise UserError(f"{path}: {key} is {content[key]!r}; it must be a list with at least one entry")
    return content[key]


def _files(path: str, content: Mapping[str, Any], key: str, load: Callable[[str], object]) -> list[str]:
    files = [_file(path, key, name) for name in listed(path, content, key)]
    try:
        for file in files:
            load(file)
    except UserError as error:
        raise UserError(f"{path}: {key}: {error}") from None
    return files


def _file(path: str, key: str, name: object) -> str:
    """The path of a file, relative to the current directory, else to the project."""
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: {key}: {name!r} is not the path of a YAML file")
    return str(PROJECT / name) if not Path(name).exists() and (PROJECT / name).exists() else name


def read_seeds(path: str, content: Mapping[str, Any]) -> list[int]:
    """The seeds of a file: a list, or their number."""
    if "seeds" in content and not isinstance(content["seeds"], list):
        return list(range(Range(1, 10**4).check(f"{path}: seeds", content["seeds"])))
    return [Range(0, 2**63 - 1).check(f"{path}: seeds", seed) for seed in listed(path, content, "seeds")]


def method_entry(where: str, entry: object, files: Sequence[str] = ()) -> MethodEntry:
    """A method from its name or a mapping; `files`: those of FILES that may be among its options."""
    given: dict[str, Any] = dict(entry) if isinstance(entry, dict) else {"method": entry}
    if "method" not in given:
        raise UserError(f"{where}: {entry!r} has no key 'method', such as method: zoo")
    method = given.pop("method")
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"{where}: {unknown('method', method, METHODS)}")
    label = given.pop("label", method)
    if not isinstance(label, str) or not label.isprintable() or not 0 < len(label) <= 80:
        raise UserError(f"{where}: label is {label!r}; it must be a line of text of at most 80 characters")
    where = f"{where}: {label}"
    own = {key: option(where, key, value, ("label", "method"), files) for key, value in given.items()}
    return MethodEntry(method, label, own)


def _varied(path: str, content: object, entries: Sequence[MethodEntry]) -> list[MethodEntry]:
    """Every entry with every combination of the values in `vary`, `content`; the label then names them."""
    if not isinstance(content, dict) or not all(isinstance(values, list) and values for values in content.values()):
        raise UserError(f"{path}: vary must map settings to lists of values, such as vary: {{hp.lr: [0.01, 0.1]}}")
    lists = [[(key, option(f"{path}: vary", key, value)) for value in values] for key, values in content.items()]
    found = []
    for entry, values in itertools.product(entries, itertools.product(*lists)):
        label = ", ".join([entry.label, *(f"{key.rpartition('.')[2]} {value}" for key, value in values)])
        found.append(MethodEntry(entry.method, label, {**dict(values), **entry.options}))
    return found


def option(where: str, key: str, value: object, others: Sequence[str] = (), files: Sequence[str] = ()) -> Any:
    """The checked value of an option of modelzoo.py; dotted keys are checked later, with the whole configuration.

    `others` are keys to suggest for an unknown one, `files` those of FILES that are accepted.
    """
    if key == "continual":
        if not isinstance(value, bool):
            raise UserError(f"{where}: {key} is {value!r}; it must be true or false")
        return value
    if str(key).startswith(_SECTIONS):
        return value
    if key not in OPTIONS and key not in files:
        raise UserError(f"{where}: {unknown('key', key, [*others, *files, 'continual', *OPTIONS])}")
    if key in OPTIONS:
        OPTIONS[key].check(f"{where}: {key}", value)
    return _file(where, key, value) if key in (*files, "method_config") else value


def used_by(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that the method uses."""
    own = METHODS[method].options
    return {key: value for key, value in given.items() if key not in METHOD_OPTIONS or key in own}


def replaced(given: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """The options with others on top; one that says how many examples are kept replaces all that do."""
    gone: Collection[str] = KEPT if any(key in KEPT for key in by) else ()
    return {**{key: value for key, value in given.items() if key not in gone}, **by}


def _run(where: str, store: Path, setup: Setup, common: Mapping[str, Any]) -> PlannedRun:
    """The run with seed 0, in a directory named without a seed."""
    entry, modes = setup.entry, METHODS[setup.entry.method].modes
    given = {"continual": True, **used_by(entry.method, common)}
    given["continual"] &= "continual" in modes
    chosen = {"data_config": setup.stream, "hp_config": setup.hyper, "method": entry.method}
    arguments = _arguments(replaced(given, chosen | dict(entry.options)))
    try:
        config = with_settings(parse(arguments))
    except UserError as error:
        raise UserError(f"{where}: {entry.label}: {undashed(error)}") from None
    net = Path(setup.hyper).stem
    directory = store / f"{config.stream}-{net}-{re.sub('[^A-Za-z0-9._+-]+', '_', entry.label)}"
    return PlannedRun(directory, entry.label, net, config, tuple(arguments))


def _arguments(given: Mapping[str, Any]) -> list[str]:
    """The options as the command line of modelzoo.py."""
    found = []
    for key, value in given.items():
        if key.startswith(_SECTIONS):
            found.append(f"--set={key}={json.dumps(value)}")
        elif value is not False:
            found.append(f"--{key}" if value is True else f"--{key}={value}")
    return found


def undashed(error: UserError) -> str:
    """The error message with options as they are written in a grid, without dashes."""
    return re.sub(r"--(set )?(?=[a-z])", "", str(error))


def _with_seed(run: PlannedRun, seed: int) -> PlannedRun:
    directory = run.directory.with_name(f"{run.name}-seed{seed}")
    arguments = (*run.arguments, f"--seed={seed}", f"--run_dir={directory}")
    return replace(run, directory=directory, config=replace(run.config, seed=seed), arguments=arguments)
