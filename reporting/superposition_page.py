"""The sections of a page about superposition, phase transitions, learning coefficients and grokking."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from records.run import Run
from reporting import complexity_figures as complexity
from reporting import grokking_figures as grokking
from reporting import superposition, transitions
from reporting import superposition_figures as figures
from reporting.drawing import DrawnFigure
from reporting.layout import Section, Sheet
from reporting.slider import Slider, plane_slider
from reporting.style import colours

_MOVING = 12  # the most runs of the slider


def sections(runs: Mapping[str, Run], chosen: str) -> list[Section]:
    """What the runs were asked about, over training of all of them, else of the chosen one; empty where nothing was."""
    jumps = transitions.jumps(runs)
    run, slider = runs[chosen], feature_slider(runs, chosen)

    def pictures(of_all: Sequence[DrawnFigure | None], of_one: DrawnFigure | None) -> list[DrawnFigure]:
        suffix = f": {chosen}" if len(runs) > 1 else ""
        own = [] if of_one is None else [replace(of_one, title=of_one.title + suffix)]
        return [*(picture for picture in of_all if picture), *own]

    features = pictures([figures.staircase(runs, jumps), figures.visited(runs)], figures.of_features(run))
    estimates = pictures([complexity.against_loss(runs), complexity.traces(runs)], complexity.spectrum(run))
    grokked = pictures([grokking.progress(runs)], grokking.frequencies(run))
    return [
        Section("Superposition", _some(points_table(runs)), features, [slider] if slider else []),
        Section("Phase transitions", _some(transitions.table(jumps, runs))),
        Section("Complexity", _some(complexity.coefficients_table(runs)), estimates),
        Section("Grokking", _some(grokking.measures_table(runs)), grokked),
    ]


def points_table(runs: Mapping[str, Run], name: str = "critical_points") -> Sheet | None:
    """How many runs end at each critical point; None if they were not asked, or it is not known."""
    data = superposition.final_points(runs)
    if data.empty:
        return None
    asked = data["learning coefficient"].notna().any()
    header = ["point", "runs", "share", "95 % interval", "loss", *(["learning coefficient"] if asked else [])]
    rows = []
    for line in data.to_dict("records"):
        low, high = (f"{line[f'{end} loss']:.5f}" for end in ("lowest", "highest"))
        row = [str(line["point"]), f"{line['runs']}", f"{line['share']:.2f}", f"{line['low']:.2f}–{line['high']:.2f}"]
        row.append(low if low == high else f"{low}–{high}")
        error, mean = line["error"], line["learning coefficient"]
        text = "n/a" if math.isnan(mean) else f"{mean:.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")
        text += f" ({line['estimates']})" if 0 < line["estimates"] < line["runs"] else ""
        rows.append([*row, text] if asked else row)
    note = (
        f"The k-gon whose geometry the network has at its last evaluation: {superposition.in_words(runs)}; none: no "
        "k-gon. Interval: of the share (Wilson). Loss: the lowest and the highest, exactly from the weights."
    )
    note += (
        " Learning coefficient: the mean of the estimates ± its standard error over runs; in parentheses their number "
        "where those of other runs are not to be trusted (Complexity)."
        if asked else ""
    )  # fmt: skip
    return Sheet(name, "Where the runs end", header, rows, data, notes=[note])


def feature_slider(runs: Mapping[str, Run], chosen: str) -> Slider | None:
    """The features of up to twelve runs, the chosen one first; None unless they lie in the plane."""
    names = [chosen, *(name for name in runs if name != chosen)][:_MOVING]
    found = {name: superposition.features(runs[name]) for name in names}
    found = {name: moments for name, moments in found.items() if moments}
    hidden = {len(at.vectors) for moments in found.values() for at in moments.values()}
    return plane_slider(found) if hidden == {2} else None


def themes(runs: Mapping[str, Run]) -> list[tuple[str, str]]:
    """The colours of features and of critical points on a light and on a dark ground."""
    first, met = next(iter(runs.values())), {*superposition.points(runs).point} - {superposition.NONE}
    numbers = superposition.count_features(first), len(met)
    return [both for number in numbers for both in zip(colours(number), colours(number, True), strict=True)]


def _some(table: Sheet | None) -> list[Sheet]:
    return [] if table is None else [table]
