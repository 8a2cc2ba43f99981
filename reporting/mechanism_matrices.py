"""Mechanisms across the episodes of modelzoo.py: the matrix R_m beside R, for one run and for methods side by side."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from evaluation.interchange import NAMED
from records.run import Array, Run
from reporting.drawing import DrawnFigure, cells, count_from_one, short
from reporting.groups import Group
from reporting.layout import Sheet
from reporting.mechanism_figures import undefined_in_grey
from reporting.mechanisms import INTERCHANGE
from reporting.style import DIVERGING, SHADES, empty_figure, line_style, percent, whole

MAIN = "induction"
_NUMBERED = 8  # the most columns of a panel whose cells show numbers
_WHERE = (
    "They are the share of the lost probability of the answer that the input of the second layer restores at one "
    "position when the original query is replaced: induction at the target, direct early at the query, direct late at "
    "the original query. Where the target stands before the original query, induction is that at the original query "
    "when the target is replaced"
)


def matrices(run: Run) -> dict[str, Array]:
    """R_m of each association that is defined anywhere, by name; none if interchange was not asked."""
    if not any(row.scenario == INTERCHANGE for row in run.rows):
        return {}
    found = {score: run.mechanism_matrix(score) for score in NAMED}
    return {score: R_m for score, R_m in found.items() if np.isfinite(R_m).any()}


def mechanism_matrices(run: Run) -> DrawnFigure | None:
    """R and the R_m of each association, a row for each episode; None if there is none."""
    found = matrices(run)
    if not found or not run.shows_accuracy:
        return None
    shown = {"accuracy, %": run.accuracy_matrix, **found}
    rows, columns = run.accuracy_matrix.shape
    down = -(-len(shown) // 2)
    drawn, panels = empty_figure(down * float(np.clip(0.26 * rows + 0.75, 1.5, 3)), down, 2)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    lines = []
    for number, (axes, (title, values)) in enumerate(zip(panels, shown.items(), strict=False)):
        low, palette, text = (-1, DIVERGING, _plain) if number else (0, SHADES, _percent)
        image = cells(axes, np.ma.masked_invalid(values), undefined_in_grey(palette), Normalize(low, 1),
                      text if columns <= _NUMBERED else None)  # fmt: skip
        count_from_one(axes, columns, rows)
        axes.set_title(title)
        bar = drawn.colorbar(image, ax=axes, pad=0.02, format=lambda value, _, text=text: text(value))
        bar.locator = MaxNLocator(4)
        bar.outline.set_visible(False)  # type: ignore[operator]
        if number >= len(shown) - 2:
            axes.set_xlabel("task")
        if number % 2 == 0:
            axes.set_ylabel("after episode")
        lines += [(title.removesuffix(", %"), episode + 1, run.task_labels[task], value)
                  for (episode, task), value in np.ndenumerate(values)]  # fmt: skip
    caption = (
        "Is a mechanism forgotten before or after the behaviour? Row k, column t: the accuracy on the test examples of "
        "task t after episode k, and associations, R_m[k, t], of the networks that answer the task then: their mean, "
        f"where there are several. {_WHERE}; colours end at -1 and 1. Grey: not seen yet, or not defined, as the "
        "replacement lowers the probability of the answer by less than 0.05, as of a task "
        "that is no longer answered."
    )
    data = pd.DataFrame(lines, columns=["score", "episode", "task", "value"]).dropna()
    return DrawnFigure("mechanism_matrix", "Behaviour and mechanism", caption, drawn, data)


def ranges(run: Run) -> pd.DataFrame:
    """Lines task, score, networks, defined, mean, lowest, highest: the networks that answer each task in the end."""
    lines = []
    for score in matrices(run):
        found = run.evaluated(score)
        for task, values in found[found.until == found.until.max()].groupby("task").value:
            spread = values.mean(), values.min(), values.max()
            lines.append((run.task_labels[int(task) - 1], score, len(values), values.count(), *spread))  # type: ignore[call-overload]
    return pd.DataFrame(lines, columns=["task", "score", "networks", "defined", "mean", "lowest", "highest"])


def ranges_table(run: Run) -> Sheet | None:
    """Whether the networks that answer a task implement it alike; None if interchange was not asked."""
    data = ranges(run)
    if data.empty:
        return None
    cells_of = {(task, score): _range(*found) for task, score, *found in data.itertuples(index=False)}
    scores, counts = list(dict.fromkeys(data.score)), dict(zip(data.task, data.networks, strict=True))
    rows = [[task, str(count), *(cells_of[task, score] for score in scores)] for task, count in counts.items()]
    note = (
        "Associations at the end, over the networks that answer the task: their mean and, of several, the lowest and "
        "the highest. Far apart: the members do not implement the task alike. Left out are networks in which it is not "
        "defined."
    )
    return Sheet("mechanisms", "Mechanism of each task", ["task", "networks", *scores], rows, data, notes=[note])


def ranges_by_method(groups: Sequence[Group], suffix: str) -> Sheet | None:
    """The associations of each group at the end, and how far the networks of a task are apart; None if not asked."""
    parts = [ranges(run).assign(method=group.label, seed=seed) for group in groups for seed, run in group.runs.items()]
    data = pd.concat(parts) if parts else pd.DataFrame()
    if data.empty:
        return None
    found = data.assign(apart=(data.highest - data.lowest).where(data.defined > 1)).groupby(
        ["method", "score"], sort=False
    )
    means = found[["mean", "apart"]].mean()
    scores = list(dict.fromkeys(data.score))
    rows = [
        [method, *(_apart(*means.loc[method, score]) if (method, score) in means.index else "" for score in scores)]
        for method in dict.fromkeys(data.method)
    ]
    note = (
        "Associations at the end, mean over the tasks and seeds where they are defined. In brackets: how far apart the "
        "lowest and the highest of the networks that answer a task are, mean over the tasks where it is defined in "
        "several; large if members implement a task in different ways."
    )
    return Sheet(f"mechanisms{suffix}", "Mechanism", ["method", *scores], rows, data, notes=[note])


def mechanism_over_episodes(groups: Sequence[Group]) -> DrawnFigure | None:
    """Mean accuracy and induction on the tasks seen, a line for each group that was asked; None if there is none."""
    lines = []
    for group in groups:
        for seed, run in group.runs.items():
            if run.continual and run.shows_accuracy and MAIN in (found := matrices(run)):
                means = _means(run.accuracy_matrix), _means(found[MAIN])
                lines += [(group.label, seed, episode, *values)
                          for episode, values in enumerate(zip(*means, strict=True), 1)]  # fmt: skip
    if not lines:
        return None
    data = pd.DataFrame(lines, columns=["run", "seed", "episode", "accuracy", MAIN])
    labels = list(dict.fromkeys(data.run))
    drawn, panels = empty_figure(4.6 + 0.17 * -(-len(labels) // 3), 2)
    for axes, score in zip(panels, ("accuracy", MAIN), strict=True):
        for number, group in enumerate(groups):
            if group.label in labels:
                part = data[data.run == group.label].groupby("episode")[score].agg(["mean", "min", "max"])
                form = line_style(number)
                axes.plot(part.index, part["mean"], markersize=3, label=short(group.label), **form)  # type: ignore[arg-type]
                axes.fill_between(part.index, part["min"], part["max"], color=form["color"], alpha=0.12, linewidth=0)
        whole(axes.xaxis)
    panels[0].set(ylabel="accuracy, %")
    percent(panels[0].yaxis)
    panels[1].set(ylabel=MAIN, xlabel="episode")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    caption = (
        "Behaviour and mechanism on the tasks seen so far, after each episode: mean accuracy, and mean induction of "
        "the networks that answer, R_m, over the tasks where it is defined. Induction is the share of the lost "
        "probability of the answer that the input of the second layer at the target restores when the original query "
        "is replaced. Lines are means over seeds, bands reach from the lowest to the highest one."
    )
    return DrawnFigure("mechanism_over_episodes", "Behaviour and mechanism over episodes", caption, drawn, data)


def _means(values: Array) -> list[float]:
    """The mean of each row over what is known of it; NaN of a row of which nothing is."""
    return [float(known.mean()) if len(known := row[np.isfinite(row)]) else np.nan for row in values]


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def _plain(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def _apart(mean: float, apart: float) -> str:
    """A mean, and in brackets how far apart networks are, if several answer a task."""
    if np.isnan(mean):
        return "undefined"
    return _plain(mean) + ("" if np.isnan(apart) else f" ({_plain(apart)})")


def _range(networks: int, defined: int, mean: float, lowest: float, highest: float) -> str:
    """A mean, and the range if there are several."""
    if not defined:
        return "undefined"
    if networks == 1:
        return _plain(mean)
    some = f"; {defined} of them" if defined < networks else ""
    return f"{_plain(mean)} ({_plain(lowest)} to {_plain(highest)}{some})"
