"""The figures of several runs side by side."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from datasets.scenarios import SCENARIOS
from records.summary import figure
from reporting.affinity import affinity_over_runs
from reporting.drawing import DrawnFigure, against_steps, height, label_ends, measured, short
from reporting.groups import Group
from reporting.mechanism_matrices import mechanism_over_episodes
from reporting.style import empty_figure, line_style, percent
from studies.tables import readable, share

_BANDS = 7  # the most groups that have a band around their lines
_COSTS = {"train_seconds": "training time, seconds", "bytes": "stored, bytes",
          "parameters_per_prediction": "parameters asked per prediction"}  # fmt: skip


def scenario_of(group: Group) -> str:
    """The scenario of the runs of a group."""
    return str(group.first.config["data"]["scenario"])


def across_scenarios(groups: Sequence[Group]) -> pd.DataFrame:
    """Final accuracy in each scenario, a row for each method; with † what heads trained with the task told do without.

    A method with several groups in one scenario has a row for each of them.
    """
    found: dict[str, dict[str, str]] = {}
    for group in sorted(groups, key=lambda group: SCENARIOS.index(scenario_of(group))):
        scenario, method = scenario_of(group), str(group.first.config["method"])
        means = {scenario: _mean(group, "avg_acc_final")}
        if scenario == "task":
            routed = {"domain": _mean(group, "routed_domain_acc"), "class": _mean(group, "routed_class_acc")}
            means |= {name: f"{value} †" for name, value in routed.items() if value}
        before = found.get(method, {})
        taken = before.get(scenario, "†")[-1] != "†"
        found[f"{method}: {group.label}" if taken else method] = means if taken else before | means
    rows = [[method, *(values.get(name, "") for name in SCENARIOS)] for method, values in found.items()]
    return pd.DataFrame(rows, columns=["method", *SCENARIOS])


def _mean(group: Group, key: str) -> str:
    """The mean over finished runs of a figure, "" where it was not measured."""
    values = [figure(run.summary, key) for run in group.runs.values() if run.finished]
    return "" if not values or None in values else share(sum(values) / len(values))


def of_several_runs(groups: Sequence[Group]) -> list[DrawnFigure]:
    """All figures that these runs have the data for."""
    drawn = (
        accuracy_over_episodes(groups),
        mechanism_over_episodes(groups),
        accuracy_against_cost(groups),
        affinity_over_runs(groups),
    )
    return [picture for picture in drawn if picture]


def accuracy_over_episodes(groups: Sequence[Group]) -> DrawnFigure | None:
    """Mean accuracy on the tasks seen so far, a line for each group; None if all runs learned all tasks at once."""
    drawn, (axes,) = empty_figure(height(len(groups), 3.6))
    first, lines = groups[0].first, []
    ends: list[tuple[float, str, str]] = []
    for number, group in enumerate(groups):
        runs = {seed: run for seed, run in group.runs.items() if run.continual}
        if not runs:
            continue
        length = min(len(run.episodes) for run in runs.values())
        means = np.array([np.nanmean(run.accuracy_matrix[:length], 1) for run in runs.values()])
        episodes, form = np.arange(1, length + 1), line_style(number)
        axes.plot(episodes, means.mean(0), markersize=3, **form)  # type: ignore[arg-type]
        if len(groups) <= _BANDS:
            axes.fill_between(episodes, means.min(0), means.max(0), color=form["color"], alpha=0.15, linewidth=0)
        for seed, row in zip(runs, means, strict=True):
            lines.append(pd.DataFrame({"run": group.label, "seed": seed, "episode": episodes, first.metric: row}))
        ends.append((float(means.mean(0)[-1]), group.label, form["color"]))
    if not lines:
        return None
    data = pd.concat(lines)
    shown = "mean test accuracy on tasks seen, %" if first.shows_accuracy else f"mean {measured(first)}, on tasks seen"
    against_steps(axes, "episode", shown, first.shows_accuracy)
    label_ends(axes, data.episode.max(), *zip(*ends, strict=True))
    caption = f"Mean test {first.metric} on the tasks seen so far, after each episode: the mean over seeds" + (
        ", and the range from the lowest to the highest seed." if len(groups) <= _BANDS else "."
    )
    title = f"{first.metric.capitalize()} over episodes"
    return DrawnFigure("accuracy_over_episodes", title, caption, drawn, data)


def accuracy_against_cost(groups: Sequence[Group]) -> DrawnFigure | None:
    """Final accuracy against training time, storage and inference cost, a point for each group."""
    lines = []
    for group in groups:
        for seed, run in group.runs.items():
            found = run.summary
            # A run from which a task was removed does not know what it stored.
            if run.finished and run.shows_accuracy and found["stored_bytes"] is not None:
                stored = found["stored_bytes"] + 4 * found["parameters_total"]
                lines.append((group.label, seed, found["avg_acc_final"], found["train_seconds"], stored,
                              found["parameters_per_prediction"]))  # fmt: skip
    if not lines:
        return None
    data = pd.DataFrame(lines, columns=["run", "seed", "accuracy", *_COSTS])
    forms = {group.label: {**line_style(number), "linestyle": "none"} for number, group in enumerate(groups)}
    labels = list(dict.fromkeys(data.run))
    columns = 3 if max(map(len, labels)) <= 15 else 2
    drawn, axes = empty_figure(6.2 + 0.17 * -(-len(labels) // columns), len(_COSTS), 1)
    for panel, (key, title) in zip(axes, _COSTS.items(), strict=True):
        for label in labels:
            part = data[data.run == label]
            panel.plot(part[key].mean(), part.accuracy.mean(), markersize=6, label=short(label), **forms[label])  # type: ignore[arg-type]
            ends = [part.accuracy.min(), part.accuracy.max()]
            panel.plot([part[key].mean()] * 2, ends, color=forms[label]["color"], linewidth=1)
        panel.set(xlabel=title, ylabel="final accuracy, %", xscale="log")
        percent(panel.yaxis)
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(lambda value, _: readable(value))
        panel.xaxis.set_minor_formatter(NullFormatter())
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, handletextpad=0.2)
    caption = (
        "What accuracy costs: final test accuracy against seconds in training loops, bytes that are stored (examples, "
        "and parameters at four bytes), and parameters of the networks that answer one example. Points are means over "
        "seeds, bars reach from the lowest to the highest seed; upper left is best."
    )
    return DrawnFigure("accuracy_against_cost", "Accuracy against cost", caption, drawn, data)
