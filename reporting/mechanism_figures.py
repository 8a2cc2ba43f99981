"""The figures of what runs of train_task.py have found inside networks of sequence mixers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from datasets.synthetic.language import ITEMS
from records.run import Array, Run
from reporting import mechanisms, task_figures
from reporting.drawing import DrawnFigure, cells
from reporting.layout import Sheet
from reporting.style import DIVERGING, INK, MUTED, SHADES, WIDTH, empty_figure, line_style
from studies.tables import readable

SCORES = {"induction": "#0072b2", "direct early": "#e69f00", "direct late": "#009e73"}
UNDEFINED = "#c3c9d0"  # grey of cells without a value
_HEADS = 16  # the most heads whose weights are drawn
_BAR = 4 / 5  # of the width of a row


def of_runs(runs: Mapping[str, Run], chosen: str) -> list[DrawnFigure]:
    """All figures that the runs have been asked for: over training of all of them, else of the chosen one."""
    run, over = runs[chosen], [association_curves(runs), attribution_curves(runs)]
    inside = [interchange_maps(run), transplants(run), probes(run), attention(run), attribution(run)]
    suffix = f": {chosen}" if len(runs) > 1 else ""
    named = [replace(picture, title=picture.title + suffix) for picture in inside if picture]
    return [*(picture for picture in over if picture), *named]


def associations_table(runs: Mapping[str, Run]) -> Sheet | None:
    """The named associations of each run at its last evaluation, with their intervals; None if they were not asked."""
    found = {name: mechanisms.over_training(run) for name, run in runs.items()}
    lines = [frame.groupby("score", sort=False).tail(1).assign(run=name) for name, frame in found.items()
             if len(frame)]  # fmt: skip
    if not lines:
        return None
    data = pd.concat(lines)
    data = data[data.score.isin(SCORES)].reset_index(drop=True)
    texts = [
        "undefined" if math.isnan(line.value) else f"{line.value:.2f} ({line.low:.2f} to {line.high:.2f})"
        for line in data.itertuples()
    ]
    shown = data.assign(text=texts).pivot(index="run", columns="score", values="text")[[*SCORES]]
    rows = [[name, *shown.loc[name]] for name in dict.fromkeys(data.run)]
    note = (
        "What the input of the second layer restores of the answer when the original query is replaced: induction at "
        "the target, direct early at the query, direct late at the original query. 0: nothing, 1: all. With 95 % "
        "bootstrap intervals over documents. Undefined: the replacement lowers the probability of the answer by less "
        "than 0.05."
    )
    title = "Associations at the last evaluation"
    columns = ["run", "score", "step", "examples", "value", "low", "high"]
    return Sheet("associations", title, ["run", *SCORES], rows, data[columns], notes=[note])


def association_curves(runs: Mapping[str, Run]) -> DrawnFigure | None:
    """The main metric and the named associations over training; None if none is ever defined."""
    frames = {name: mechanisms.over_training(run) for name, run in runs.items()}
    frames = {name: frame for name, frame in frames.items() if len(frame) and frame.low.notna().any()}
    if not frames:
        return None
    metric = next(iter(runs.values())).metric
    drawn, (axes,) = empty_figure(3.6)
    for number, frame in enumerate(frames.values()):
        for score, colour in {metric: INK, **SCORES}.items():
            line = frame[(frame.score == score) & frame.value.notna()]
            style = {"color": colour, "linewidth": 1.5 if len(frames) == 1 else 0.9, "marker": "o", "markersize": 2}
            axes.plot(line.examples, line.value, label="" if number else score, **style)  # type: ignore[arg-type]
            if len(frames) == 1:
                axes.fill_between(line.examples, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
    task_figures.over_training(axes, [frame.examples for frame in frames.values()])
    values = pd.concat(list(frames.values())).value
    axes.set(ylabel=f"{metric}, association", ylim=(max(-1, min(-0.05, values.min())), min(2, max(1.05, values.max()))))
    drawn.legend(loc="outside upper center", ncols=4)
    caption = (
        f"{task_figures.split_of(next(iter(runs.values())), metric)} (dark), and where the second layer finds what "
        "the answer depends on: the original query is replaced by another token, and the input of the second layer at "
        "one position is put back to what it was. The association is the share of the lost probability of the answer "
        "that this restores: induction at the target, direct early at the query, direct late at the original query. A "
        "line begins where the replacement lowers the probability by at least 0.05. "
    )
    caption += "Bands: 95 % bootstrap intervals." if len(frames) == 1 else f"A line for each of {len(frames)} runs."
    data = pd.concat([frame.assign(run=name) for name, frame in frames.items()])
    return DrawnFigure("associations", "What is learned, and how it works", caption, drawn, data)


def interchange_maps(run: Run) -> DrawnFigure | None:
    """The association of each site and item at the last evaluation, a panel for each corruption; None if undefined."""
    data = mechanisms.associations(run)
    defined = [] if data.empty else [part for _, part in data.groupby("corrupted", sort=False)
                                     if part.association.notna().any()]  # fmt: skip
    if not defined:
        return None
    drawn, panels = _panels(len(defined), 0.19 * data.site.nunique() + 0.75)
    for axes, part in zip(panels, defined, strict=True):
        values, sites, items = mechanisms.table(mechanisms.in_order(run, part), "site", "item", "association")
        order = list(dict.fromkeys(part.site))
        image = _cells(axes, values[[sites.index(site) for site in order]], Normalize(-1, 1), lambda v: f"{v:.2f}")
        _named(axes, order, items)
        axes.set_title(f"another token at the {_words(part.corrupted.iloc[0])}", fontsize=8.5)
    _shared_bar(drawn, image, panels, "association", lambda value: f"{value:.2g}")
    caption = (
        "Where the answer is decided: one item of each document is replaced by another token, and one activation, row "
        "by row in the order of computation, is put back to what it was at one item of the document (columns, in "
        "their usual order). The association is the share of the lost probability of the answer that this restores: "
        f"1 all, 0 nothing; colours end at -1 and 1. After {_examples(run, mechanisms.INTERCHANGE)} examples."
    )
    if len(defined) < data.corrupted.nunique():
        caption += " A replacement that lowers the probability by less than 0.05 has no panel."
    return DrawnFigure("interchange", "Interchange interventions", caption, drawn, data)


def probes(run: Run) -> DrawnFigure | None:
    """Accuracy and selectivity of the probes at each site and item, two panels for each label; None if not asked."""
    data = mechanisms.probed(run)
    if data.empty:
        return None
    labels, sites = list(dict.fromkeys(data.label)), list(dict.fromkeys(data.site))
    drawn, panels = empty_figure(len(labels) * (0.19 * len(sites) + 0.35) + 1.3, len(labels), 2)
    kinds = {"accuracy": (SHADES, Normalize(0, 1)), "selectivity": (DIVERGING, Normalize(-1, 1))}
    for number, axes in enumerate(panels):
        label, kind = labels[number // 2], [*kinds][number % 2]
        part = mechanisms.in_order(run, data[data.label == label])
        values, names, items = mechanisms.table(part, "site", "item", kind)
        palette, norm = kinds[kind]
        values = values[[names.index(site) for site in sites]]
        image = _cells(axes, values, norm, lambda value: f"{100 * value:.0f}", palette)
        _named(axes, sites if number % 2 == 0 else [], items, upright=True)
        if number < len(panels) - 2:
            axes.set_xticklabels([])
        axes.set_title(f"{_words(label)}: {kind}", fontsize=8.5)
        if number >= len(panels) - 2:
            bar = drawn.colorbar(image, ax=panels[number % 2 :: 2], location="bottom", shrink=0.9, aspect=30,
                                 format=lambda value, _: f"{100 * value:.0f}")  # fmt: skip
            bar.set_label(f"{kind}, {'%' if kind == 'accuracy' else 'points'}")
            bar.outline.set_visible(False)  # type: ignore[operator]
    caption = (
        "Which tokens can be read where: how often a linear probe tells the token of the original query, and that of "
        "the target, from the activations at a site (rows, in the order of computation) and an item of the document "
        "(columns), on documents that it was not trained on. Selectivity is this accuracy minus that for random "
        "labels of the token at the item: near 0 the probe may remember tokens, high above it the network has put the "
        f"answer there. Grey: all documents have the same token there. After {_examples(run, 'probes')} examples."
    )
    return DrawnFigure("probes", "What probes can read", caption, drawn, data)


def attention(run: Run) -> DrawnFigure | None:
    """The weights between items, a panel for each head; None if not asked."""
    data = mechanisms.attended(run)
    if data.empty:
        return None
    heads, items = list(dict.fromkeys(data["head"])), _items(data)
    later, earlier = ([item for item in items if item in set(data[end])] for end in ("later", "earlier"))
    count = min(len(heads), _HEADS)
    across = next((number for number in (4, 3, 2) if count % number == 0), min(4, count))
    down, ragged = math.ceil(count / across), count % across > 0
    side = min(0.4 * len(items), (WIDTH - 1.6) / across)
    drawn, panels = empty_figure(down * (side + 0.35) + 0.85 * (1 + ragged), down, across)
    for axes in panels[len(heads) :]:
        axes.set_axis_off()
    for number, (axes, head) in enumerate(zip(panels, heads, strict=False)):
        own = data[data["head"] == head].pivot(index="later", columns="earlier", values="weight")
        text = (lambda value: f"{100 * value:.0f}") if side / len(items) > 0.15 else None
        values = own.reindex(index=later, columns=earlier).to_numpy(float)
        image = _cells(axes, values, Normalize(0, 1), text, SHADES, min(7.5, 30 * side / len(items)))
        below = number + across >= count
        _named(axes, later if number % across == 0 else [], earlier if below else [], upright=True)
        axes.set_title(head.replace("blocks.", "layer ").replace(".mixer", ""), fontsize=7)
    _shared_bar(drawn, image, panels, "weight, %", lambda value: f"{100 * value:.0f}")
    caption = (
        "Where heads look: the mean weight with which the position of an item (row) attends to that of an earlier one "
        "(column), in percent, for each layer and head from 0. A row need not add up to 100, documents have more "
        f"positions. Grey: not earlier, or behind the question. After {_examples(run, 'attention')} examples."
    )
    caption += f" The first {_HEADS} heads; the CSV file has all." if len(heads) > _HEADS else ""
    return DrawnFigure("attention", "Attention", caption, drawn, data)


def attribution(run: Run) -> DrawnFigure | None:
    """What each part adds to the logit of the answer at the last evaluation; None if not asked."""
    data = mechanisms.attributed(run)
    if data.empty:
        return None
    data = data[data.step == data.step.iloc[-1]]
    parts = data[data.part != "logit"]
    drawn, (axes,) = empty_figure(0.2 * len(parts) + 1.0)
    colours = ["#56b4e9" if " head " in name else "#0072b2" for name in parts.part]
    error = {"ecolor": MUTED, "elinewidth": 0.8}
    axes.barh(range(len(parts)), parts.value, _BAR, xerr=parts.stderr.fillna(0), color=colours, error_kw=error)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(parts)), [_indented(name) for name in parts.part], fontsize=7.5)
    axes.set(xlabel="logit of the answer, above the mean of all logits", ylim=(len(parts) - 0.4, -0.6))
    axes.grid(axis="y", visible=False)
    total = data.value[data.part == "logit"].iloc[0]
    caption = (
        f"What each part of the network adds directly to the logit of the answer, {total:.3g} in sum (dark bars), with "
        "the scale of the final norm held. Light: the heads of a mixer, whose sum with its bias is the mixer's own "
        f"bar. Lines: standard errors over documents. After {_examples(run, 'attribution')} examples."
    )
    return DrawnFigure("attribution", "Direct logit attribution", caption, drawn, data)


def attribution_curves(runs: Mapping[str, Run]) -> DrawnFigure | None:
    """What each part adds to the logit over training; None if it was asked once at most."""
    frames = {name: mechanisms.attributed(run) for name, run in runs.items()}
    frames = {name: frame for name, frame in frames.items() if len(frame) and frame.step.nunique() > 1}
    if not frames:
        return None
    drawn, (axes,) = empty_figure(3.8)
    for turn, frame in enumerate(frames.values()):
        parts = [name for name in dict.fromkeys(frame.part) if " head " not in name]
        for number, name in enumerate(parts):
            line, style = frame[frame.part == name], {**line_style(number - 1), "marker": ""}
            if name == "logit":
                style = {"color": INK, "linestyle": "-"}
            width = 1.5 if len(frames) == 1 else 0.9
            axes.plot(line.examples, line.value, label="" if turn else name, linewidth=width, **style)  # type: ignore[arg-type]
    task_figures.over_training(axes, [frame.examples for frame in frames.values()])
    axes.set(ylabel="logit of the answer, above the mean")
    drawn.legend(loc="outside upper center", ncols=3)
    caption = (
        "What each part of the network adds directly to the logit of the answer over training; the dark line is their "
        "sum, the logit above the mean of all logits."
    )
    caption += f" A line for each of {len(frames)} runs." if len(frames) > 1 else ""
    data = pd.concat([frame.assign(run=name) for name, frame in frames.items()])
    return DrawnFigure("attribution_over_training", "Direct logit attribution over training", caption, drawn, data)


def transplants(run: Run) -> DrawnFigure | None:
    """What activations of one checkpoint restore in another, at the item with the largest share; None if not asked."""
    data = mechanisms.transplanted(run)
    if data.empty:
        return None
    own = data[data.source == data.network].groupby("item", sort=False).restored.mean()
    item, steps = str(own.idxmax()), mechanisms.compared_steps(run)
    shown = data[data["item"] == item].pivot(index="network", columns="source", values="restored")
    drawn, (axes,) = empty_figure(0.3 * len(steps) + 1.3)
    values = shown.reindex(index=steps, columns=steps).to_numpy(float)
    image = _cells(axes, values, Normalize(-1, 1), lambda value: f"{value:.2f}")
    names = [readable(step) if step else "0" for step in steps]
    _named(axes, names, names)
    axes.set(xlabel="activations from the network after so many steps", ylabel="put into that after")
    _shared_bar(drawn, image, [axes], "restored share", lambda value: f"{value:.2g}")
    caption = (
        f"Does a mechanism work at another time? The original query of each document is replaced; the input of the "
        f"second layer at the {_words(item)} is taken from the network of one checkpoint (column), which has read the "
        "document itself, and put into that of another (row). The number is the share of the lost probability of the "
        "answer that this restores, on the diagonal the association; colours end at -1 and 1. Grey: the replacement "
        f"lowers the probability by less than 0.05. Of {_words(', '.join(own.index))} the item with the largest mean "
        "on the diagonal; the CSV file has all."
    )
    return DrawnFigure("transplants", "Transplants between checkpoints", caption, drawn, data)


def undefined_in_grey(palette: Colormap) -> Colormap:
    """The same colours, with grey for cells without a value."""
    return palette.with_extremes(bad=UNDEFINED)


def _cells(
    axes: Axes, values: Array, norm: Normalize, text: object, palette: Colormap = DIVERGING, size: float = 7.5
) -> AxesImage:
    """The cells of a heat map, grey where there is no value."""
    shown = (lambda value: text(value).replace("-0.00", "0.00")) if callable(text) else None
    return cells(axes, np.ma.masked_invalid(values), undefined_in_grey(palette), norm, shown, size)


def _named(axes: Axes, rows: Sequence[str], columns: Sequence[str], *, upright: bool = False) -> None:
    """Name the rows and columns of a heat map."""
    axes.set_yticks(range(len(rows)), [_words(name) for name in rows], fontsize=7.5)
    words = [_words(name) if upright else name.replace("_", "\n") for name in columns]
    axes.set_xticks(range(len(columns)), words, fontsize=7.5 if len(columns) < 6 else 7, rotation=90 if upright else 0)
    axes.tick_params(length=0)


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels below each other, each with its title and the names of its columns."""
    return empty_figure(count * height, count)


def _shared_bar(drawn: Figure, image: AxesImage, panels: Sequence[Axes], label: str, text: object) -> None:
    """One colour bar for all panels."""
    shown = text if callable(text) else str
    bar = drawn.colorbar(image, ax=panels, pad=0.02, shrink=0.8, aspect=30, format=lambda value, _: shown(value))
    bar.set_label(label)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _items(weights: pd.DataFrame) -> list[str]:
    """The items between which there is attention, in the order of the document."""
    known = [item for item in ITEMS if item in {*weights.earlier, *weights.later}]
    return sorted(known, key=lambda item: -weights.later[weights.earlier == item].nunique())


def _examples(run: Run, evaluation: str) -> str:
    """How many examples the network had seen at the last time it was asked."""
    return readable(mechanisms.rows_of(run, evaluation)[-1].examples)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _indented(part: str) -> str:
    """The name of a part; heads stand below their mixer."""
    return part if " head " not in part else "head " + part.rpartition(" ")[2]
