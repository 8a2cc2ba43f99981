"""A figure of the page with a slider: the features of networks in the plane, at each of their checkpoints."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from reporting.style import colours
from reporting.superposition import Features, log_spaced

MIDDLE, RADIUS = 200, 170  # of the plane, in units of the drawing
BARS = 420  # where the line of bias 0 is
_BAR = 30  # the length of the bar of the largest bias
_MOMENTS = 80  # the most of a run
_SPACE = 360  # width of all bars


@dataclass(frozen=True)
class Slider:
    """What slider.html draws: the last moment of the first run and, with a script, any moment of each run."""

    name: str
    title: str
    caption: str
    data: pd.DataFrame
    runs: Sequence[Mapping[str, Any]]  # name, a text for each moment, and by moment x, y, top and height per feature
    shapes: Sequence[Mapping[str, Any]]  # a feature each: colour, number, place and width of its bar
    circle: float  # radius of the circle that vectors of length 1 end on
    biased: bool

    @property
    def last(self) -> Sequence[Sequence[float]]:
        """The places of the first run at its last moment, a feature each."""
        values = self.runs[0]["places"][-1]
        return [values[4 * number : 4 * number + 4] for number in range(len(self.shapes))]


def plane_slider(runs: Mapping[str, Mapping[int, Features]]) -> Slider:
    """The features of each run by step, two hidden values; all runs have the same scale."""
    shown = {name: {step: found[step] for step in log_spaced(list(found), _MOMENTS)} for name, found in runs.items()}
    moments = [at for found in shown.values() for at in found.values()]
    number, biased = moments[0].vectors.shape[1], moments[0].bias is not None
    longest = max(1.0, *(float(np.linalg.norm(at.vectors, axis=0).max()) for at in moments))
    widest = max((float(np.abs(at.bias).max()) for at in moments if at.bias is not None), default=0) or 1.0
    across = _SPACE / number
    shapes = [
        {"number": feature, "colour": colour, "x": round(20 + across * (feature + 0.15), 1),
         "middle": round(20 + across * (feature + 0.5), 1), "width": round(0.7 * across, 1)}
        for feature, colour in enumerate(colours(number))
    ]  # fmt: skip
    frames = [
        {"name": name, "texts": [_text(step, at) for step, at in found.items()],
         "places": [_places(at, RADIUS / longest, _BAR / widest) for at in found.values()]}
        for name, found in shown.items()
    ]  # fmt: skip
    parts = [_lines(found).assign(run=name) for name, found in shown.items()]
    caption = "The vectors of the features, numbered from 0; the circle has the radius 1."
    caption += f" Bars: the bias of each output, up to ±{widest:.2g}." if biased else ""
    title, data = "Features in the plane, step by step", pd.concat(parts, ignore_index=True)
    return Slider("features_by_step", title, caption, data, frames, shapes, round(RADIUS / longest, 1), biased)


def _text(step: int, at: Features) -> str:
    return f"step {step:,}" + ("" if math.isnan(at.loss) else f", loss {at.loss:.5f}")


def _places(at: Features, scale: float, height: float) -> list[float]:
    """x and y of the end of each vector, and top and height of each bar, one after another."""
    bias = np.zeros(at.vectors.shape[1]) if at.bias is None else height * at.bias
    x, y = MIDDLE + scale * at.vectors[0], MIDDLE - scale * at.vectors[1]
    return [round(float(value), 1) for value in np.stack([x, y, BARS - bias.clip(0), np.abs(bias)], 1).ravel()]


def _lines(found: Mapping[int, Features]) -> pd.DataFrame:
    """Lines step, loss, feature, x, y and bias."""
    return pd.concat([
        pd.DataFrame({"step": step, "loss": at.loss, "feature": range(at.vectors.shape[1]), "x": at.vectors[0],
                      "y": at.vectors[1], "bias": np.nan if at.bias is None else at.bias})
        for step, at in found.items()
    ])  # fmt: skip
