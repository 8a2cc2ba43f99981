"""Runs that are prepared once, to be mutated: finished, interrupted, extended, distilled, with a task forgotten."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import distill
import forget
import modelzoo
from records.checkpoints import RunCheckpoints
from records.manifest import MANIFEST, Entry, Manifest
from studies.grid import load_grid
from tests.fuzz.cases import Files, write
from tests.fuzz.inputs import CONTINUAL, OPTIONS, STORE_GRID, STREAM, TINY

PREPARED: dict[str, Files] = {}
MADE_WITH = {
    "finished": [*CONTINUAL, "--samples", "4"],
    "isolated": [*CONTINUAL, "--samples", "4", "--method", "isolated"],
    "interrupted": [*CONTINUAL, "--samples", "8"],
    "between": [*CONTINUAL, "--samples", "8", "--memory_per_class", "2"],
    "interrupted er": [*CONTINUAL, "--samples", "8", "--method", "er", "--memory_per_class", "2"],
    "interrupted ewc": [*CONTINUAL, "--samples", "8", "--method", "ewc"],
    "interrupted packnet": [*CONTINUAL, "--samples", "8", "--method", "packnet"],
    "interrupted joint": [*OPTIONS, "--samples", "8", "--method", "joint"],
    "interrupted gpm": [*CONTINUAL, "--samples", "8", "--method", "gpm"],
}
SAVED_STREAM = {
    **TINY,
    "t.yaml": b"dataset: digits\ntasks: [[0, 1], {name: middle, classes: [2, 3, 4]}, [5, 6]]\n",
    "more.yaml": b"dataset: digits\ntasks: [{name: next, classes: [7, 8, 9]}]\n",
    "m.yaml": b"tasks: 4\nbn: per_task\n",
}
_RECIPE = ["--data_config", "t.yaml", *OPTIONS[2:], "--samples", "10", "--hold_out", "0.3"]
_CONTINUAL = [*_RECIPE, "--continual"]
SAVED_WITH = {
    "saved zoo": [*_CONTINUAL, "--tasks_per_round", "2"],
    "saved zoo of few": [*_CONTINUAL, "--tasks_per_round", "2", "--memory_per_class", "2"],
    "saved isolated": [*_CONTINUAL, "--method", "isolated"],
    "saved er": [*_CONTINUAL, "--method", "er", "--memory_per_class", "2"],
    "saved packnet": [*_CONTINUAL, "--method", "packnet", "--method_config", "m.yaml"],
    "saved joint": [*_RECIPE, "--method", "joint"],
}
# From a zoo in the folder `before`.
DERIVED_WITH: dict[str, tuple[Any, list[str]]] = {
    "forgotten": (forget, ["before", "--task", "1", "--retrain", "--run_dir", "run", "--quiet"]),
    "student": (distill, ["before", "--run_dir", "run", "--epochs", "1", "--quiet"]),
    "extended": (modelzoo, ["--extend", "before", "--data_config", "more.yaml", "--run_dir", "run", "--quiet"]),
}
SAVED = [*SAVED_WITH, *DERIVED_WITH]


def prepare(name: str) -> None:
    """A run in the current folder, stopped in its second episode if it is to be an interrupted one."""
    if name in DERIVED_WITH:
        return derive(name)
    write(SAVED_STREAM if name in SAVED_WITH else STREAM)
    if name in ("finished", "isolated", *SAVED_WITH):
        stops = 0
    else:
        stops = {"interrupted": 4, "between": 2, "interrupted joint": 2}.get(name, 3)
    due, seen = RunCheckpoints.due, [0]

    def counted(self: RunCheckpoints, *, epoch_ends: bool = False) -> bool:
        seen[0] += not epoch_ends
        if seen[0] == stops:
            self._signal = 15
        return due(self, epoch_ends=epoch_ends)

    with patch.object(RunCheckpoints, "due", counted):
        code = modelzoo.main([*(MADE_WITH | SAVED_WITH)[name], "--quiet"])
    if code != (143 if stops else 0):
        raise RuntimeError(f"{name}: exit code {code}")


def derive(name: str) -> None:
    """A run in the current folder that is made from another run."""
    write(SAVED_STREAM)
    program, arguments = DERIVED_WITH[name]
    made = modelzoo.main([*SAVED_WITH["saved zoo"], "--run_dir", "before", "--quiet"])
    if made or program.main(arguments):
        raise RuntimeError(f"{name} could not be prepared")


def prepare_and_tell(name: str, send: Callable[[object], None]) -> None:
    prepare(name)
    send(name)


def keep(name: str, run: Path) -> None:
    """Remember the files of a run that was prepared."""
    PREPARED[name] = {f"run/{path.relative_to(run).as_posix()}": path.read_bytes()
                      for path in sorted(run.rglob("*")) if path.is_file()}  # fmt: skip


def prepared(name: str) -> Files:
    """Its files, in the folder `run`."""
    return {**STREAM, **PREPARED[name]}


def saved(name: str) -> Files:
    """Its files, in the folder `run`."""
    return {**SAVED_STREAM, **PREPARED[name]}


def fitted(files: Files, manifest: Manifest, run: str = "run") -> bytes:
    """manifest.json for the files as they are now, as one would write it who wants them to be taken."""
    entries = {
        name: Entry(len(files[f"{run}/{name}"]), hashlib.sha256(files[f"{run}/{name}"]).hexdigest())
        for name in manifest.files if isinstance(files.get(f"{run}/{name}"), bytes)
    }  # fmt: skip
    return Manifest(manifest.episode, manifest.members, manifest.seconds, entries).content()


def manifest_of(files: Files, run: str = "run") -> Manifest:
    content = json.loads(files[f"{run}/{MANIFEST}"])
    entries = {name: Entry(*entry) for name, entry in content["files"].items()}
    return Manifest(content["episode"], content["members"], content["seconds"], entries)


@cache
def names_in_store() -> dict[str, str]:
    """The directories of the runs of STORE_GRID in a store, by label."""
    with tempfile.TemporaryDirectory() as folder:
        grid = STORE_GRID.decode().replace("[d.yaml]", f"[{folder}/d.yaml]").replace("[h.yaml]", f"[{folder}/h.yaml]")
        for name, content in {**STREAM, "g.yaml": grid.encode()}.items():
            Path(folder, name).write_bytes(content)
        return {run.label: run.name for run in load_grid(f"{folder}/g.yaml", Path(folder)).runs}
