"""Resuming and extending a run with the options and the data that it was begun with."""

import sys
from collections.abc import Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from methods import METHODS, check_name
from methods.config import BaseConfig, RunConfig
from records.configuration import keys_where, saved_config, value_at
from records.directory import CONFIG
from records.invocation import Command, Invocation, options
from records.task_config import METHOD
from utils.errors import UserError
from utils.settings import declarations, plain, read

C = TypeVar("C", bound=BaseConfig)


def resumed(invocation: Invocation, saved: Mapping[str, Any]) -> Invocation:
    """The invocation with the configuration of the interrupted run, whose config.yaml is `saved`."""
    path = str(invocation.run_dir / CONFIG)
    if saved.get("method") == METHOD:
        raise UserError(f"--resume: {invocation.run_dir} is a run of train_task.py; resume it with that program")
    config = saved_config(path, saved)
    check_name(config.method, f"{path}: method: ")
    if differing := _differing(invocation, config, invocation.given):
        raise UserError(
            f"--resume: {path} has another {', '.join(differing)}; leave out what has changed, "
            "or name another --run_dir for another run"
        )
    command = replace(invocation.command, isolated=invocation.command.isolated or other_run(saved, "compared_with"))
    return replace(invocation, config=with_free(invocation.config, invocation.given, config), command=command)


def extended(invocation: Invocation, saved: Mapping[str, Any]) -> Invocation:
    """The invocation with the configuration of a finished run, whose config.yaml is `saved`, and more tasks."""
    base = invocation.command.extend
    path = f"{base}/{CONFIG}"
    config, more = saved_config(path, saved), invocation.config.data
    check_name(config.method, f"{path}: method: ")
    if not config.continual:
        raise UserError(f"--extend: {base} has learned all tasks at once; only --continual runs can be extended")
    if config.data.first_tasks is not None:
        raise UserError(f"--extend: {base} learned the first {config.data.first_tasks} tasks alone; no others can join")
    if config.data.drawn:
        raise UserError(
            f"--extend: the tasks of {base} were drawn from its seed ({config.data.drawn}), all at once; none can join"
        )
    if (order := config.data.numbered_order) is not None:
        raise UserError(f"--extend: the order of the tasks of {base} was drawn (task_order: {order}); none can join")
    if differing := _differing(invocation, config, invocation.given - {"data_config"}):
        raise UserError(
            f"--extend: {path} has another {', '.join(differing)}; leave it out: more tasks are learned as the "
            "first ones were"
        )
    theirs, ours = (
        {"dataset": data.dataset, "task_order": data.task_order, **plain(data.settings)} for data in (config.data, more)
    )
    for key in theirs:
        if ours.get(key) != theirs[key]:
            raise UserError(
                f"--extend: {more.path} has {key}: {ours.get(key)}, but the tasks of {base} have {theirs[key]}; "
                "members can only share tasks of the same data set"
            )
    data = replace(config.data, tasks=(*config.data.tasks, *more.tasks))
    return replace(invocation, config=with_free(invocation.config, invocation.given, replace(config, data=data)))


def other_run(saved: Mapping[str, Any], key: str) -> Path | None:
    """The run that config.yaml names as "compared_with" (--isolated) or "extended_from"."""
    path = saved.get(key)
    return Path(path) if isinstance(path, str) else None


def with_free(asked: BaseConfig, given: frozenset[str], config: C) -> C:
    """The configuration with the values that a command gives to settings that a resumed run may change."""
    found = {key: value_at(asked, key) for key in keys_where("free") & given}
    data = {key.removeprefix("data."): found.pop(key) for key in list(found) if key.startswith("data.")}
    return replace(config, data=replace(config.data, **data), **found)


def _differing(invocation: Invocation, config: RunConfig, given: frozenset[str]) -> list[str]:
    """Options and dotted keys on this command line that contradict the configuration."""
    names = {key: declared.option for key, declared in options().items()}
    return sorted(names.get(key, key) for key in given if _differs(key, invocation, config))


def _differs(key: str, invocation: Invocation, config: RunConfig) -> bool:
    if key == "method_config":
        return bool(invocation.settings_of(config.method) != config.settings)
    if key.startswith("settings."):
        content = {**plain(config.settings), **invocation.changes}
        changed: Any = read(METHODS[config.method].Settings, "settings", content)
        return bool(changed != config.settings)
    return differs(key, invocation.config, config, declarations(Command))


def differs(key: str, asked: BaseConfig, config: BaseConfig, own: Container[str]) -> bool:
    """Whether a key that is given contradicts the configuration of a run; `own`: options that are no part of it."""
    if key == "data_config":
        mine, theirs = (
            (data.dataset, data.tasks, data.task_order, data.settings) for data in (asked.data, config.data)
        )
        return mine != theirs
    if key == "hp_config":
        return replace(asked.net, path="") != replace(config.net, path="") or asked.hp != config.hp
    if key in own or key in keys_where("free"):
        return False
    value = value_at(asked, key)
    return not (key in ("device", "precision") and value == "auto") and value != value_at(config, key)


def check_same_data(path: Path, saved: Mapping[str, Any], now: Mapping[int, str], data_dir: Path) -> None:
    """Check that tasks with the fingerprints `now` have the data of the run at `path`, with config.yaml `saved`."""
    if saved["data_sha256"] | now != now | saved["data_sha256"]:
        reason = f"the data are not those that {path} was trained on (data_sha256 in its {CONFIG})"
        raise UserError(f"{data_dir}: {reason}; put them back")


def warn_of_versions(saved: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """Print a warning if a version or the number of threads in config.yaml (`saved`) is another than now."""
    before, now = ({**of["versions"], "commit": of["commit"], "threads": of["threads"]} for of in (saved, resolved))
    for name, version in now.items():
        if (was := before.get(name)) != version:
            print(f"begun with {name} {was}, resumed with {version}: not the same to the bit", file=sys.stderr)
