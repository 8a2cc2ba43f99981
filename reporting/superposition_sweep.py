"""Figures of autoencoders of sparse features over how rare and how important the features are.

Source of the figures: Elhage et al., "Toy models of superposition" (2022), sections "The geometry of superposition" and
"Superposition as a phase change".
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from evaluation.phases import BOTH, FIRST, SECOND, boundary, phase
from records.run import Run
from reporting.drawing import DrawnFigure
from reporting.style import INK, MUTED, colours, empty_figure
from reporting.sweep import SweepCell
from studies.tables import readable

EVALUATION, PROBABILITY, IMPORTANCE = "geometry", "probability", "decay"
# Dimensionality of a feature in the polygons and polyhedra that vectors of features form.
PLATEAUS = {
    "tetrahedron, 3/4": 3 / 4, "triangle, 2/3": 2 / 3, "pair, 1/2": 1 / 2, "pentagon, 2/5": 2 / 5,
    "antiprism, 3/8": 3 / 8,
}  # fmt: skip
_LITTLE = 0.25  # dimensionality up to which a feature shares its dimension with very many, or is hardly there
_PHASES = {FIRST: 0, BOTH: 1, SECOND: 2, "": 3}


def of_superposition(cells: Sequence[SweepCell]) -> list[DrawnFigure]:
    """The figures of autoencoders that were asked for their geometry, of several sparsities."""
    asked = [(run, scores) for cell in cells if (run := cell.best) and (scores := _geometry(run))]
    if len({run.config["data"][PROBABILITY] for run, _ in asked}) < 2:
        return []
    if _is_phases(asked):
        return [phases(asked)]
    if len({_but_sparsity(run) for run, _ in asked}) > 1:
        return []
    return [drawn for drawn in (dimensionality(asked), per_feature(asked)) if drawn]


def dimensionality(asked: Sequence[tuple[Run, Mapping[str, float]]]) -> DrawnFigure | None:
    """The dimensionality of every feature over sparsity, with that of known figures as lines; None of many features."""
    start = "dimensionality of "
    data = pd.DataFrame(
        [(_rarity(run), int(name.removeprefix(start)), value)
         for run, scores in asked for name, value in scores.items() if name.startswith(start)],
        columns=["1 / (1 - S)", "feature", "dimensionality"],
    )  # fmt: skip
    if data.empty:
        return None
    drawn, (axes,) = empty_figure(3.8)
    for name, level in PLATEAUS.items():
        axes.axhline(level, color=MUTED, linewidth=0.7, linestyle="--", zorder=1)
        above = {2 / 5: "bottom", 3 / 8: "top"}.get(level, "center")  # these two are close
        axes.annotate(name, (1.01, level), xycoords=("axes fraction", "data"), va=above, fontsize=7, color=INK)
    own = data.sort_values(["1 / (1 - S)", "dimensionality"])
    # Features of one network beside each other, sorted, so that those of the same value show as a level stretch.
    place = own.groupby("1 / (1 - S)").cumcount() / own.groupby("1 / (1 - S)").feature.transform("size")
    between = np.diff(np.log(np.unique(own["1 / (1 - S)"]))).min()
    axes.scatter(own["1 / (1 - S)"] * np.exp(0.7 * between * (place - 0.5)), own.dimensionality, s=3, linewidths=0,
                 color=colours(1)[0])  # fmt: skip
    _over_sparsity(axes)
    axes.set(ylabel="dimensionality of a feature", ylim=(-0.03, 1.05))
    shown = data.dimensionality[data.dimensionality > _LITTLE]
    shares = ", ".join(
        f"{name} {100 * ((shown - level).abs() < 0.02).mean():.0f} %" for name, level in PLATEAUS.items()
    )
    caption = (
        "Dimensionality of each feature against 1 / (1 - S), S the share of inputs that lack it. Each group of points "
        "is one network, its features in the order of their dimensionality. Dashed: features in the shapes named. "
        f"Within 0.02 of them, of the points above {_LITTLE:g}: {shares}."
    )
    return DrawnFigure("dimensionality_against_sparsity", "Dimensionality against sparsity", caption, drawn, data)


def per_feature(asked: Sequence[tuple[Run, Mapping[str, float]]]) -> DrawnFigure:
    """Hidden values for each represented feature over sparsity."""
    data = pd.DataFrame(
        [(_rarity(run), scores["dimensions per feature"], scores["represented"]) for run, scores in asked],
        columns=["1 / (1 - S)", "dimensions per feature", "represented"],
    ).sort_values("1 / (1 - S)")
    drawn, (axes,) = empty_figure(3.2)
    for level in (1.0, 0.5):
        axes.axhline(level, color=MUTED, linewidth=0.7, linestyle="--", zorder=1)
    axes.plot(data["1 / (1 - S)"], data["dimensions per feature"], marker="o", color=colours(1)[0])
    _over_sparsity(axes)
    axes.set(ylabel="dimensions per feature", ylim=(0, None))
    caption = (
        "Dimensions per feature, n / |W|², against 1 / (1 - S), S the share of inputs that lack a feature: 1 where "
        "each feature has a dimension of its own, 1/2 where they share them in antipodal pairs (dashed)."
    )
    return DrawnFigure("dimensions_per_feature", "Dimensions per feature", caption, drawn, data)


def phases(asked: Sequence[tuple[Run, Mapping[str, float]]]) -> DrawnFigure:
    """Which of two features one hidden value represents, over sparsity and importance, with the exact boundaries."""
    rows = [
        (run.config["data"][PROBABILITY], run.config["data"][IMPORTANCE], scores["length of 0"], scores["length of 1"],
         scores["dimensions per feature"])
        for run, scores in asked
    ]  # fmt: skip
    names = ["probability", "importance", "length of 1", "length of 2", "dimensions per feature"]
    data = pd.DataFrame(rows, columns=names).sort_values(names[:2])
    data["phase"] = [phase(pair) for pair in zip(data["length of 1"], data["length of 2"], strict=True)]
    drawn, (axes,) = empty_figure(3.8)
    shown = [*colours(3), MUTED]
    for name, colour in zip(_PHASES, shown, strict=True):
        own = data[data.phase == name]
        if len(own):
            axes.scatter(1 / own.probability, own.importance, s=60, marker="s", color=colour, linewidths=0,
                         label=name or "neither")  # fmt: skip
    lines = {p: found for p in data.probability.unique() if (found := boundary(float(p)))}
    for upper in (False, True):
        axes.plot([1 / p for p in lines], [1 / i if upper else i for i in lines.values()], color=INK, linewidth=1.2)
    _over_sparsity(axes)
    low, high = data.importance.min(), data.importance.max()
    axes.set(yscale="log", ylabel="importance of feature 2", ylim=(low / 1.5, high * 1.5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(visible=False)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    best = [_best(p, i, lines) for p, i in zip(data.probability, data.importance, strict=True)]
    right = sum(found in exact for found, exact in zip(data.phase, best, strict=True))
    data["best solution"] = [" or ".join(exact) for exact in best]
    caption = (
        "Two features, one hidden value: which features the trained network represents (w² of 0.25 or more), by 1 / "
        "(1 - S) and the importance of feature 2 relative to feature 1; of each cell the seed that is best on the "
        "development examples. Lines: where the exact loss of another solution becomes the lowest. "
        f"{right} of {len(data)} networks are in the phase of the lowest loss."
    )
    return DrawnFigure("phases", "Phases by sparsity and importance", caption, drawn, data)


def _best(probability: float, importance: float, lines: Mapping[float, float]) -> list[str]:
    """The solution of the lowest loss; all where superposition never is the best and both features count the same."""
    line = lines.get(probability, 1.0)
    if line < importance < 1 / line:
        return [BOTH]
    if importance == 1:  # inputs are there always: only the direction of the weights changes
        return [FIRST, BOTH, SECOND]
    return [FIRST if importance < 1 else SECOND]


def _geometry(run: Run) -> dict[str, float]:
    """What the geometry of an autoencoder is at the end, by score; empty if it was not asked."""
    rows = [row for row in run.rows if row.scenario == EVALUATION]
    if run.config["net"].get("model") != "autoencoder" or PROBABILITY not in run.config["data"] or not rows:
        return {}
    return {name: score.value for name, score in max(rows, key=lambda row: row.step).scores.items()}


def _is_phases(asked: Sequence[tuple[Run, Mapping[str, float]]]) -> bool:
    first = asked[0][0].config
    several = len({run.config["data"][IMPORTANCE] for run, _ in asked}) > 1
    return several and first["data"]["features"] == 2 and first["net"]["hidden"] == 1


def _but_sparsity(run: Run) -> str:
    data = {key: value for key, value in run.config["data"].items() if key != PROBABILITY}
    return str((sorted(data.items(), key=str), sorted(run.config["net"].items(), key=str)))


def _rarity(run: Run) -> float:
    return 1 / float(run.config["data"][PROBABILITY])


def _over_sparsity(axes: Axes) -> None:
    axes.set(xscale="log", xlabel="1 / (1 - S)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
