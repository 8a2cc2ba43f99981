"""The figures and the table of networks that learn modular addition, from what `fourier` has found."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.colors import Normalize

from records.run import Run
from reporting import superposition
from reporting import task_analysis as analysis
from reporting.drawing import DrawnFigure
from reporting.layout import Sheet
from reporting.style import SHADES, empty_figure, percent
from reporting.superposition_figures import steps_axis
from reporting.task_figures import logarithmic
from studies.tables import readable

_PANELS = {
    "accuracy, %": {"train accuracy": "#0072b2", "rest accuracy": "#e69f00"},
    "loss": {"train loss": "#0072b2", "rest loss": "#e69f00", "restricted loss": "#009e73", "excluded loss": "#cc79a7"},
    "sum of squared weights": {"squared weights": "#0072b2"},
}
_TABLE = ("train accuracy", "rest accuracy", "train loss", "rest loss", "restricted loss", "excluded loss",
          "key frequencies", "squared weights")  # fmt: skip
_FREQUENCIES = 64  # the most that the heat map names


def progress(runs: Mapping[str, Run]) -> DrawnFigure | None:
    """Accuracies, losses and squared weights of all runs over steps; None if they were not asked."""
    data = measures(runs)
    if data.empty:
        return None
    panels = {title: [name for name in lines if name in data] for title, lines in _PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    drawn, found = empty_figure(2.1 * len(panels), len(panels))
    for axes, (title, names) in zip(found, panels.items(), strict=True):
        for turn, (_, line) in enumerate(data.groupby("run", sort=False)):
            for name in names:
                width = 1.4 if len(runs) == 1 else 0.8
                label = "" if turn else name
                axes.plot(line.step, line[name], color=_PANELS[title][name], linewidth=width, label=label)
        steps_axis(axes, [data.step])
        axes.set(ylabel=title, xlabel="steps" if axes is found[-1] else "")
        if title == "loss" and (data[names] > 0).any(axis=None):
            logarithmic(axes)
        if title.startswith("accuracy"):
            axes.set_ylim(0, 1.03)
            percent(axes.yaxis)
        if len(names) > 1:
            # Above the panel: lines may be anywhere in it.
            axes.legend(ncols=4, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1.2, columnspacing=1)
    caption = (
        "Grokking: train is on the pairs that the network is trained on, rest on all others. Restricted: the loss on "
        "all pairs if only the key frequencies of the logits are kept; it falls when the network has found its "
        "trigonometric algorithm. Excluded: the loss on train pairs without them; it rises as the network stops "
        "relying on what it remembers."
    )
    caption += f" A line for each of {len(runs)} runs." if len(runs) > 1 else ""
    return DrawnFigure("grokking", "Progress measures of grokking", caption, drawn, data)


def measures(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Lines run and step, with a column for each measure; empty if `fourier` was not asked."""
    frames = {name: analysis.answers(run, superposition.FOURIER) for name, run in runs.items()}
    parts = [frame[["step", *(name for name in _TABLE if name in frame)]].assign(run=name)
             for name, frame in frames.items() if len(frame)]  # fmt: skip
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def frequencies(run: Run) -> DrawnFigure | None:
    """The share of the embedding's power at each frequency over steps; None if it was not asked."""
    data = superposition.powers(run)
    if data.empty:
        return None
    table = data.pivot_table(index="number", columns="step", values="power").sort_index(ascending=False)
    drawn, (axes,) = empty_figure(3.6)
    top = max(float(table.to_numpy().max()), 1e-6)
    image = axes.imshow(table, cmap=SHADES, norm=Normalize(0, top), aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    across, down = (list(range(0, size, -(-size // most))) for size, most in ((table.shape[1], 7), (len(table), 16)))
    axes.set_xticks(across, [readable(table.columns[place]) if table.columns[place] else "0" for place in across])
    axes.set_yticks(down, [str(table.index[place]) for place in down])
    axes.set(xlabel="steps", ylabel="frequency")
    bar = drawn.colorbar(image, ax=axes, pad=0.02, format=lambda value, _: f"{100 * value:.3g}")
    bar.set_label("share of the power, %")
    bar.outline.set_visible(False)  # type: ignore[operator]
    caption = (
        "The power of the embedding at each frequency of the numbers that are added, as a share of all its power, at "
        "the moments when it was asked. A transformer that has found the trigonometric algorithm embeds a few "
        "frequencies; a perceptron may use most of them."
    )
    return DrawnFigure("frequencies", "Frequencies of the embedding", caption, drawn, data)


def measures_table(runs: Mapping[str, Run]) -> Sheet | None:
    """The last measures of each run; None if they were not asked."""
    data = measures(runs)
    if data.empty:
        return None
    data = data.groupby("run", sort=False).tail(1)
    data = data[["run", "step", *(name for name in _TABLE if name in data)]]
    rows = [[name, f"{step:,}", *map(_text, values)] for name, step, *values in data.itertuples(index=False)]
    title = "Progress measures at the last evaluation"
    notes = [
        "Train: the pairs that the network is trained on; rest: all others. Key frequencies: the number of those whose "
        "waves are at least 1 / p of the power of the logits, p being the modulus. Restricted loss: on all pairs, with "
        "these waves alone; excluded loss: on train pairs, without them. Squared weights: the sum over all parameters."
    ]
    return Sheet("progress_measures", title, list(data), rows, data, notes=notes)


def _text(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.4g}"
