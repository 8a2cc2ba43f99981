"""The style of the figures: text sizes, colours that colour-blind readers can distinguish, light and dark."""

import io
import re
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
import scipy
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.errors import printable

WIDTH = 4.6  # inches: on a page of 400 pixels, text is still 7 to 9 pixels high
INK, MUTED, RULE = "#1f2328", "#5a6370", "#d4dae1"
# In the page these three become its own colours, so that a figure is readable on a dark ground too.
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)"}
# Okabe & Ito (2008), without yellow, which is too pale on white, and black.
_FEW = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1")
SHADES, DIVERGING = mpl.colormaps["viridis"], mpl.colormaps["PuOr_r"]
mpl.rcParams.update({
    "font.size": 9, "font.family": "sans-serif", "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
    "xtick.labelsize": 8, "ytick.labelsize": 8, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.linewidth": 0.7, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "lines.linewidth": 1.6, "lines.markersize": 4, "svg.fonttype": "none",
    "svg.hashsalt": "model zoo", "text.parse_math": False,
})  # fmt: skip


def colours(count: int, dark: bool = False) -> list[str]:
    """A colour for each task, the same in every figure; `dark`: those for a dark ground."""
    if count <= len(_FEW):
        return list(_FEW[:count])
    places = np.linspace(0.27, 0.95, count) if dark else np.linspace(0.05, 0.82, count)
    return [to_hex(mpl.colormaps["plasma"](place)) for place in places]


def line_style(number: int) -> dict[str, str]:
    """Colour, dashes and marker of the line of a group; 7 x 5 lines can be distinguished."""
    turn = number // len(_FEW) % 5
    dashes = ("-", "--", ":", "-.", (0, (5, 1)))[turn]
    return {"color": _FEW[number % len(_FEW)], "linestyle": dashes, "marker": marker(turn)}  # type: ignore[dict-item]


def marker(number: int) -> str:
    """The marker of a line, so that lines of similar colours can be distinguished."""
    return "osD^v"[number % 5]


def empty_figure(height: float = 3.4, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure and its axes, row by row."""
    drawn = Figure(figsize=(WIDTH, height), layout="constrained")
    return drawn, list(drawn.subplots(rows, columns, squeeze=False).flat)


def percent(axis: Axis) -> None:
    """Label shares as percent, at round numbers."""
    axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(lambda value, _: f"{100 * value:.6g}")


def whole(axis: Axis) -> None:
    """Put ticks at whole numbers only."""
    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def svg_and_png(drawn: Figure) -> tuple[str, bytes]:
    """The figure as SVG, for papers, and as PNG on white, for slides."""
    text, pixels = io.StringIO(), io.BytesIO()
    drawn.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn.set_layout_engine("none")  # all has its place now; to find it again would take as long as to draw
    drawn.set(dpi=200, facecolor="white")
    FigureCanvasAgg(drawn).print_png(pixels, metadata={"Software": None})  # savefig would draw twice
    return printable(text.getvalue()), pixels.getvalue()


def inline(text: str, name: str, title: str, palette: Iterable[str] = ()) -> str:
    """An SVG file as part of the page: ids begin with `name`, `title` is read by screen readers.

    Colours of the palette change on a dark ground, see page.html.
    """
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    for colour in palette:
        text = text.replace(colour, f"var(--c{colour[1:]})")
    text = re.sub(r'\bid="|href="#|url\(#', rf"\g<0>{name}-", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', text)


def spread(places: Sequence[float], distance: float) -> list[float]:
    """Positions moved apart to at least `distance`, in their order and with the least squared movement."""
    order = np.argsort(places, kind="stable")
    least = distance * np.arange(len(order))
    result = np.empty(len(order))
    result[order] = scipy.optimize.isotonic_regression(np.asarray(places, float)[order] - least).x + least
    return result.tolist()
