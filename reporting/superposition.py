"""What runs of train_task.py tell of superposition, as data frames."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from evaluation.landscape import Polygon, polygons, polygons_without_biases
from evaluation.measurements import Measurement
from net.autoencoder import Autoencoder
from records.run import Array, Run
from reporting import task_analysis as analysis
from studies.statistics import share_interval

GEOMETRY, COEFFICIENT, HESSIAN, FOURIER = "geometry", "learning_coefficient", "hessian", "fourier"
NONE = "none"  # the network is at no k-gon
_FEW = 8  # features of which all k-gons are named
PARTS = 16  # of the trace of a learning coefficient
_DIAGNOSTICS = {
    "by dimension": "by dimension", "loss": "loss", "fall": "fall", "R-hat": "between chains",
    "effective samples": "effective samples", "chains that left": "chains that left", "step halved":
    "estimate, step halved", "step doubled": "estimate, step doubled", "localisation halved":
    "estimate, localisation halved", "localisation doubled": "estimate, localisation doubled",
}  # fmt: skip


class Features(NamedTuple):
    """The features of an autoencoder at one moment."""

    vectors: Array  # W, [n, f]
    bias: Array | None  # of the outputs, [f]
    loss: float  # exact where it is known, else measured; NaN if the network was not asked then


def features(run: Run) -> dict[int, Features]:
    """The features at each checkpoint, by step; none if the network is no autoencoder."""
    if run.config["net"]["model"] != "autoencoder":
        return {}
    asked, found = losses({"": run}).set_index("step").loss, {}
    for step, checkpoint in run.checkpoints.items():
        net = checkpoint.network().trunk
        assert isinstance(net, Autoencoder)
        bias = None if net.bias is None else net.bias.detach().double().numpy()
        found[step] = Features(net.vectors().detach().double().numpy(), bias, float(asked.get(step, math.nan)))
    return found


def log_spaced(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, about evenly on a logarithmic scale, the first and the last among them."""
    later = [step for step in steps if step > 0]
    if len(steps) <= most or not later:
        return steps
    aims = np.geomspace(later[0], later[-1], most - (steps[0] == 0))
    near = {min(later, key=lambda step: abs(math.log(step / aim))) for aim in aims}
    return sorted(near | {steps[0]})


def losses(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Lines run, step, loss and exact: the exact expected loss where `geometry` knows it, else the measured one."""
    frames = []
    for name, run in runs.items():
        found = analysis.answers(run, GEOMETRY)
        exact = "loss" in found
        frame = found if exact else analysis.curve(run)
        frames.append(frame[["step", "loss"]].drop_duplicates("step").assign(run=name, exact=exact))
    return pd.concat(frames, ignore_index=True)[["run", "step", "loss", "exact"]]


def points(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Lines run, step, point, loss and critical loss: the k-gon at which each network was; empty if not known."""
    lines = [
        (name, row.step, _point(row), _value(row, "loss"), _value(row, "critical loss"))
        for name, run in runs.items() for row in _rows(run, GEOMETRY) if "polygon" in row.scores
    ]  # fmt: skip
    found = pd.DataFrame(lines, columns=["run", "step", "point", "loss", "critical loss"])
    return found.drop_duplicates(["run", "step"], ignore_index=True)


def levels(runs: Mapping[str, Run]) -> dict[str, float]:
    """The losses of the critical points by name, the highest first.

    Those that the runs have met and, of few features, all k-gons whose dead features are alike; empty if none was met.
    """
    known, scale = critical_points(runs)
    few = count_features(next(iter(runs.values()))) <= _FEW
    found = {point.name: scale * point.loss for point in known if few and point.dead_bias != "mixed"}
    seen = points(runs)
    met = seen[(seen.point != NONE) & seen["critical loss"].notna()]
    found |= dict(zip(met.point, met["critical loss"], strict=True))
    return dict(sorted(found.items(), key=lambda level: -level[1]))


def critical_points(runs: Mapping[str, Run]) -> tuple[Sequence[Polygon], float]:
    """All k-gons, and by how much the loss of the runs is greater than theirs, such as by a common importance.

    No k-gons unless a run has met one, which tells both.
    """
    seen, run = points(runs), next(iter(runs.values()))
    number = count_features(run)
    if seen["critical loss"].isna().all() or not number:
        return (), 1.0
    known = polygons(number, mixed=True) if run.config["net"]["bias"] else polygons_without_biases(number)
    of = {point.name: point.loss for point in known}
    scales = (seen["critical loss"] / seen.point.map(of)).dropna()
    return (known, float(scales.iloc[0])) if len(scales) else ((), 1.0)


def in_words(runs: Mapping[str, Run]) -> str:
    """What the names of critical points mean."""
    if next(iter(runs.values())).config["net"]["bias"]:
        return "k features at equal angles, the others dead, with biases above (+) or below (-) 0"
    return "k directions at equal angles, of which each is that of one feature or shared by several"


def count_features(run: Run) -> int:
    """The number of features; 0 if the network is no autoencoder."""
    kept = run.checkpoints.values() if run.config["net"]["model"] == "autoencoder" else ()
    return next((at.weights()["trunk.encoder"].shape[1] for at in kept), 0)


def shares(found: pd.DataFrame) -> pd.DataFrame:
    """The share of the runs at each point, a line a step, a column a point; a run that has ended stays where it was."""
    wide = found.pivot(index="step", columns="run", values="point").sort_index().ffill()
    counts = pd.DataFrame({name: (wide == name).sum(axis=1) for name in dict.fromkeys(found.point)})
    return counts.div(wide.notna().sum(axis=1), axis=0)


def final_points(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Where the runs end: point, runs, share with its 95 % interval, range of losses, mean learning coefficient.

    The mean is of the estimates that are `trusted`, and "estimates" their number.
    """
    last = points(runs).groupby("run", sort=False).tail(1)
    found = coefficients(runs).groupby("run").tail(1)
    estimates = found[trusted(found)].set_index("run").estimate
    lines = []
    for point, own in last.groupby("point"):
        number, share = len(own), len(own) / len(last)
        low, high = share_interval(share, len(last))
        asked = estimates.reindex(own.run).dropna()
        error = float(asked.sem()) if len(asked) > 1 else math.nan
        lines.append((point, number, share, low, high, own.loss.min(), own.loss.max(), asked.mean(), error, len(asked)))
    columns = ["point", "runs", "share", "low", "high", "lowest loss", "highest loss", "learning coefficient", "error",
               "estimates"]  # fmt: skip
    return pd.DataFrame(lines, columns=columns).sort_values(["runs", "point"], ascending=[False, True])


AGREE = 1.1  # R-hat up to which chains agree


def trusted(found: pd.DataFrame) -> "pd.Series[bool]":
    """Of which lines of `coefficients` the chains agree, and began at the network: it was at a minimum."""
    return (found.fall <= found.estimate) & ~(found["R-hat"] > AGREE)


def coefficients(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Lines run, step, estimate, stderr and what tells whether to trust the estimate; empty if it was not asked."""
    columns = ["run", "step", "estimate", "stderr", *_DIAGNOSTICS]
    lines = [
        (name, row.step, row.scores["estimate"].value, row.scores["estimate"].stderr,
         *(_value(row, score) for score in _DIAGNOSTICS.values()))
        for name, run in runs.items() for row in _rows(run, COEFFICIENT) if "estimate" in row.scores
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(columns[2:], float))


def traces(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Lines run, step, part and value: the trace of the chains behind the last estimate of each run."""
    lines = [
        (name, row.step, part, row.scores[f"trace {part}"].value)
        for name, run in runs.items() for row in _rows(run, COEFFICIENT)[-1:]
        for part in range(1, PARTS + 1) if f"trace {part}" in row.scores
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["run", "step", "part", "value"])


def spectrum(run: Run) -> pd.DataFrame:
    """Lines step, number and eigenvalue, the largest being number 1; empty if it was not asked."""
    return _numbered(run, HESSIAN, r"eigenvalue (\d+)", "eigenvalue")


def powers(run: Run) -> pd.DataFrame:
    """Lines step, number and power: the share of the embedding's power at each frequency; empty if it was not asked."""
    return _numbered(run, FOURIER, r"power at (\d+)", "power")


def _numbered(run: Run, evaluation: str, pattern: str, value: str) -> pd.DataFrame:
    """The scores of an evaluation whose names hold a number."""
    lines = [
        (row.step, int(match[1]), score.value)
        for row in _rows(run, evaluation) for name, score in row.scores.items()
        if (match := re.fullmatch(pattern, name))
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["step", "number", value])


def _point(row: Measurement) -> str:
    """The name of a critical point: its k, and the sign of the biases of dead features, of each if they differ."""
    k = _value(row, "polygon")
    if not k > 0:
        return NONE
    above, below = (_value(row, f"dead, bias {side} 0") for side in ("above", "below"))
    if above > 0 and below > 0:
        return f"{k:.0f}-gon{'+' * int(above)}{'-' * int(below)}"
    return f"{k:.0f}-gon{'+' if above > 0 else '-' if below > 0 else ''}"


def _rows(run: Run, evaluation: str) -> list[Measurement]:
    return [row for row in run.rows if row.scenario == evaluation]


def _value(row: Measurement, score: str) -> float:
    return row.scores[score].value if score in row.scores else math.nan
