"""The figures of a sweep of train_task.py: a panel for each setting of the data, a line for each network."""

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from records.run import Run
from records.summary import direction, figure
from reporting import task_analysis as analysis
from reporting.complexity_figures import against_loss
from reporting.drawing import DrawnFigure
from reporting.style import empty_figure, line_style, percent
from reporting.superposition_sweep import of_superposition
from reporting.sweep import SweepCell, best_of, natural, size_names
from reporting.task_figures import file_name, over_training, split_of
from studies.tables import readable

_PANELS = 12  # the most panels of a figure
_ROOM = 24  # characters in a line above a panel
_TICKS = 6  # the most numbers below a panel
_EACH_POINT = "Learning rate and seed of each point are those that are best on the development examples."
_EACH_NETWORK = (
    "Of each network the run is shown that is best on the development examples, of all sizes, rates and seeds."
)


def of_sweep(cells: Sequence[SweepCell]) -> list[DrawnFigure]:
    """All figures that these cells have the data for."""
    if not any(cell.best for cell in cells):
        return []
    found = [*of_superposition(cells), against_size(cells), against_state(cells), *by_slice(cells)]
    found += [against_loss(all_runs(cells)), learning_curves(cells)]
    return [picture for picture in found if picture]


def all_runs(cells: Sequence[SweepCell]) -> dict[str, Run]:
    """The runs of all cells by their directory."""
    return {str(run.path): run for cell in cells for run in cell.runs}


def against_size(cells: Sequence[SweepCell]) -> DrawnFigure | None:
    """The test score over the size of the network; None if no network has several sizes."""
    first, what = _first(cells), size_names(cells)
    data = _results(cells, what or "size", lambda cell, _: cell.size)
    x = data.columns[2]
    if data.empty or data.groupby(["network", "data"])[x].nunique().max() < 2:
        return None
    drawn, panels = _small_multiples(data, x, first)
    sizes = sorted(data[x].unique())
    for axes in panels.values():
        if min(sizes) > 0 and max(sizes) >= 4 * min(sizes):
            axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sizes[:: -(-len(sizes) // _TICKS)]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))
        axes.xaxis.set_minor_locator(NullLocator())
    drawn.supxlabel(what, fontsize=9)
    caption = f"Test {first.metric} over the {what}{_each(panels)}; {direction(first.summary)}. {_EACH_POINT}"
    return DrawnFigure("score_against_size", f"{_title(first)} against {what}", caption, drawn, _named(data))


def against_state(cells: Sequence[SweepCell]) -> DrawnFigure | None:
    """The test score over the bytes of state; None if fewer than two sizes are known."""
    first, x = _first(cells), "state bytes"
    data = _results(cells, x, lambda _, run: run.summary.get("state_bytes") or None)
    if data[x].nunique() < 2:
        return None
    drawn, panels = _small_multiples(data, x, first)
    for axes in panels.values():
        axes.set(xscale="log", xlim=(data[x].min() / 1.5, data[x].max() * 1.5))
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))
        axes.xaxis.set_minor_locator(NullLocator())
    drawn.supxlabel("bytes of state", fontsize=9)
    caption = (
        f"Test {first.metric} over the bytes that a network carries from one position to the next, on a logarithmic "
        f"scale{_each(panels)}, a point for each size; {direction(first.summary)}. {_EACH_POINT}"
    )
    return DrawnFigure("score_against_state", f"{_title(first)} against state", caption, drawn, _named(data))


def by_slice(cells: Sequence[SweepCell]) -> list[DrawnFigure]:
    """The test score on each part of the test examples, a figure for each kind of parts."""
    first, lines = _first(cells), []
    for (network, panel), run in _chosen(cells).items():
        last = max(row.step for row in run.rows)
        for row in run.rows:
            if row.split == "test" and row.slice and row.step == last:
                kind = analysis.kind_of(row.slice)
                lines.append((network, panel, row.slice[len(kind) :].strip() or row.slice, row.main, kind))
    frame = pd.DataFrame(lines, columns=["network", "data", "slice", first.metric, "kind"])
    kinds = [(str(kind), own.drop(columns="kind")) for kind, own in frame.groupby("kind", sort=False)]
    return [_by_kind(first, kind, own) for kind, own in kinds if own["slice"].nunique() > 1]


def _by_kind(first: Run, kind: str, data: pd.DataFrame) -> DrawnFigure:
    names = sorted(data["slice"].unique(), key=natural)
    data = data.assign(place=data["slice"].map(names.index))
    drawn, panels = _small_multiples(data, "place", first)
    for panel, axes in panels.items():
        own = sorted(set(data[data["data"] == panel].place))
        own = own[:: -(-len(own) // _TICKS)]
        axes.set_xticks(own, [names[place] for place in own])
    drawn.supxlabel(kind, fontsize=9)
    caption = (
        f"Test {first.metric} on parts of the test examples, by {kind}{_each(panels)}; {direction(first.summary)}. "
    )
    caption += _EACH_NETWORK
    name = file_name(f"score_by_{kind}")
    return DrawnFigure(name, f"{_title(first)} by {kind}", caption, drawn, _named(data.drop(columns="place")))


def learning_curves(cells: Sequence[SweepCell]) -> DrawnFigure | None:
    """The score on the way over the examples seen; None if nothing was trained."""
    first = _first(cells)
    frames = [
        analysis.curve(run).assign(network=network, data=panel)
        for (network, panel), run in _chosen(cells).items() if not run.config["evaluate_only"]
    ]  # fmt: skip
    if not frames:
        return None
    data = pd.concat(frames)[["network", "data", "examples", first.metric, "step"]]
    drawn, panels = _small_multiples(data, "examples", first, marked=False)
    for axes in panels.values():
        over_training(axes, [data.examples])
        axes.set_xlabel("")
        zero, *ticks = axes.get_xticks()
        axes.set_xticks([zero, *ticks[:: -(-len(ticks) // (_TICKS if len(panels) == 1 else 2))]])
    drawn.supxlabel("training examples", fontsize=9)
    caption = (
        f"{split_of(first, first.metric)} over training{_each(panels)}. Examples are on a logarithmic scale, with the "
        f"untrained network at 0. {direction(first.summary).capitalize()}. {_EACH_NETWORK}"
    )
    return DrawnFigure("sweep_curves", "Learning curves", caption, drawn, _named(data))


def _first(cells: Sequence[SweepCell]) -> Run:
    return next(run for cell in cells if (run := cell.best))


def _chosen(cells: Sequence[SweepCell]) -> Mapping[tuple[str, str], Run]:
    """By network and data, the best run over sizes, rates and seeds."""
    places = dict.fromkeys((cell.network, cell.panel) for cell in cells)
    found = {key: best_of(cell for cell in cells if (cell.network, cell.panel) == key) for key in places}
    return {key: run for key, run in found.items() if run is not None}


def _results(cells: Sequence[SweepCell], column: str, x: Callable[[SweepCell, Run], float | None]) -> pd.DataFrame:
    """A line for each cell that has a best run and a value on the x axis."""
    lines = [
        (cell.network, cell.panel, value, figure(run.summary, "avg_acc_final"), run.config["hp"]["lr"],
         run.config["seed"])
        for cell in cells if (run := cell.best) and (value := x(cell, run)) is not None
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["network", "data", column, _first(cells).metric, "learning rate", "seed"])


def _small_multiples(data: pd.DataFrame, x: str, first: Run, marked: bool = True) -> tuple[Figure, dict[str, Axes]]:
    """A panel for each value of `data`, with a line for each network in the same style, and the same y axis.

    What does not fit into twelve panels is in the CSV file only.
    """
    names, networks = list(dict.fromkeys(data["data"]))[:_PANELS], list(dict.fromkeys(data.network))
    across = 2 if len(names) == 4 else min(3, len(names))
    down, columns = math.ceil(len(names) / across), 3 if max(map(len, networks)) <= 15 else 2
    legend = 0.18 * math.ceil(len(networks) / columns) if len(networks) > 1 else 0.0
    drawn, grid = empty_figure((3.2 if len(names) == 1 else 0.5 + 1.6 * down) + legend, down, across)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    panels = dict(zip(names, grid, strict=False))
    for panel, axes in panels.items():
        axes.set_title(panel if len(panel) <= _ROOM else panel.replace(", ", ",\n"), fontsize=8)
        for number, network in enumerate(networks):
            own = data[(data["data"] == panel) & (data.network == network)].sort_values(x)
            style = {**line_style(number), **({} if marked else {"marker": ""})}
            axes.plot(own[x], own[first.metric], label=network, linewidth=1.4, **style)  # type: ignore[arg-type]
    _same_scale(drawn, list(panels.values()), across, first)
    if len(networks) > 1:
        drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    return drawn, panels


def _same_scale(drawn: Figure, panels: Sequence[Axes], across: int, first: Run) -> None:
    """One y axis for all panels, with numbers at the left ones only."""
    limits = [axes.get_ylim() for axes in panels]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    for number, axes in enumerate(panels):
        axes.set_ylim((-0.03, 1.03) if first.shows_accuracy else (low, high))
        if first.shows_accuracy:
            percent(axes.yaxis)
        axes.tick_params(labelleft=number % across == 0)
    drawn.supylabel("accuracy, %" if first.shows_accuracy else first.metric, fontsize=9)


def _each(panels: Mapping[str, Axes]) -> str:
    return ", a panel for each setting of the data" if len(panels) > 1 else ""


def _title(run: Run) -> str:
    return "RMSE" if run.metric == "rmse" else run.metric.capitalize()


def _named(data: pd.DataFrame) -> pd.DataFrame:
    """Without the column that says nothing where all runs have the same data."""
    return data if data["data"].any() else data.drop(columns="data")
