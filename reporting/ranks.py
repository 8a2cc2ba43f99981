"""The methods of a study by their ranks over streams: a critical-difference diagram and its table."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes

from reporting.drawing import DrawnFigure, short
from reporting.layout import Section, Sheet
from reporting.style import INK, MUTED, empty_figure
from studies.ranks import READING, Ranking, not_separated_from, ranking
from studies.tables import ComparisonTable

_LINE = 0.27  # inches for a label
_AXIS = -0.7  # where the axis of ranks is, in lines of text; labels hang below


def ranks_section(tables: Sequence[ComparisonTable]) -> Section | None:
    """Ranks over streams; None with fewer than two streams or labels that all of them have."""
    found = ranking(tables)
    return None if found is None else Section(found.title, [_sheet(found)], [critical_differences(found)])


def _sheet(found: Ranking) -> Sheet:
    rows = [[label, f"{rank:.2f}", ", ".join(not_separated_from(found, label))] for label, rank in found.ranks.items()]
    data = pd.DataFrame({"method": [*found.ranks], "mean_rank": [*found.ranks.values()]})
    return Sheet("ranks", "", ["method", "mean rank", "not separated from"], rows, data, notes=[*found.words, *READING])


def critical_differences(found: Ranking) -> DrawnFigure:
    """The diagram of Demšar (2006): methods at their mean ranks, bars joining those that are not separated."""
    count = len(found.ranks)
    lines = -(-count // 2)  # the better half is labelled on the left
    depth = 0.5 + 0.25 * len(found.groups)  # of the bars below the axis, in lines of text
    drawn, (axes,) = empty_figure(0.2 + _LINE * (3.4 + depth + lines))
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.xaxis.tick_top()
    axes.set(xlim=(1 - 0.45 * (count - 1), count + 0.45 * (count - 1)), ylim=(depth + lines, -3.4), yticks=[],
             xticks=range(1, count + 1))  # fmt: skip
    axes.spines["top"].set_position(("data", _AXIS))
    axes.spines["top"].set_bounds(1, count)
    _reach(axes, found)
    for place, (label, rank) in enumerate(found.ranks.items()):
        left = place < lines
        y = depth + (place if left else count - 1 - place) + 0.5
        sign = -1 if left else 1
        side = (1 if left else count) + sign * 0.04 * (count - 1)
        axes.plot([rank, rank, side], [_AXIS, y, y], color=MUTED, linewidth=0.9, solid_capstyle="butt")
        text = f"{short(label)}  {rank:.2f}" if left else f"{rank:.2f}  {short(label)}"
        axes.text(side + sign * 0.02 * (count - 1), y, text, color=INK, fontsize=8, ha="right" if left else "left",
                  va="center")  # fmt: skip
    for number, group in enumerate(found.groups):
        low, high = found.ranks[group[0]], found.ranks[group[-1]]
        margin, y = 0.015 * (count - 1), 0.25 + 0.25 * number
        axes.plot([low - margin, high + margin], [y, y], color=INK, linewidth=3.2, solid_capstyle="butt")
    bars = [" ".join(str(n) for n, group in enumerate(found.groups, 1) if label in group) for label in found.ranks]
    data = pd.DataFrame({"method": [*found.ranks], "mean_rank": [*found.ranks.values()], "bars": bars})
    caption = (
        f"Mean ranks over {found.streams} streams; methods further left are better. A bar joins methods that Nemenyi's "
        f"test does not separate at 5 %: their mean ranks are less than the critical difference CD = "
        f"{found.difference:.2f} apart. That does not prove them alike: with few streams the test has little power."
    )
    return DrawnFigure("critical_differences", "Ranks and critical difference", caption, drawn, data)


def _reach(axes: Axes, found: Ranking) -> None:
    """The critical difference as a length above the axis, as far as there is room for it."""
    width = min(found.difference, len(found.ranks) - 1)
    more = "" if width == found.difference else ", longer than the axis"
    axes.plot([1, 1 + width], [-2.3, -2.3], color=MUTED, linewidth=1.4)
    axes.text(1 + width / 2, -2.4, f"CD = {found.difference:.2f}{more}", color=MUTED, fontsize=7.5, ha="center",
              va="bottom")  # fmt: skip
