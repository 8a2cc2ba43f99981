"""Sort runs into comparisons (same data and model) and groups (same options but for the seed and a drawn order)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from net.config import network_title
from records.configuration import comparable, determining, obstacle
from records.run import Run
from records.summary import by_task
from studies.replicates import Replicate, replicate_of, without_order
from studies.store import titles
from studies.tables import ComparisonTable
from utils.errors import UserError
from utils.settings import flat


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed, or in the number that the order of their tasks is drawn from."""

    label: str
    runs: Mapping[Replicate, Run]

    @property
    def first(self) -> Run:
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Comparison:
    """The groups with the same data and the same model of network (or sequence mixers), whose settings may differ."""

    title: str
    groups: Sequence[Group]

    def table(self) -> ComparisonTable:
        """The results of the finished runs."""
        rows = {
            group.label: {seed: run.summary for seed, run in group.runs.items() if run.finished}
            for group in self.groups
        }  # fmt: skip
        every = {replicate for group in self.groups for replicate in group.runs}
        seeds, orders = len({each.seed for each in every}), len({each.order for each in every})
        return ComparisonTable(self.title, seeds, {label: found for label, found in rows.items() if found}, orders)

    def differing_options(self) -> dict[str, list[str]]:
        """Option -> its value in each group, where groups differ; `settings` are those of the method."""
        options = []
        for config in (group.first.config for group in self.groups):
            settings = ", ".join(f"{key} {_shown(value)}" for key, value in config["settings"].items())
            own = {key: value for key, value in config.items() if key not in ("method", "settings")}
            options.append({**_options(own), "settings": settings})
        keys = dict.fromkeys(chain(*options))
        found = {key: [_shown(own.get(key)) for own in options] for key in keys}
        return {key: values for key, values in found.items() if len(set(values)) > 1}


def compare(
    paths: Sequence[Path], isolated: Sequence[Path] = (), labels: Mapping[Path, str] | None = None
) -> list[Comparison]:
    """Read runs and sort them into comparisons and groups; UserError if `isolated` fits none, or two are the same.

    Runs of --method isolated, among the runs or `isolated`, are what others with the same data, recipe and seed are
    compared with. `labels`, by run directory, replace the usual labels of groups.
    """
    runs = [Run.load(path) for path in paths]
    given = [Run.load(path) for path in isolated]
    if isolated and all(_isolated(run, given) is None for run in runs):
        raise UserError(
            f"--isolated {isolated[0]} holds no finished run of --method isolated with the stream, options and seed of "
            "any of the runs"
        )
    comparisons: dict[str, dict[str, dict[Replicate, Run]]] = {}
    headings = titles([(f"{run.config['stream']}, {network_title(run.config['net'])}", run.config) for run in runs])
    for title, run in zip(headings, runs, strict=True):
        alone = _isolated(run, [*given, *runs])
        run = (run if alone is None else run.against(alone)).renumbered()
        seeds = comparisons.setdefault(title, {}).setdefault(json.dumps(_options(run.config)), {})
        seed = replicate_of(run.config)
        if seed in seeds:
            raise UserError(f"{seeds[seed].path} and {run.path} are the same run with the same seed; leave one out")
        seeds[seed] = run
    return [Comparison(title, _labelled(list(found.values()), labels or {})) for title, found in comparisons.items()]


def _isolated(run: Run, others: Sequence[Run]) -> dict[int, float] | None:
    """By task, the main metric of the first finished run of --method isolated that `run` can be compared with."""
    for other in others:
        fits = other.config["method"] == "isolated" and other.finished
        if fits and obstacle(other.config, run.config) is None:
            return by_task(other.summary, "per_task_acc")
    return None


def _labelled(groups: Sequence[Mapping[Replicate, Run]], labels: Mapping[Path, str]) -> list[Group]:
    """Label each group with its method or, where groups have the same one, with the name of its first run."""
    firsts = [next(iter(runs.values())) for runs in groups]
    methods = [run.config["method"] for run in firsts]
    found: dict[str, Group] = {}
    for first, method, runs in zip(firsts, methods, groups, strict=True):
        name = first.name if len(runs) == 1 else re.sub(r"(?<=.)([-_ ]*order\d+)?[-_ ]*(seed)?\d+$", "", first.name)
        label = labels.get(first.path, name if methods.count(method) > 1 else method)
        label = next(text for text in (label, name, str(first.path)) if text not in found)
        found[label] = Group(label, dict(sorted(runs.items())))
    return list(found.values())


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    more = flat({key: config[key] for key in ("retrained", "teacher") if key in config})
    found = without_order({**determining(config), **comparable(config, ["data"]), **dict(more)})
    return {key: value for key, value in found.items() if key != "seed"}


def _shown(value: object) -> str:
    if value in (None, [], ""):
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
