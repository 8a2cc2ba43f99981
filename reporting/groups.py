"""Sort runs into comparisons (same stream and network) and groups (same options but for the seed)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from records.configuration import keys_where
from records.run import Run
from records.summary import figure
from studies.statistics import mean_interval, paired_p
from studies.store import reference
from studies.tables import ComparisonTable
from utils.errors import UserError
from utils.settings import flat

# Keys of config.yaml that are not options but say where and with what a run was made.
_PROVENANCE = {
    "stream", "compared_with", "extended_from", "derived", "distilled_from", "data_sha256", "versions", "commit",
    "uncommitted_changes", "seed", "metric", "higher_is_better",
}  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    label: str
    runs: Mapping[int, Run]  # by seed


@dataclass(frozen=True)
class Comparison:
    """The groups of one stream and one network."""

    title: str
    groups: Sequence[Group]

    @property
    def runs(self) -> list[Run]:
        return [run for group in self.groups for run in group.runs.values()]

    def table(self) -> ComparisonTable:
        """The results of the finished runs."""
        rows = {
            group.label: {seed: run.summary for seed, run in group.runs.items() if run.finished}
            for group in self.groups
        }  # fmt: skip
        seeds = len({seed for group in self.groups for seed in group.runs})
        return ComparisonTable(self.title, seeds, {label: found for label, found in rows.items() if found})

    def differing_options(self) -> dict[str, dict[str, str]]:
        """Option -> label -> value for the options in which groups differ; `settings` are those of the method."""
        found: dict[str, dict[str, str]] = {}
        for group in self.groups:
            config = next(iter(group.runs.values())).config
            settings = ", ".join(f"{key} {_shown(value)}" for key, value in (config.get("settings") or {}).items())
            options = _options({key: value for key, value in config.items() if key not in ("method", "settings")})
            for key, value in {**options, "settings": settings or None}.items():
                none = dict.fromkeys((other.label for other in self.groups), "–")
                found.setdefault(key, none)[group.label] = "–" if value is None else str(value)
        return {key: values for key, values in found.items() if len(set(values.values())) > 1}

    def behind_best(self) -> list[tuple[str, int, float, float, float]]:
        """For each group: label, common seeds n, mean difference of the final accuracy from that of the best group,
        half-width of its 95 % interval, and p of the paired t-test (studies/statistics.py); NaN for n < 2.
        """
        table = self.table().rows
        scores = {
            label: {seed: figure(values, "avg_acc_final") for seed, values in table[label].items()} for label in table
        }
        if not scores:
            return []
        sign = 1 if self.runs[0].summary["higher_is_better"] else -1
        best = max(scores, key=lambda label: sign * float(np.mean(list(scores[label].values()))))
        lines = []
        for label, found in scores.items():
            common = sorted(found.keys() & scores[best].keys())
            one, other = [found[seed] for seed in common], [scores[best][seed] for seed in common]
            mean, half = mean_interval(list(np.subtract(one, other)))
            lines.append((label, len(common), mean, half, paired_p(one, other)))
        return lines


def compare(
    paths: Sequence[Path], isolated: Sequence[Path] = (), labels: Mapping[Path, str] | None = None
) -> list[Comparison]:
    """Read runs and sort them into comparisons and groups.

    Args:
        isolated: further runs of --method isolated, which runs with the same stream, recipe and seed are compared with
            (as with those among `paths`).
        labels: names of runs (default: the method, and the options in which runs of one method differ).

    Raises:
        UserError: a run cannot be read, two are the same run, or `isolated` matches none.
    """
    runs = [Run.load(path).renumbered() for path in paths]
    given = _references([Run.load(path).renumbered() for path in isolated])
    if isolated and not any(reference(run.config) in given for run in runs):
        raise UserError(
            f"--isolated {isolated[0]} holds no finished run of --method isolated with the stream, options and seed of "
            "any of the runs"
        )
    references = _references(runs) | given
    comparisons: dict[str, dict[str, dict[int, Run]]] = {}
    for run in runs:
        if reference(run.config) in references:
            run = run.against(references[reference(run.config)])
        title = f"{run.config['stream']}, {run.config['net']['model']}"
        seeds = comparisons.setdefault(title, {}).setdefault(json.dumps(_options(run.config)), {})
        seed = run.config["seed"]
        if seed in seeds:
            raise UserError(f"{seeds[seed].path} and {run.path} are the same run with the same seed; leave one out")
        seeds[seed] = run
    return [
        Comparison(title, [Group(label, seeds) for label, seeds in _labelled(list(found.values()), labels or {})])
        for title, found in comparisons.items()
    ]


def _references(runs: Sequence[Run]) -> dict[str, Sequence[float]]:
    return {
        reference(run.config): figure(run.summary, "per_task_acc") for run in runs
        if run.config["method"] == "isolated" and run.finished
    }  # fmt: skip


def _labelled(
    groups: Sequence[Mapping[int, Run]], labels: Mapping[Path, str]
) -> Iterator[tuple[str, Mapping[int, Run]]]:
    """Label each group with its method and the options in which groups of that method differ."""
    configs = [next(iter(group.values())).config for group in groups]
    for config, group in zip(configs, groups, strict=True):
        own = _options(config)
        others = [_options(other) for other in configs if other["method"] == config["method"]]
        keys = [key for key in own if any(other.get(key) != own[key] for other in others)]
        texts = [f"{key.rpartition('.')[2]} {_shown(own[key])}" for key in keys if own[key] is not None]
        first = next(iter(group.values())).path
        yield labels.get(first, ", ".join([config["method"], *texts])), dict(sorted(group.items()))


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run by dotted key, without those that only change where or how fast it computes."""
    values = flat({key: value for key, value in config.items() if key not in _PROVENANCE})
    return {key: value for key, value in values if key not in keys_where("machine")}


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:39] + "…"
