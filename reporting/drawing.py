"""Parts that figures share: heat maps, labelled lines, colour bars."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from records.run import Array, Run
from records.summary import direction
from reporting.style import INK, percent, spread, whole

_LABELLED = 12  # the most rows or columns of a heat map whose cells show numbers


@dataclass(frozen=True)
class DrawnFigure:
    """A figure of the report; `name` is that of its files, `data` what it shows."""

    name: str
    title: str
    caption: str
    drawn: Figure
    data: pd.DataFrame


def height(rows: int, least: float = 3.0) -> float:
    """Height in inches of a figure with so many rows."""
    return float(np.clip(0.26 * rows + 0.9, least, 6.5))


def measured(run: Run) -> str:
    """The main metric, for axes and captions."""
    return "test accuracy, %" if run.shows_accuracy else f"test {run.metric} ({direction(run.summary)})"


def against_steps(axes: Axes, xlabel: str, ylabel: str, as_percent: bool) -> None:
    """Label the axes, with whole numbers on the x axis, and percent on the y axis if it shows shares."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    whole(axes.xaxis)
    if as_percent:
        percent(axes.yaxis)


def heat_map(axes: Axes, values: Array, palette: object, norm: Normalize, text: Callable[[float], str]) -> Colorbar:
    """Draw a heat map, with numbers in the cells if there are few, and a colour bar."""
    image = cells(axes, values, palette, norm, text if max(values.shape) <= _LABELLED else None)
    count_from_one(axes, values.shape[1], len(values))
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, format=lambda value, _: text(value))
    bar.outline.set_visible(False)  # type: ignore[operator]
    return bar


def cells(
    axes: Axes, values: Array, palette: object, norm: Normalize, text: Callable[[float], str] | None, size: float = 7.5
) -> AxesImage:  # fmt: skip
    """Draw the cells of a heat map, with `text` in those that have a value."""
    image = axes.imshow(values, cmap=palette, norm=norm, aspect="auto", interpolation="nearest")  # type: ignore[arg-type]
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(values) if text else ():
        if text and np.isfinite(value):
            red, green, blue, _ = image.cmap(norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
            axes.text(column, row, text(value), ha="center", va="center", fontsize=size,
                      color="#ffffff" if dark else "#000000")  # fmt: skip
    return image


def count_from_one(axes: Axes, columns: int, rows: int, offset: int = 0) -> None:
    """Number the columns and rows from 1, at most about 20 of each."""
    for axis, count in ((axes.xaxis, columns), (axes.yaxis, rows)):
        shown = np.arange(0, count, max(1, -(-count // 20)))
        axis.set_ticks(shown + offset, [str(number + 1) for number in shown])
        axis.set_tick_params(length=0)


def short(name: str) -> str:
    """At most 18 characters of a name, from both ends: names of runs often begin alike."""
    return name if len(name) <= 18 else f"{name[:6]}…{name[-11:]}"


def label_ends(axes: Axes, last: float, ends: Sequence[float], names: Sequence[str], palette: Sequence[str]) -> None:
    """Write the names of lines at their right ends, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    inches = axes.figure.get_figheight() - 0.7  # type: ignore[union-attr]
    positions = spread(ends, (high - low) * 0.135 / inches)
    low, high = min(low, *positions), max(high, *positions)
    axes.set_ylim(low, high)
    left = axes.get_xlim()[0]
    for end, position, name, colour in zip(ends, positions, names, palette, strict=True):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
        axes.annotate(short(name), (last, end), (1.03, (position - low) / (high - low)), textcoords="axes fraction",
                      va="center", fontsize=7.5, color=INK, annotation_clip=False, arrowprops=line)  # fmt: skip
    axes.set_xlim(left, last + 0.02 * (last - left + 1))
