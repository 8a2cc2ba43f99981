"""The configuration of a run: built from YAML files and options, written to and read from config.yaml.

YAML files, options and --set -> nested keys and values -> RunConfig -> config.yaml -> RunConfig
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from datasets import STREAMS, config_of, settings_of
from datasets.config import DataConfig
from evaluation.questions import settings_asked
from methods import METHOD_OPTIONS, METHODS
from methods.config import BaseConfig, RunConfig
from net import TRUNKS, settings_class
from net.config import NetConfig
from records.task_config import METHOD, TaskRunConfig
from training.recipe import Recipe
from utils.errors import UserError, unknown
from utils.settings import Declaration, Given, Kind, NoSettings, Range, declarations, flat, plain, read, read_values
from utils.yaml_files import load_yaml

# Sections of a configuration, each with the class that declares its keys; those of a data set or network add to them.
SECTIONS: Mapping[str, type] = {"data": DataConfig, "net": NetConfig, "hp": Recipe}
ASK = "ask"  # the section with the settings of evaluations: NAME.KEY
R = TypeVar("R", bound=BaseConfig)
_PROJECT = Path(__file__).resolve().parent.parent


def data_section(path: str) -> dict[str, Any]:
    """The section `data` from a dataset YAML."""
    found = {"path": Given(path, path, path), **_given(path, load_yaml(path))}
    _section("data", "", found)
    return found


def net_sections(path: str) -> dict[str, dict[str, Any]]:
    """The sections `net` and `hp` from a hyperparameter YAML."""
    found = _given(path, load_yaml(path))
    own = declarations(_own("net", path, found))
    net = {key: found.pop(key) for key in list(found) if key == "model" or key in own}
    known = declarations(Recipe)
    for key in found:
        if key not in known:
            raise UserError(f"{path}: {unknown('key', key, ['model', *own, *known])}")
    sections = {"net": {**net, "path": Given(path, path, path)}, "hp": found}
    for name, section in sections.items():
        _section(name, f"{path}: ", section)
    return sections


def method_settings(path: str, stream: str) -> dict[str, Any]:
    """The settings of a method from a YAML file; keys below `streams: <name>` win for that stream."""
    content = load_yaml(path)
    presets = content.pop("streams", {})
    if not isinstance(presets, dict):
        raise UserError(f"{path}: key 'streams' is {presets!r}; it must map names of streams to settings")
    preset = presets.get(stream, {})
    if not isinstance(preset, dict):
        raise UserError(f"{path}: key 'streams: {stream}' is {preset!r}; it must map names of settings to values")
    return _given(path, {**content, **preset})


def default_method_config(method: str) -> str:
    """The YAML file that ships with a method."""
    return str(_PROJECT / "config" / "method" / f"{method}.yaml")


def build(kind: type[R], where: str, content: Mapping[str, Any]) -> R:
    """A configuration from nested keys and values, without the settings of a method.

    `where` opens error messages about values that do not name their own source (see Given).
    """
    prefix = f"{where}: " if where else ""
    parts = {name: _section(name, prefix, content.get(name, {})) for name in SECTIONS}
    values = read_values(kind, where, {key: value for key, value in content.items() if key not in (*SECTIONS, ASK)})
    values[ASK] = settings_asked(values.get("evaluate", ()), dict(flat(content.get(ASK, {}))), where)
    if parts["hp"].augment is None:
        parts["hp"] = replace(parts["hp"], augment=parts["hp"].augments)
    return kind(**parts, **values)


def saved_config(path: str, content: Mapping[str, Any], kind: type[BaseConfig] = RunConfig) -> Any:
    """The configuration of a run from its config.yaml, an instance of `kind`."""
    for key in (*SECTIONS, "settings", *({ASK} & content.keys())):
        if not isinstance(content.get(key), dict):
            raise UserError(f"{path}: {key} must hold keys and values")
    known = {*SECTIONS, ASK, *declarations(kind)}
    config = build(kind, path, {key: value for key, value in content.items() if key in known})
    if not isinstance(config, RunConfig):
        return config
    settings = METHODS[config.method].Settings if config.method in METHODS else NoSettings  # a student has no method
    return replace(config, settings=read(settings, f"{path}: settings", content["settings"]))


def plain_config(config: BaseConfig) -> dict[str, Any]:
    """The configuration as nested keys and values for config.yaml."""
    own = getattr(config, "settings", None)  # only those of modelzoo.py have a method
    values = plain(config if own is None else replace(config, settings=NoSettings()))  # type: ignore[call-arg]
    if not values[ASK]:
        values.pop(ASK)
    return {**values, "settings": {} if own is None else plain(own)}


@cache
def keys_where(flag: str) -> frozenset[str]:
    """Dotted keys of the settings declared with a flag: "machine" or "free"."""
    return frozenset(key for key, declaration in _declared() if getattr(declaration, flag))


def comparable(content: Mapping[str, Any], sections: Iterable[str] = SECTIONS) -> dict[str, Any]:
    """By dotted key, settings of a config.yaml that must agree between runs that are compared; no names of tasks."""
    machine = keys_where("machine")
    found = dict(flat({name: content[name] for name in sections}))
    found["data.tasks"] = [{**task, "name": None} for task in found.get("data.tasks", ())]
    return {key: value for key, value in found.items() if key not in machine}


def determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration that determine its result, by dotted key."""
    parts = {*SECTIONS, *declarations(RunConfig), *declarations(TaskRunConfig), "settings", ASK}
    values = dict(flat({key: value for key, value in config.items() if key in parts}))
    return {key: value for key, value in values.items() if key not in keys_where("machine")}


def fingerprint(config: BaseConfig, without: Collection[str] = ()) -> str:
    """A checksum of the values that determine the result of a run, but for those at some dotted keys."""
    values = determining(plain_config(config))
    kept = {key: value for key, value in values.items() if key not in without}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def obstacle(reference: Mapping[str, Any], content: Mapping[str, Any]) -> str | None:
    """The key in which two config.yaml differ so that the runs cannot be compared task by task; None: they can.

    Tasks are matched by their numbers: the second run may have forgotten tasks that the reference still has.
    """
    one, other = alike(reference), alike(content)
    return next((key for key in one | other if one.get(key) != other.get(key)), None) or lacking(reference, content)


def alike(content: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, what must be equal in two config.yaml for their runs to be compared task by task."""
    found = {**comparable(content), "seed": content.get("seed")}
    found.pop("data.forgotten", None)
    return found


def lacking(reference: Mapping[str, Any], content: Mapping[str, Any]) -> str | None:
    """The key by which a reference does not have all data of another run that is `alike`; None if it has."""
    forgotten, also = (set(config["data"].get("forgotten", ())) for config in (reference, content))
    if not forgotten <= also:
        return "data.forgotten"
    sums, others = (config.get("data_sha256") or {} for config in (reference, content))
    return None if sums | others == others | sums else "data_sha256"


def hyperparameters(config: RunConfig | TaskRunConfig) -> dict[str, bool | float | str]:
    """The settings of a run for a table of runs, by dotted key; only those that are set and that its method reads."""
    unread = METHOD_OPTIONS - (METHODS[config.method].options if config.method in METHODS else frozenset())
    every = {"stream": config.stream, **dict(flat(plain_config(config)))}
    shown = hyperparameter_kinds()
    given = {key: every[key] for key in shown if every.get(key) is not None and key not in unread}
    return {key: str(value) if shown[key] is str else value for key, value in given.items()}


def hyperparameter_kinds() -> dict[str, Kind]:
    """The kind of every key that `hyperparameters` can have, for any data set, network and method."""
    kinds: dict[str, Kind] = dict.fromkeys(("method", "stream", "net.model", "seed", "hp.epochs"), str)  # come first
    for key, declaration in _declared():
        accepts = declaration.accepts
        before, kind = kinds.get(key), declaration.kind
        simple = kind is not str or accepts is str or hasattr(accepts, "kind")
        if declaration.machine or not simple:
            continue
        if isinstance(before, tuple) and isinstance(kind, tuple):
            kind = tuple(dict.fromkeys((*before, *kind)))
        kinds[key] = kind
    return kinds | {"method": (*METHODS, METHOD)}


def recipe_keys() -> set[str]:
    """Keys that a hyperparameter YAML can have, for any network."""
    return {key.partition(".")[2] for key, _ in _declared() if key.startswith(("net.", "hp."))}


def value_at(config: BaseConfig, key: str) -> Any:
    """The value at a dotted key."""
    found: Any = config
    for name in key.split("."):
        if isinstance(found, Mapping):  # an evaluation that is not asked has no settings
            found = found.get(name)
        elif found is not None:
            found = getattr(found, name) if hasattr(found, name) else getattr(found.settings, name)
    return found


def _declared() -> Iterator[tuple[str, Declaration]]:
    """Every declared setting of every data set, network and method, by dotted key."""
    yield from {**declarations(TaskRunConfig), **declarations(RunConfig)}.items()
    kinds = {
        "data": [DataConfig, *map(settings_of, STREAMS)],
        "net": [NetConfig, *map(settings_class, [*TRUNKS, "timm/"])],
        "hp": [Recipe],
        "settings": [method.Settings for method in METHODS.values()],
    }
    for name, settings in kinds.items():
        for kind in settings:
            for key, declaration in declarations(kind).items():
                yield f"{name}.{key}", declaration


def _given(path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: Given(value, f"{path}: {key}", path) for key, value in content.items()}


def _section(name: str, prefix: str, content: Mapping[str, Any]) -> Any:
    path = content.get("path")
    where = path.value if isinstance(path, Given) else f"{prefix}{name}"
    own, kind = _own(name, where, content), SECTIONS[name]
    if name == "data":
        dataset, tasks = content["dataset"], content.get("tasks")
        dataset = dataset.value if isinstance(dataset, Given) else dataset
        kind, numbered = config_of(dataset), getattr(STREAMS[dataset], "numbered", None)
        if numbered is not None and isinstance(tasks, Given) and type(tasks.value) is int:
            lists = numbered(Range(1, 10**4).check(tasks.where, tasks.value))
            content = {**content, "tasks": replace(tasks, value=lists)}
    return read(kind, where, content, own)


def _own(name: str, where: str, content: Mapping[str, Any]) -> type:
    """The settings class of the data set or network that a section names."""
    if name == "hp":
        return NoSettings
    key = "dataset" if name == "data" else "model"
    if key not in content:
        raise UserError(f"{where}: key {key!r} is missing")
    entry = content[key]
    value, place = (entry.value, entry.where) if isinstance(entry, Given) else (entry, f"{where}: {key}")
    text = declarations(SECTIONS[name])[key].check(place, value)
    try:
        return settings_of(text) if name == "data" else settings_class(text)
    except UserError as error:
        raise UserError(f"{place}: {str(error).removeprefix('model: ')}") from None
