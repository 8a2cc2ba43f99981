"""The phase transitions of runs of train_task.py: each drop of the loss between plateaus, and its kinds over runs."""

import math
from collections.abc import Container, Mapping, Sequence

import numpy as np
import pandas as pd

from evaluation.landscape import Polygon
from evaluation.transitions import interval, names, transitions
from records.run import Run
from reporting import superposition
from reporting.layout import Sheet

_LEAST = 20  # times of evaluation from which plateaus can be told
_LISTED = 24  # the most kinds in the table of the page
OTHER = "other"


def jumps(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Lines run, number, from, to, time, start, end, before and after: the drops of the loss of each run.

    Plateaus are named after critical points where these are known, else numbered. Runs that were evaluated less than 20
    times have none.
    """
    (known, scale), met = superposition.critical_points(runs), superposition.points(runs)
    lines = []
    for name, line in superposition.losses(runs).groupby("run", sort=False):
        line = line[np.isfinite(line.loss)]
        found = transitions(line.step.tolist(), line.loss.tolist()) if len(line) >= _LEAST else []
        own = _distinct(known, {*met[met.run == name].point})
        for number, jump in enumerate(found, 1):
            ends = names(jump, own, scale) if own else (f"plateau {number}", f"plateau {number + 1}")
            places = (jump.time, jump.start, jump.end, jump.before, jump.after)
            lines.append((name, number, *(end or OTHER for end in ends), *places))
    return pd.DataFrame(
        lines, columns=["run", "number", "from", "to", "time", "start", "end", "before", "after"]
    )  # fmt: skip


def _distinct(known: Sequence[Polygon], met: Container[str]) -> list[Polygon]:
    """The critical points without those that a run has not met and whose loss is that of one that it has."""
    losses = [point.loss for point in known if point.name in met]
    return [
        point for point in known
        if point.name in met or not any(math.isclose(point.loss, loss, rel_tol=1e-6) for loss in losses)
    ]  # fmt: skip


def table(found: pd.DataFrame, runs: Mapping[str, Run]) -> Sheet | None:
    """A line for each kind of transition; None if there is none.

    Times of a kind are those of the runs that make it: most kinds are alternatives, so that with the others at infinity
    most medians would be infinite.
    """
    if found.empty:
        return None
    # A run that makes a kind of transition more than once counts with the first.
    kinds = [(kind, own) for kind, own in found.drop_duplicates(["run", "from", "to"]).groupby(["from", "to"])]
    kinds.sort(key=lambda kind: (-len(kind[1]), kind[1].time.median()))
    rows = []
    for (begin, end), own in kinds[:_LISTED]:
        at = interval(own.time.tolist())
        around = "n/a" if math.isinf(at.high) else f"{at.low:,.0f}–{at.high:,.0f}"
        rows.append([f"{begin} → {end}", f"{len(own)}", f"{len(own) / len(runs):.2f}", f"{at.median:,.0f}", around,
                     f"{own.before.median():.4f}", f"{own.after.median():.4f}"])  # fmt: skip
    header = ["transition", "runs", "share", "median step", "95 % interval", "loss before", "loss after"]
    notes = _notes(found, runs)
    if len(kinds) > _LISTED:
        notes.append(f"The {_LISTED} most frequent of {len(kinds)} kinds.")
    return Sheet("transitions", "Drops of the loss between plateaus", header, rows, found, notes=notes)


def _notes(found: pd.DataFrame, runs: Mapping[str, Run]) -> list[str]:
    exact = superposition.losses(runs).exact.all()
    note = (
        f"A plateau is where the loss ({'exactly from the weights' if exact else 'as in the curves'}) is level on a "
        "logarithmic scale of steps. The time of a drop is the step at which the logarithm of the loss is halfway."
    )
    if not found["from"].str.startswith("plateau").all():
        note += (
            " Plateaus have the name of the critical point whose loss is the nearest, within 4 %; start: the plateau "
            "of the drawn weights; other: a plateau near the loss of no critical point."
        )
    without = len(runs) - found.run.nunique()
    over = (
        "Median and interval of order statistics, which covers the median whatever the distribution, over those runs "
        "that make the transition: runs that never make it are left out. With fewer than six there is no such interval "
        "(n/a). Losses: medians. The CSV file has all drops of all runs."
    )
    over += f" {without} of {len(runs)} runs make none." if without else ""
    return [note, over]
