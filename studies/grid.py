"""Plan a benchmark: read the grid of config/benchmark/*.yaml, check it and list its runs.

Published tables (studies/papers.py) are read and planned with the same functions; grids of train_task.py are planned in
studies/task_grid.py.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from datasets.arrangement import drawn_order
from datasets.config import WRITTEN
from methods import METHOD_OPTIONS, METHODS
from records.configuration import fingerprint
from records.invocation import KEPT, options, parse, with_settings
from studies import task_grid
from studies.grid_file import (
    DirectoryNames,
    Options,
    arguments,
    check_label,
    distinct,
    in_words,
    listed,
    read_seeds,
    read_streams,
    undashed,
)
from studies.planned import Grid, PlannedJob, PlannedRun
from utils.errors import UserError, unknown
from utils.yaml_files import load_yaml

AXES = ("program", "streams", "hyperparams", "methods", "seeds", "task_orders", "vary", "together", "against")
# Options that the grid or the program sets itself.
_OWN = {
    "data_config", "hp_config", "method", "seed", "run_dir", "overwrite", "resume", "verify", "extend", "quiet",
    "isolated", "continual",
}  # fmt: skip
# The options of modelzoo.py that a grid can set.
OPTIONS = Options(
    {declared.option: declared for declared in options().values() if declared.option not in _OWN}, ("continual",)
)


class MethodEntry(NamedTuple):
    """A row of the tables: a method, its label and the options of this entry only."""

    method: str
    label: str
    options: Mapping[str, Any]
    untuned: str = ""  # see PlannedRun


class Setup(NamedTuple):
    """What is run with every seed: the paths of its stream and of its network and recipe, and a method."""

    stream: str
    hyper: str
    entry: MethodEntry


def load_grid(path: str, store: Path) -> Grid:
    """Read a grid and plan its runs, whose directories are in `store`; UserError names the file and the key."""
    content = load_yaml(path)
    if "space" in content:
        raise UserError(f"{path}: space makes it a search: benchmark.py search --config {path}")
    program = content.get("program", "modelzoo")
    if not isinstance(program, str) or program not in PROGRAMS:
        raise UserError(f"{path}: program: {unknown('program', program, PROGRAMS)}")
    return PROGRAMS[program](path, content, store)


def _methods_grid(path: str, content: Mapping[str, Any], store: Path) -> Grid:
    """A grid of modelzoo.py."""
    common = {key: OPTIONS.check(path, key, value, AXES) for key, value in content.items() if key not in AXES}
    pairings = read_streams(path, content, OPTIONS)
    entries = [method_entry(f"{path}: methods", entry) for entry in listed(path, content, "methods")]
    setups = [
        Setup(pairing.path, pairing.hyper, _varied(entry, pairing.options, values))
        for pairing in pairings for entry in entries for values in pairing.combinations
    ]  # fmt: skip
    grid = planned(
        path, "methods", store, setups, common, read_seeds(path, content), partial(task_orders, path, content)
    )
    if (label := content.get("against", "")) not in ("", *(labels := {setup.entry.label for setup in setups})):
        raise UserError(f"{path}: against: {unknown('label', label, labels)}")
    return replace(grid, against=label)


PROGRAMS = {"modelzoo": _methods_grid, "train_task": task_grid.plan}


def planned(
    path: str, key: str, store: Path, setups: Sequence[Setup], common: Mapping[str, Any], seeds: Sequence[int],
    orders: Callable[[Sequence[PlannedRun]], Sequence[int]] = lambda runs: (),
) -> Grid:  # fmt: skip
    """Every setup with every seed and, if there are `orders` for these runs, every order of its tasks.

    Errors name the file and the key that lists the methods.
    """
    entries = [setup.entry for setup in setups]
    used = set[str]().union(*(METHODS[entry.method].options for entry in entries))
    for name in common:
        if name in METHOD_OPTIONS and name not in used:
            raise UserError(f"{path}: {name} is not used by any method of the grid; leave it out")
    models, names = [_run(f"{path}: {key}", store, setup, common) for setup in setups], DirectoryNames(store)
    if numbers := orders(models):
        models = [_with_order(path, run, order) for order in numbers for run in models]
    parts = [fingerprint(run.config, ("seed",)) for run in models]
    runs = [_with_seed(run, seed, names, part) for seed in seeds for run, part in zip(models, parts, strict=True)]
    jobs = distinct(path, [PlannedJob(run.name, run.arguments, (run,)) for run in runs])
    notes = [f"{name} {value}" for name, value in common.items()]
    notes += [f"{entry.label}: {name} {value}" for entry in entries for name, value in entry.options.items()]
    notes += [f"{run.label}: all tasks at once" for run in runs if not run.config.continual]
    return Grid(jobs, "; ".join(dict.fromkeys(notes)) or "all defaults")


def method_entry(where: str, entry: object, files: Sequence[str] = ()) -> MethodEntry:
    """A method from its name or a mapping; `files`: those of FILES that may be among its options."""
    given: dict[str, Any] = dict(entry) if isinstance(entry, dict) else {"method": entry}
    if "method" not in given:
        raise UserError(f"{where}: {entry!r} has no key 'method', such as method: zoo")
    method = given.pop("method")
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(f"{where}: {unknown('method', method, METHODS)}")
    label = check_label(where, given.pop("label", method))
    where = f"{where}: {label}"
    own = {key: OPTIONS.check(where, key, value, ("label", "method"), files) for key, value in given.items()}
    return MethodEntry(method, label, own)


def _varied(entry: MethodEntry, common: Mapping[str, Any], values: Mapping[str, Any]) -> MethodEntry:
    """The entry with options of its stream and varied values, which the label then names."""
    label = ", ".join([entry.label, *in_words(values)])
    rest = {key: value for key, value in values.items() if not key.startswith("hp.")}
    untuned = ", ".join([entry.label, *in_words(rest)]) if len(rest) < len(values) else ""
    return MethodEntry(entry.method, label, {**used_by(entry.method, common), **values, **entry.options}, untuned)


def used_by(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that the method uses."""
    own = METHODS[method].options
    return {key: value for key, value in given.items() if key not in METHOD_OPTIONS or key in own}


def replaced(given: Mapping[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """The options with others on top; one that says how many examples are kept replaces all that do."""
    gone: Collection[str] = KEPT if any(key in KEPT for key in by) else ()
    return {**{key: value for key, value in given.items() if key not in gone}, **by}


def _run(where: str, store: Path, setup: Setup, common: Mapping[str, Any]) -> PlannedRun:
    """The run with seed 0, in no directory yet."""
    entry, modes = setup.entry, METHODS[setup.entry.method].modes
    given = {"continual": True, **used_by(entry.method, common)}
    given["continual"] &= "continual" in modes
    chosen = {"data_config": setup.stream, "hp_config": setup.hyper, "method": entry.method}
    words = arguments(replaced(given, chosen | dict(entry.options)))
    try:
        config = with_settings(parse(words))
    except UserError as error:
        raise UserError(f"{where}: {entry.label}: {undashed(error)}") from None
    net = Path(setup.hyper).stem
    return PlannedRun(store, "", entry.label, net, config, tuple(words), entry.untuned)


def task_orders(path: str, content: Mapping[str, Any], runs: Sequence[PlannedRun]) -> list[int]:
    """The numbers that draw the task orders of a grid; UserError if two of them draw the same order on a stream.

    A number n in the file stands for the smallest n numbers that draw different orders on every stream.
    """
    if "task_orders" not in content:
        return []
    asked = read_seeds(path, content, "task_orders")
    streams = {(len(run.config.data.tasks), run.config.data.first_tasks): run.config.stream for run in runs}
    streams.pop((0, None), None)  # the file of the tasks is not there
    for (count, first), stream in streams.items():
        if len(asked) > (possible := math.perm(count, min(first or count, count))):
            raise UserError(f"{path}: task_orders has {len(asked)} orders; the tasks of {stream} have {possible}")
    numbers = iter(asked) if isinstance(content["task_orders"], list) else itertools.count()
    known, found = dict[tuple[object, ...], int](), list[int]()
    while len(found) < len(asked):
        number = next(numbers)
        drawn = {(stream, *drawn_order(number, count)[:first]): number for (count, first), stream in streams.items()}
        if not (twice := known.keys() & drawn.keys()):
            known |= drawn
            found.append(number)
        elif not isinstance(numbers, itertools.count):
            stream, other = next((str(key[0]), known[key]) for key in twice)
            raise UserError(
                f"{path}: task_orders: {other} and {number} draw the same order of the tasks of {stream}; leave one out"
            )
    return found


def _with_order(path: str, run: PlannedRun, order: int) -> PlannedRun:
    """The run with its tasks in the order that a number draws; UserError if their order is drawn already."""
    data = run.config.data
    if data.task_order != WRITTEN:
        raise UserError(
            f"{path}: task_orders draws the order of the tasks; {run.label} has task_order: {data.task_order} already"
        )
    config = replace(run.config, data=replace(data, task_order=order))
    return replace(run, config=config, arguments=(*run.arguments, *arguments({"data.task_order": order})))


def _with_seed(run: PlannedRun, seed: int, names: DirectoryNames, determined_by: str) -> PlannedRun:
    """The run with a seed; `determined_by`: a checksum of everything else."""
    order = run.config.data.numbered_order
    words = (run.config.stream, run.net, run.label, "" if order is None else f"order{order}", f"seed{seed}")
    name = names.name(words, f"{determined_by} {seed}")
    directory = run.directory / name
    arguments = (*run.arguments, f"--seed={seed}", f"--run_dir={directory}")
    return replace(run, directory=directory, name=name, config=replace(run.config, seed=seed), arguments=arguments)
