"""The figures of superposition: features in the plane, the loss staircase, the critical points that runs visit."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from records.run import Run
from reporting import superposition
from reporting.drawing import DrawnFigure, label_ends
from reporting.style import DIVERGING, MUTED, WIDTH, colours, empty_figure, line_style, percent
from reporting.superposition import NONE, Features
from reporting.task_figures import over_training
from studies.tables import readable

_MOMENTS = 8  # checkpoints that are drawn beside each other
_ACROSS = 4
_NAMED = 10  # the most runs that have a line style of their own
_HEAT = 40  # the most features of a heat map


def of_features(run: Run) -> DrawnFigure | None:
    """The features over training, in the plane or as a heat map; None if the network is no autoencoder."""
    found = superposition.features(run)
    steps = superposition.log_spaced(list(found), _MOMENTS)
    if not steps:
        return None
    shown = {step: found[step] for step in steps}
    return _planes(shown) if len(found[steps[0]].vectors) == 2 else _products(shown)


def _planes(moments: Mapping[int, Features]) -> DrawnFigure:
    """Vectors of features as lines from the origin, a panel a moment, with a bar for each bias below."""
    number = next(iter(moments.values())).vectors.shape[1]
    palette, rows = colours(number), math.ceil(len(moments) / _ACROSS)
    biased = next(iter(moments.values())).bias is not None
    bound = 1.12 * max(1.0, *(float(np.linalg.norm(at.vectors, axis=0).max()) for at in moments.values()))
    widest = max((float(np.abs(at.bias).max()) for at in moments.values() if at.bias is not None), default=0) or 1.0
    drawn = Figure(figsize=(WIDTH, rows * (1.65 if biased else 1.4)), layout="constrained")
    ratios = {"height_ratios": [4, 1] * rows if biased else [1] * rows}
    panels = drawn.subplots(rows * (1 + biased), _ACROSS, squeeze=False, gridspec_kw=ratios)
    for axes in panels.flat:
        axes.set_axis_off()
    for place, (step, at) in enumerate(moments.items()):
        row, column = divmod(place, _ACROSS)
        axes = panels[row * (1 + biased), column]
        _plane(axes, at, palette, bound)
        axes.set_title(_title(step, at, place), fontsize=7.5)
        if biased:
            _bars(panels[2 * row + 1, column], at, palette, widest)
    caption = (
        "Each line is the vector of a feature, a column of W, after so many steps; dotted: the circle of radius 1. "
        "Features whose lines stand at the same angle to each other share the two dimensions; one without a line is "
        "not represented."
    )
    caption += f" Bars: the bias of each output, up to ±{widest:.2g}." if biased else ""
    return DrawnFigure("features", "Features in the plane over training", caption, drawn, features_data(moments))


def features_data(moments: Mapping[int, Features]) -> pd.DataFrame:
    """Lines step, loss, feature, a column for each hidden value, and bias."""
    lines = [
        {"step": step, "loss": at.loss, "feature": feature, **{f"hidden {n}": value for n, value in enumerate(column)},
         "bias": math.nan if at.bias is None else at.bias[feature]}
        for step, at in moments.items() for feature, column in enumerate(at.vectors.T)
    ]  # fmt: skip
    return pd.DataFrame(lines)


def _plane(axes: Axes, at: Features, palette: Sequence[str], bound: float) -> None:
    """The vectors of one moment, from the origin."""
    turn = np.linspace(0, 2 * math.pi, 100)
    axes.plot(np.cos(turn), np.sin(turn), color=MUTED, linewidth=0.7, linestyle=":")
    for (x, y), colour in zip(at.vectors.T, palette, strict=True):
        axes.plot([0, x], [0, y], color=colour, linewidth=1.3, solid_capstyle="round")
        axes.plot([x], [y], "o", color=colour, markersize=3.2)
    axes.set(xlim=(-bound, bound), ylim=(-bound, bound), aspect="equal")


def _bars(axes: Axes, at: Features, palette: Sequence[str], widest: float) -> None:
    """A bar for each bias."""
    assert at.bias is not None
    axes.axhline(0, color=MUTED, linewidth=0.6)
    axes.bar(range(len(at.bias)), at.bias, color=palette, width=0.7)
    axes.set(ylim=(-1.05 * widest, 1.05 * widest), xlim=(-1.5, len(at.bias) + 0.5))


def _products(moments: Mapping[int, Features]) -> DrawnFigure:
    """W'W at each moment: on the diagonal the squared length of a feature, beside it what it shares with others."""
    rows, columns = math.ceil(len(moments) / _ACROSS), min(_ACROSS, len(moments))
    hidden, number = next(iter(moments.values())).vectors.shape
    products = {step: (at.vectors.T @ at.vectors)[:_HEAT, :_HEAT] for step, at in moments.items()}
    bound = max(float(np.abs(product).max()) for product in products.values()) or 1.0
    drawn, panels = empty_figure(rows * (WIDTH / columns + 0.15), rows, columns)
    for axes in panels:
        axes.set_axis_off()
    for place, (axes, step) in enumerate(zip(panels, moments, strict=False)):
        image = axes.imshow(products[step], cmap=DIVERGING, norm=Normalize(-bound, bound), interpolation="nearest")
        axes.set_title(_title(step, moments[step], place), fontsize=7.5)
    bar = drawn.colorbar(image, ax=panels, shrink=0.7, format=lambda value, _: f"{value:.2g}")
    bar.outline.set_visible(False)  # type: ignore[operator]
    lines = [(step, row, column, value) for step, product in products.items()
             for (row, column), value in np.ndenumerate(product)]  # fmt: skip
    caption = (
        f"W'W, the products of the vectors of features in the {hidden} hidden dimensions, after so many steps: on the "
        "diagonal the squared length of a feature, 0 if it is not represented; beside it what reaches the output of "
        "one feature (row) from another (column), its interference."
    )
    caption += f" The first {_HEAT} of {number} features." if number > _HEAT else ""
    data = pd.DataFrame(lines, columns=["step", "row", "column", "value"])
    return DrawnFigure("features", "Products of features over training", caption, drawn, data)


def staircase(runs: Mapping[str, Run], jumps: pd.DataFrame | None = None) -> DrawnFigure | None:
    """The loss of all runs over steps with the levels of the critical points; None if it is the measured one only.

    `jumps`: phase transitions to mark, see `transitions.jumps`.
    """
    data = superposition.losses(runs)
    if not data.exact.any():
        return None
    seen, levels = superposition.points(runs), superposition.levels(runs)
    last, palette = seen.groupby("run").point.last(), point_colours(seen, levels)
    drawn, (axes,) = empty_figure(3.6)
    for number, (name, line) in enumerate(data.groupby("run", sort=False)):
        style = {"color": palette[last[name]]} if name in last else {**line_style(number), "marker": ""}
        axes.plot(line.step, line.loss, linewidth=1.3 if len(runs) <= _NAMED else 0.6, **style)  # type: ignore[arg-type]
    steps_axis(axes, [data.step])
    top = 1.05 * min(data.loss.max(), 1.5 * max(levels.values(), default=math.inf))
    axes.set(ylabel="exact expected loss", ylim=(0, top))
    if jumps is not None:
        axes.plot(jumps.time, (jumps.before * jumps.after) ** 0.5, "|", color=MUTED, markersize=9, zorder=3)
    inside = {name: loss for name, loss in levels.items() if loss < top}
    for loss in inside.values():
        axes.axhline(loss, color=MUTED, linewidth=0.6, linestyle="--", zorder=1)
    if inside:
        label_ends(axes, data.step.max(), list(inside.values()), list(inside), [MUTED] * len(inside))
    caption = (
        f"The expected loss, computed exactly from the weights, of {_number_of(runs)} over steps on a logarithmic "
        "scale. Dashed: the losses of the critical points, where the gradient is 0; k-gon: "
        f"{superposition.in_words(runs)}. A level stretch is a stay near a critical point"
    )
    caption += "; the colour of a line tells where it ends, as in the figure of shares." if len(last) else "."
    caption += " Upright strokes: phase transitions." if jumps is not None and len(jumps) else ""
    return DrawnFigure("staircase", "The loss staircase", caption, drawn, data)


def visited(runs: Mapping[str, Run]) -> DrawnFigure | None:
    """The share of the runs at each critical point over steps; None if there is one run, or nothing is known."""
    found = superposition.points(runs)
    if found.empty or found.run.nunique() < 2:
        return None
    palette = point_colours(found, superposition.levels(runs))
    table = superposition.shares(found)
    table = table[[name for name in palette if name in table]]
    drawn, (axes,) = empty_figure(3.2)
    bottom = np.zeros(len(table))
    for name in table:
        top = bottom + table[name].to_numpy()
        axes.fill_between(
            table.index, bottom, top, color=palette[name], label=name, linewidth=0, step="post", alpha=0.85
        )
        bottom = top
    steps_axis(axes, [pd.Series(table.index)])
    axes.set(ylabel="share of runs, %", ylim=(0, 1))
    percent(axes.yaxis)
    drawn.legend(loc="outside upper center", ncols=min(5, len(table.columns)))
    caption = (
        f"The share of {_number_of(runs)} that is at each critical point after so many steps; none: at no k-gon, such "
        "as on the way from one to another."
    )
    data = table.reset_index().melt("step", var_name="point", value_name="share")
    return DrawnFigure("visited", "Critical points over training", caption, drawn, data)


def point_colours(seen: pd.DataFrame, levels: Mapping[str, float]) -> dict[str, str]:
    """A colour for each critical point that was seen, in the order of their losses, grey for none."""
    names = sorted({*seen.point} - {NONE}, key=lambda name: (-levels.get(name, math.inf), name))
    grey = {NONE: MUTED} if (seen.point == NONE).any() else {}
    return grey | dict(zip(names, colours(len(names)), strict=True))


def steps_axis(axes: Axes, steps: Sequence["pd.Series[int]"]) -> None:
    """A logarithmic axis of steps, with 0 at its left end."""
    over_training(axes, steps)
    axes.set(xlabel="steps")


def _title(step: int, at: Features, place: int) -> str:
    """The step and the loss; only the first panel has the unit."""
    loss = "" if math.isnan(at.loss) else f"\nloss {at.loss:.4f}"
    return f"{readable(step) if step else '0'}{'' if place else ' steps'}{loss}"


def _number_of(runs: Mapping[str, Run]) -> str:
    return "the run" if len(runs) == 1 else f"{len(runs)} runs"
