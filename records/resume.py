"""Going on with a run: with the options and the data that it was begun with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from records.directory import CONFIG
from utils.config import RunConfig, load_settings, saved_config
from utils.errors import UserError
from utils.options import Invocation

# Options that cannot change the result are not in RunConfig, but for this one: where the same data lie.
_FREE = "data_dir"


def resumed(invocation: Invocation, saved: Mapping[str, Any]) -> Invocation:
    """The invocation with the configuration of the interrupted run.

    Args:
        saved: what its config.yaml holds.

    Raises:
        UserError: config.yaml is damaged, or the command line asks for something else; names the keys.
    """
    path = str(invocation.run_dir / CONFIG)
    config = saved_config(path, saved)
    if differing := sorted(name for name in invocation.given if _differs(name, invocation, config)):
        raise UserError(
            f"--resume: {path} has another {', '.join(differing)}; leave out what has changed, "
            "or name another --run_dir for another run"
        )
    if _FREE in invocation.given:
        config = replace(config, data_dir=invocation.config.data_dir)
    return replace(invocation, config=config, isolated=invocation.isolated or compared_with(saved))


def extended(invocation: Invocation, saved: Mapping[str, Any]) -> Invocation:
    """The invocation with the configuration of a finished run and the tasks of --data_config after its own.

    Args:
        saved: what its config.yaml holds.

    Raises:
        UserError: config.yaml is damaged, the run cannot be extended, or the tasks are of other data.
    """
    assert invocation.extend is not None
    path = str(invocation.extend / CONFIG)
    config, more = saved_config(path, saved), invocation.config.dataset
    if not config.continual:
        raise UserError(f"--extend: {invocation.extend} has learned all tasks at once; only --continual runs go on")
    differing = [name for name in invocation.given - {"data_config"} if _differs(name, invocation, config)]
    if differing:
        raise UserError(
            f"--extend: {path} has another {', '.join(sorted(differing))}; leave it out: more tasks are learned as the "
            "first ones were"
        )
    for key in ("dataset", "root", "image_size", "augment"):
        if getattr(more, key) != getattr(config.dataset, key):
            raise UserError(
                f"--extend: {more.path} has {key}: {getattr(more, key)}, but the tasks of {invocation.extend} have "
                f"{getattr(config.dataset, key)}; members can only share tasks of the same data set"
            )
    dataset = replace(config.dataset, tasks=(*config.dataset.tasks, *more.tasks))
    data_dir = invocation.config.data_dir if _FREE in invocation.given else config.data_dir
    return replace(invocation, config=replace(config, dataset=dataset, data_dir=data_dir))


def extended_from(saved: Mapping[str, Any]) -> Path | None:
    """The run that an extension began with."""
    base = saved.get("extended_from")
    return Path(base) if isinstance(base, str) else None


def compared_with(saved: Mapping[str, Any]) -> Path | None:
    """The isolated run that an interrupted run was to be compared with."""
    reference = saved.get("compared_with")
    return Path(reference) if isinstance(reference, str) else None


def _differs(name: str, invocation: Invocation, config: RunConfig) -> bool:
    """Whether an option that was given would make another run."""
    asked = invocation.config
    if name == "data_config":
        return replace(asked.dataset, path="") != replace(config.dataset, path="")
    if name == "hp_config":
        return replace(asked.hyper, path="") != replace(config.hyper, path="")
    if name == "epochs":
        return asked.hyper.epochs != config.hyper.epochs
    if name == "no_augment":
        return config.augment
    if name == "method_config":
        path = str(invocation.method_config)
        return load_settings(path, dict.fromkeys(config.settings), config.stream) != config.settings
    if name in ("device", "precision") and getattr(asked, name) == "auto":
        return False
    return name in vars(asked) and name != _FREE and getattr(asked, name) != getattr(config, name)


def check_data_of(base: Path, saved: Mapping[str, Any], fingerprint: str, data_dir: Path) -> None:
    """The data of the tasks that are learned already are those that they were learned from.

    Raises:
        UserError: they are not.
    """
    if saved.get("data_sha256") != fingerprint:
        raise UserError(
            f"{data_dir}: the data are not those that {base} was trained on (data_sha256 in its {CONFIG}); put "
            "them back"
        )


def check_same_data(run_dir: Path, saved: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
    """The data are those that the run was begun with. Other versions of libraries are warned of on stderr.

    Args:
        saved, resolved: config.yaml as it is, and as it would be now.

    Raises:
        UserError: the data have changed.
    """
    if "data_sha256" not in saved:
        raise UserError(f"{run_dir} was begun by an older version, which could not go on; begin anew with --overwrite")
    if saved["data_sha256"] != resolved["data_sha256"]:
        raise UserError(
            f"{resolved['data_dir']}: the data are not those that {run_dir} was begun with (data_sha256 in its "
            f"{CONFIG}); put them back, or begin anew with --overwrite"
        )
    versions = saved.get("versions")
    before_all = {**(versions if isinstance(versions, dict) else {}), "commit": saved.get("commit")}
    for name, version in {**resolved["versions"], "commit": resolved["commit"]}.items():
        before = before_all.get(name)
        if before != version:
            print(f"begun with {name} {before}, goes on with {version}: not the same to the bit", file=sys.stderr)
