"""The figures of runs of train_task.py; the x axis of those over training is logarithmic, with 0 at its left end."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from evaluation.ablation import WITHOUT
from evaluation.regions import INSIDE, REGIONS, SHARE, TOP
from records.run import Array, Run
from records.summary import direction, signed
from reporting import task_analysis as analysis
from reporting.drawing import DrawnFigure, heat_map, height, label_ends, short
from reporting.style import DIVERGING, INK, MUTED, colours, empty_figure, line_style, marker, percent
from studies.tables import readable

_NAMED = 10  # the most runs that a legend names
_TIMES = 24  # the most moments of a heat map over training
_EXAMPLES = "training examples"


def learning_curves(runs: Mapping[str, Run]) -> list[DrawnFigure]:
    """The main metric and the loss of all runs over the examples seen, a figure for each."""
    first, frames = next(iter(runs.values())), {name: analysis.curve(run) for name, run in runs.items()}
    uninformed = analysis.uninformed_loss(first)
    levels = {first.metric: analysis.baselines(first)}
    levels["loss"] = levels.get("loss") or ({} if uninformed is None else {"uninformed": uninformed})
    return [_curves(first, frames, metric, known) for metric, known in levels.items()]


def _curves(first: Run, frames: Mapping[str, pd.DataFrame], metric: str, levels: Mapping[str, float]) -> DrawnFigure:
    """One metric of all runs; `levels` are answers that need no network."""
    drawn, (axes,) = empty_figure(3.4)
    for number, (name, frame) in enumerate(frames.items()):
        style = {**line_style(number), "marker": ""}
        width = 1.4 if len(frames) <= _NAMED else 0.9
        axes.plot(frame.examples, frame[metric], label=name, linewidth=width, **style)  # type: ignore[arg-type]
    for name, value in levels.items():
        _level(axes, value, name)
    over_training(axes, [frame.examples for frame in frames.values()])
    _measured_axis(axes, first, metric)
    if 1 < len(frames) <= _NAMED:
        axes.legend(ncols=2 if len(frames) > 5 else 1)
    data = pd.concat([frame[["step", "examples", metric]].assign(run=name) for name, frame in frames.items()])
    caption = f"{split_of(first, metric)} over training"
    caption += f", a line for each of {len(frames)} runs. " if len(frames) > 1 else ". "
    caption += "Examples are on a logarithmic scale, with the untrained network at 0. "
    if metric == "loss":
        caption += "Dashed: the loss of a prediction that does not depend on the input. " if levels else ""
        caption += "A level stretch is a plateau."
        return DrawnFigure("loss_curves", "Loss", caption, drawn, data)
    caption += "Dashed: answers that need no network. " if levels else ""
    caption += f"{direction(first.config).capitalize()}."
    return DrawnFigure("learning_curves", "Learning curves", caption, drawn, data)


def slice_curves(run: Run) -> list[DrawnFigure]:
    """The main metric of each slice over training, a figure for each kind of slice."""
    pictures = []
    for kind, frame in analysis.slices(run).items():
        names = list(dict.fromkeys(frame["slice"]))
        palette, ends = colours(len(names)), []
        drawn, (axes,) = empty_figure(height(len(names), 3.2))
        for number, (name, colour) in enumerate(zip(names, palette, strict=True)):
            line = frame[frame["slice"] == name]
            axes.plot(
                line.examples, line[run.metric], color=colour, marker=marker(number), markersize=2.5, linewidth=1.2
            )
            ends.append(float(line[run.metric].iloc[-1]))
        over_training(axes, [frame.examples])
        _measured_axis(axes, run, run.metric)
        labels = names
        if any(name != short(name) for name in names):
            labels = [name.removeprefix(f"{kind} ") for name in names]
        label_ends(axes, frame.examples.max(), ends, labels, palette)
        caption = f"{split_of(run, run.metric)} by {kind}: each line is a part of them."
        if kind == "answer":
            caption += " Lines that part show which answers are learned first."
        if kind == "gap":
            caption += " Gap: between the two largest entries, in equal parts; part 1 has the smallest, the hardest."
        pictures.append(DrawnFigure(file_name(f"by_{kind}"), f"By {kind}", caption, drawn, frame))
    return pictures


def ablation(run: Run) -> list[DrawnFigure]:
    """The main metric without each part: at the last evaluation, and the change over training; none if not asked."""
    frame = analysis.answers(run, "ablation")
    if frame.empty:
        return []
    beginning = f"{run.metric} {WITHOUT} "
    columns = [name for name in frame if name.startswith(beginning)]
    parts, whole_score = [name.removeprefix(beginning) for name in columns], f"{run.metric} with all"
    unit, removed = _ablated(run, parts)
    last = frame.iloc[-1]
    drawn, (axes,) = empty_figure(3.2 if unit != "part" else 4.2)
    axes.bar(range(len(parts)), [last[name] for name in columns], color="#0072b2", width=0.7)
    axes.grid(axis="x", visible=False)
    axes.axhline(last[whole_score], color=INK, linewidth=1.0, label="with all")
    for number, (name, value) in enumerate(analysis.baselines(run).items()):
        axes.axhline(value, color=MUTED, linewidth=0.9, linestyle=("--", ":")[number % 2], label=name)
    axes.set(xlabel=f"{unit} {removed}", ylim=(0, axes.get_ylim()[1]))
    _measured_axis(axes, run, run.metric)
    if unit == "part":
        shown = _spread(len(parts), 32)
        axes.set_xticks(shown, [parts[place] for place in shown], rotation=90)
    elif len(parts) <= 20:
        axes.set_xticks(range(len(parts)), parts)
    drawn.legend(loc="outside upper center", ncols=3)
    subject = f"{split_of(run, run.metric)} with one {unit} {removed}, each in turn"
    caption = f"{subject}, after {readable(last.examples)} examples. {direction(run.config).capitalize()}."
    data = pd.DataFrame({unit: parts, run.metric: [last[name] for name in columns]})
    bars = DrawnFigure("ablation", f"Without each {unit}", caption, drawn, data)
    return [bars, _drops(run, frame, columns, parts, whole_score)]


def _drops(
    run: Run, frame: pd.DataFrame, columns: Sequence[str], parts: Sequence[str], whole_score: str
) -> DrawnFigure:
    """The change by the ablation of each part over training."""
    unit, removed = _ablated(run, parts)
    some = frame.iloc[_spread(len(frame), _TIMES)]
    changes = some[[*columns]].to_numpy().T - some[whole_score].to_numpy()
    bound = max(1e-3, float(np.nanmax(np.abs(changes))))
    drawn, (axes,) = empty_figure(height(len(parts)))
    scale = 100 if run.shows_accuracy else 1
    bar = heat_map(
        axes, changes, DIVERGING, Normalize(-bound, bound), lambda value: signed(scale * value, 0 if scale > 1 else 2)
    )
    bar.set_label("change, points" if run.shows_accuracy else f"change of the {run.metric}")
    shown = list(range(0, len(some), -(-len(some) // 6)))
    axes.set_xticks(shown, [readable(some.examples.iloc[place]) if place else "0" for place in shown])
    shown = _spread(len(parts), 20)
    axes.set_yticks(shown, [parts[place] for place in shown])
    axes.set(xlabel=_EXAMPLES, ylabel=f"{unit} {removed}")
    caption = (
        f"How the {run.metric} changes when a {unit} is {removed}, at moments of training: a row whose colour "
        f"sets in is a {unit} that has come into use. The CSV file has all moments."
    )
    return DrawnFigure("ablation_over_training", f"When each {unit} comes into use", caption, drawn, frame)


def regions(run: Run) -> DrawnFigure | None:
    """The linear regions visited over training; None if not asked."""
    frame = analysis.answers(run, "regions")
    if frame.empty:
        return None
    drawn, panels = empty_figure(6.2, 3)
    panels[0].plot(frame.examples, frame[REGIONS], color="#0072b2", marker="o", markersize=3)
    panels[0].set(title="regions that are visited")
    logarithmic(panels[0])
    for number, top in enumerate(TOP):
        style = {**line_style(number), "marker": marker(number), "markersize": 3}
        panels[1].plot(frame.examples, frame[f"{SHARE} {top}"], label=f"top {top}", **style)  # type: ignore[arg-type]
        panels[2].plot(frame.examples, frame[f"{run.metric} {INSIDE} {top}"], **style)  # type: ignore[arg-type]
    panels[1].set(title="share of the examples in the most visited regions, %", ylim=(0, 1.02))
    percent(panels[1].yaxis)
    panels[1].legend()
    panels[2].set(title=f"{run.metric} there" + (", %" if run.shows_accuracy else ""))
    if run.shows_accuracy:
        percent(panels[2].yaxis)
    for axes in panels:
        over_training(axes, [frame.examples])
    for axes in panels[:-1]:
        axes.set_xlabel("")
    caption = (
        "Linear regions: inputs on which the same neurons are positive at the same times; on each the outputs are a "
        f"linear function of the input. How many the {analysis.watched_split(run)} examples visit, which share lies in "
        "the most visited 1, 10 and 100, and how well the network does there."
    )
    return DrawnFigure("regions", "Linear regions", caption, drawn, frame)


def handcrafted(table: pd.DataFrame) -> DrawnFigure:
    """How the network and the handcrafted one do in the most visited regions."""
    parts = table[table.region != "all"]
    drawn, panels = empty_figure(4.6, 2)
    places = range(len(parts))
    panels[0].bar(places, parts.share, color="#56b4e9", width=0.7)
    panels[0].set(ylabel="share of examples, %")
    kinds = {"network": ("#0072b2", "o"), "handcrafted": ("#e69f00", "s"), "same answer": ("#009e73", "x")}
    for name, (colour, shape) in kinds.items():
        panels[1].plot(places, parts[name], shape, color=colour, label=name, markersize=4.5)
    panels[1].set(xlabel="region, from the most visited one", ylabel="share of the region, %", ylim=(-0.03, 1.05))
    for axes in panels:
        axes.set_xticks(places, parts.region)
        axes.grid(axis="x", visible=False)
        percent(axes.yaxis)
    drawn.legend(loc="outside lower center", ncols=3)
    caption = (
        "The most visited regions of the last network: which share of the development examples lies in them, how often "
        "the network is right there, how often the handcrafted network is, and how often both give the same answer. "
        "Where they differ, the network has found another algorithm, or none yet."
    )
    return DrawnFigure("handcrafted", "Against the handcrafted network", caption, drawn, table)


def weight_maps(run: Run) -> list[DrawnFigure]:
    """Each matrix of weights at up to eight checkpoints."""
    if not run.checkpoints:
        return []
    steps, matrices = analysis.weights(run)
    return [_matrix(name, steps, found) for name, found in matrices.items()]


def _matrix(name: str, steps: Sequence[int], found: Sequence[Array]) -> DrawnFigure:
    """One matrix over training; a vector is a column at each checkpoint."""
    shown = _shown(name)
    bound = max(float(np.nan_to_num(np.abs(matrix)).max()) for matrix in found) or 1.0
    norm, titles = Normalize(-bound, bound), [readable(step) if step else "0" for step in steps]
    rows, columns = found[0].shape
    if min(rows, columns) == 1:
        drawn, (axes,) = empty_figure(height(max(rows, columns), 2.4))
        table = np.stack([matrix.ravel() for matrix in found], 1)
        heat_map(axes, table, DIVERGING, norm, lambda value: f"{value:.2g}")
        axes.set_xticks(range(len(steps)), titles)
        places = _spread(len(table), 20)
        axes.set_yticks(places, [str(place) for place in places])
        axes.set(xlabel="steps", ylabel="row" if columns == 1 else "column")
    else:
        across = min(4, len(found))
        down = math.ceil(len(found) / across)
        drawn, panels = empty_figure(
            float(np.clip(down * (4.2 / across * rows / columns + 0.35), 1.6, 6.5)), down, across
        )
        for axes, matrix, title in zip(panels, found, titles, strict=False):
            image = axes.imshow(matrix, cmap=DIVERGING, norm=norm, interpolation="nearest")
            axes.set_title(f"{title} steps" if title == "0" else title)
        for axes in panels:
            axes.set_axis_off()
        bar = drawn.colorbar(image, ax=panels, shrink=0.7, format=lambda value, _: f"{value:.2g}")
        bar.outline.set_visible(False)  # type: ignore[operator]
    lines = [
        (step, row, column, value)
        for step, matrix in zip(steps, found, strict=True) for (row, column), value in np.ndenumerate(matrix)
    ]  # fmt: skip
    caption = f"{name}, {rows}x{columns}, after so many steps; the colours mean the same at all of them."
    data = pd.DataFrame(lines, columns=["step", "row", "column", "value"])
    return DrawnFigure(file_name(f"weights_{shown}"), f"Weights: {shown}", caption, drawn, data)


def _shown(name: str) -> str:
    """The usual name of a matrix of weights."""
    usual = {"trunk.rnn.weight_ih_l0": "W_ih", "trunk.rnn.weight_hh_l0": "W_hh", "weight": "W_out"}
    return usual.get(name, name.removeprefix("trunk."))


def file_name(name: str) -> str:
    """A name for files, of letters and underscores only."""
    letters = re.sub(r"\d", lambda digit: chr(ord("a") + int(digit[0])), name.lower())
    return re.sub(r"[^a-z]+", "_", letters).strip("_")


def _ablated(run: Run, parts: Sequence[str]) -> tuple[str, str]:
    """What an ablation takes away, and how; features have numbers for names."""
    if not parts[0].isdecimal():
        return "part", "replaced by its mean"
    return "neuron" if run.config["net"]["model"] == "rnn" else "feature", "held at 0"


def split_of(run: Run, metric: str) -> str:
    """A metric on the split that was watched, to open a sentence."""
    split = analysis.watched_split(run)
    examples = {"dev": "development examples", "held_out": "held-out examples"}.get(split, f"{split} examples")
    return f"{metric if metric == 'rmse' else metric.capitalize()} on the {examples}"


def over_training(axes: Axes, examples: Sequence["pd.Series[int]"]) -> None:
    """A logarithmic axis of examples, with 0 at its left end."""
    seen = np.concatenate([column.to_numpy() for column in examples])
    top, least = float(seen.max()), float(min(seen[seen > 0], default=1))
    axes.set_xscale("symlog", linthresh=least, linscale=0.3)
    powers = [10.0**power for power in range(math.ceil(math.log10(least)), math.floor(math.log10(max(top, 1))) + 1)]
    axes.set_xticks([0, *(powers if len(powers) > 1 else sorted({least, top}))])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value) if value else "0"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=_EXAMPLES, xlim=(0, max(top, least) * 1.05))


def _measured_axis(axes: Axes, run: Run, metric: str) -> None:
    """The label and the scale of the axis of a metric."""
    if metric == run.metric and run.shows_accuracy:
        axes.set_ylabel("accuracy, %")
        percent(axes.yaxis)
        return
    axes.set_ylabel(metric)
    if metric != "loss":
        return
    logarithmic(axes)


def logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with a few round numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1,) if high > 1e4 * low else (1, 2, 5)
    axes.yaxis.set_major_locator(LogLocator(subs=subs) if high > 5 * low else MaxNLocator(6, integer=low > 20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _level(axes: Axes, value: float, name: str) -> None:
    """A dashed line that is named at its right end."""
    axes.axhline(value, color=MUTED, linewidth=0.9, linestyle="--", zorder=1)
    axes.annotate(name, (0.99, value), (0, 2), ("axes fraction", "data"), "offset points", ha="right", fontsize=7.5,
                  color=MUTED)  # fmt: skip


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the places 0, ..., count - 1, evenly, the first and the last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})
