"""The figures and the table of learning coefficients, and the spectrum of the Hessian."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from records.run import Run
from reporting import superposition
from reporting.drawing import DrawnFigure
from reporting.layout import Sheet
from reporting.style import INK, MUTED, SHADES, empty_figure, line_style
from reporting.superposition import NONE
from reporting.superposition_figures import steps_axis
from studies.tables import Cell, readable

_LISTED = 24  # the most runs in the table of the page
_NAMED = 7  # the most runs that a legend names
_NEAR = 1e-3  # distance from the critical loss within which the dimensions of a run are those of the point


def against_loss(runs: Mapping[str, Run]) -> DrawnFigure | None:
    """Learning coefficient against loss, a point each time it was asked; None if it was not."""
    data = superposition.coefficients(runs)
    if data.empty:
        return None
    data = _at_exact_losses(runs, data)
    drawn, (axes,) = empty_figure(3.6)
    trusted = superposition.trusted(data)
    near, far = data[trusted], data[~trusted]
    for _, line in near.groupby("run", sort=False):
        axes.plot(line.loss, line.estimate, color=MUTED, linewidth=0.6, alpha=0.6, zorder=1)
    axes.plot(far.loss, far.estimate, "o", color=MUTED, fillstyle="none", markersize=3.5, markeredgewidth=0.6, zorder=1)
    seen = (near if len(near) else data).step.clip(lower=1)
    times = LogNorm(seen.min(), max(seen.max(), 1.001 * seen.min()))
    cloud = axes.scatter(
        near.loss, near.estimate, c=near.step.clip(lower=1), cmap=SHADES, norm=times, s=16, linewidth=0, zorder=2
    )
    error = {"ecolor": MUTED, "elinewidth": 0.7, "fmt": "none", "zorder": 1}
    axes.errorbar(near.loss, near.estimate, near.stderr.fillna(0), **error)  # type: ignore[arg-type]
    marked = known_points(runs, data)
    counted = marked.dropna(subset="coefficient")
    axes.plot(counted.loss, counted.coefficient, "x", color=INK, markersize=7, zorder=3)
    for line in marked.itertuples():
        where = {"xytext": (1, 6), "textcoords": "offset points", "rotation": 60, "fontsize": 7.5}
        axes.annotate(line.point, (line.loss, line.top), **where)  # type: ignore[arg-type]
    several = seen.nunique() > 1
    if several:
        bar = drawn.colorbar(cloud, ax=axes, pad=0.02, format=lambda value, _: readable(value))
        bar.set_label("steps")
        bar.minorticks_off()
        bar.outline.set_visible(False)  # type: ignore[operator]
    axes.set(xlabel="loss", ylabel="local learning coefficient")
    axes.xaxis.set_major_locator(MaxNLocator(4))  # losses at one point differ in their last digits
    if len(near):  # the others may be anywhere, also far below 0
        axes.set_ylim(0, 1.35 * max([near.estimate.max(), *marked.top]))
    caption = (
        "Complexity against loss: the estimated local learning coefficient of the networks, with its standard error "
        "over chains. In a Bayesian phase transition the loss falls and the coefficient rises."
    )
    caption += " Colours tell the time, lines join the points of a run." if several else ""
    caption += (
        f" Hollow: {len(far)} estimates that tell nothing of the network, as it was at no minimum or the chains "
        "disagree (R-hat above 1.1); some may lie outside the axis."
        if len(far) else ""
    )  # fmt: skip
    caption += " Crosses: half the rank of the Hessian at a critical point." if len(counted) else ""
    return DrawnFigure("learning_coefficient", "Learning coefficient against loss", caption, drawn, data)


def known_points(runs: Mapping[str, Run], found: pd.DataFrame) -> pd.DataFrame:
    """Lines point, loss, coefficient and top: critical points with trusted estimates of networks there.

    The coefficient is half the rank of the Hessian, NaN where that does not tell it; top is the highest of it and of
    the estimates.
    """
    seen = superposition.points(runs)
    seen = seen[(seen.point != NONE) & seen["critical loss"].notna()]
    both = found[superposition.trusted(found)].drop(columns="loss").merge(seen, on=["run", "step"])
    both = both[(both.loss - both["critical loss"]).abs() < _NEAR]
    both["top"] = both[["estimate", "by dimension"]].max(axis=1)
    own = both.groupby("point", sort=False)
    lines = {"loss": own["critical loss"].last(), "coefficient": own["by dimension"].last(), "top": own.top.max()}
    return pd.DataFrame(lines).reset_index()


def _at_exact_losses(runs: Mapping[str, Run], data: pd.DataFrame) -> pd.DataFrame:
    """Estimates with the exact expected loss where it is known; critical points have theirs."""
    known = superposition.losses(runs)
    both = data.merge(known[known.exact], on=["run", "step"], how="left", suffixes=("", "_exact"))
    return data.assign(loss=both.loss_exact.fillna(both.loss).to_numpy())


def traces(runs: Mapping[str, Run]) -> DrawnFigure | None:
    """The trace of the chains of the last estimate of each run; None if it was not asked."""
    data = superposition.traces(runs)
    if data.empty:
        return None
    drawn, (axes,) = empty_figure(2.8)
    for number, (name, line) in enumerate(data.groupby("run", sort=False)):
        style = {**line_style(number), "marker": "", "linewidth": 1.2 if len(runs) <= _NAMED else 0.6}
        axes.plot(line.part, line.value, label=name, **style)  # type: ignore[arg-type]
    axes.set(xlabel="sixteenth of the steps of the chains", ylabel="n β (L(w) - L(w*))")
    axes.set_xticks(range(1, superposition.PARTS + 1))
    if 1 < data.run.nunique() <= _NAMED:
        axes.legend(ncols=2)
    caption = (
        "How far the chains have come: what the estimate is the mean of, over all chains in sixteen equal parts of "
        "their steps, burn-in included. A line that still rises at the end says that the chains are too short; one "
        "that falls below 0, that they did not begin at a minimum."
    )
    return DrawnFigure("learning_coefficient_trace", "Trace of the chains", caption, drawn, data)


def coefficients_table(runs: Mapping[str, Run]) -> Sheet | None:
    """The last estimate of each run beside what tells whether to trust it; None if it was not asked."""
    data = superposition.coefficients(runs).groupby("run", sort=False).tail(1)
    if data.empty:
        return None
    rows = [_row(line) for line in data.head(_LISTED).to_dict("records")]
    notes = [
        "±: standard error over chains. Loss: the mean over the examples that chains have, so that it may differ "
        "from the expected one. Fall: what n β L loses on the way from the network to the "
        "minimum at which the chains begin; above the estimate (bold) the network was at no minimum. R-hat near 1: the "
        "chains agree (above 1.1 in bold). Effective samples: independent ones that tell as much as the chains. Chains "
        "that left: those that did not stay finite or near, which are left out. Halved and doubled: the estimate with "
        "another step size or strength of localisation; an estimate to trust changes by little more than its error. By "
        "dimension: half the rank of the Hessian, which is the coefficient at a critical point with a quadratic "
        "minimum."
    ]
    if len(data) > _LISTED:
        notes.append(f"The first {_LISTED} of {len(data)} runs; the CSV file has all.")
    header = [name for name in data if name != "stderr"]
    title = "Local learning coefficient: the last estimates"
    return Sheet("learning_coefficients", title, header, rows, data, notes=notes)


def _row(line: Mapping[str, float]) -> list[str | Cell]:
    """The cells of a run."""
    shown: list[str | Cell] = [str(line["run"]), f"{line['step']:,}"]
    around = "" if math.isnan(line["stderr"]) else f" ± {line['stderr']:.2f}"
    shown.append(f"{line['estimate']:.2f}{around}")
    formats = {"loss": ".4f", "fall": ".1f", "R-hat": ".3f", "effective samples": ",.0f", "chains that left": ".0f"}
    for name in list(line)[4:]:
        text = "n/a" if math.isnan(line[name]) else format(line[name], formats.get(name, ".2f"))
        limit = {"R-hat": superposition.AGREE, "fall": line["estimate"]}.get(name, math.inf)
        shown.append(Cell(text, bold=line[name] > limit))
    return shown


def spectrum(run: Run) -> DrawnFigure | None:
    """The eigenvalues of the Hessian over steps; None if it was not asked."""
    data = superposition.spectrum(run)
    if data.empty:
        return None
    drawn, (axes,) = empty_figure(3.6)
    most, bottom = data.number.max(), 1e-10 * data.eigenvalue.abs().max()
    for number, line in data.groupby("number"):
        colour = SHADES(0.9 * (number - 1) / max(1, most - 1))
        above, below = line[line.eigenvalue > bottom], line[line.eigenvalue < -bottom]
        axes.plot(above.step, above.eigenvalue, color=colour, linewidth=0.8, marker="o", markersize=1.5)
        axes.plot(below.step, -below.eigenvalue, "x", color="#d55e00", markersize=3, markeredgewidth=0.8)
    steps_axis(axes, [data.step])
    if (data.eigenvalue.abs() > bottom).any():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set(ylabel="size of the eigenvalue")
    shapes = {"positive": (SHADES(0.0), "o", "-"), "negative": ("#d55e00", "x", "")}
    signs = [
        Line2D([], [], color=colour, marker=shape, markersize=3, linestyle=dashes, label=name)
        for name, (colour, shape, dashes) in shapes.items()
    ]
    drawn.legend(handles=signs, loc="outside upper center", ncols=2)
    listed = "" if most < 64 else " The largest 64."
    caption = (
        "The eigenvalues of the Hessian of the loss over steps, both axes logarithmic; a line for each place in the "
        "order from the largest (dark). At a minimum all are positive or 0, and half the number of those above 0 is "
        f"the learning coefficient if the others belong to directions in which the loss does not change.{listed}"
    )
    return DrawnFigure("hessian", "Spectrum of the Hessian", caption, drawn, data)
