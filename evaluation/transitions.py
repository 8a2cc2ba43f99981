"""Phase transitions of training: the drops of a loss between plateaus, and their times over many seeds.

Time is logarithmic, since a staircase of losses has ever longer steps. Source of the picture: Chen et al., "Dynamical
versus Bayesian phase transitions in a toy model of superposition" (2023), section 4.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import binom

from evaluation.landscape import Polygon

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """What counts as a plateau and as a drop; times are differences of log step, losses of log loss.

    A saddle holds a loss for longer than the drop from it takes, so that plateaus are flat in log time, while a power
    law is equally steep everywhere: what lies between `flat` and `steep` is neither plateau nor drop.
    """

    flat: float = 0.1  # -d log loss / d log step below which a loss is on a plateau
    steep: float = 0.25  # what it reaches within a drop, and `certain` standard errors more
    long: float = 0.2  # the least length of a plateau
    least: float = 0.08  # the least drop: critical losses of six features in two dimensions differ by 0.1 or more
    window: float = 0.08  # half the width within which a slope is fitted; at least five points
    certain: float = 3.0
    errors: float = 5.0  # and a drop is so many standard errors of its two levels


@dataclass(frozen=True)
class Transition:
    """A drop of the loss between two plateaus."""

    start: float  # the last step of the plateau before
    end: float  # the first step of the plateau after
    before: float  # the loss of the plateau before, at its end
    after: float  # the loss of the plateau after, at its beginning
    time: float  # the step at which the log of the loss is halfway
    first: bool  # whether the plateau before is that of the drawn weights, from the first step on


def transitions(steps: Sequence[float], losses: Sequence[float], rule: Rule = Rule()) -> list[Transition]:
    """The drops of a loss between plateaus, in their order; step 0 and what follows a loss of 0 are left out.

    A plateau is where the slope of log loss over log step, fitted by least squares in a window, is flat for long
    enough; neighbouring plateaus between which the loss does not drop are one.

    Raises:
        ValueError: steps do not increase, losses are not as many, or not finite.
    """
    time, level = _logarithms(steps, losses)
    if len(time) < 5:
        return []
    noise = _noise(level)
    slope, weight = _slopes(time, level, rule.window)
    steepest = slope + rule.certain * noise * weight  # that is certain
    flat, found = _merged(_runs(slope > -rule.flat, time, rule.long), time, level, steepest, noise, rule), []
    for (_, end), (start, _) in itertools.pairwise(flat):
        before, after = _ends(time, level, flat, end, start)
        between = slice(end, start + 1)
        crossed = end + int(np.argmax(level[between] <= (before + after) / 2))
        halfway = time[crossed] if crossed == end else np.interp(
            -(before + after) / 2, -level[[crossed - 1, crossed]], time[[crossed - 1, crossed]]
        )  # fmt: skip
        begin, finish, high, low, at = np.exp([time[end], time[start], before, after, halfway]).tolist()
        found.append(Transition(begin, finish, high, low, at, first=flat[0] == (0, end)))
    return found


def _logarithms(steps: Sequence[float], losses: Sequence[float]) -> tuple[Array, Array]:
    at, values = np.asarray(steps, float), np.asarray(losses, float)
    if at.shape != values.shape or at.ndim != 1 or (np.diff(at) <= 0).any():
        raise ValueError("steps must increase, and losses be as many")
    if not np.isfinite(values).all():
        raise ValueError("losses must be finite")
    kept = at > 0
    if (values <= 0).any():
        kept &= np.arange(len(at)) < np.argmax(values <= 0)
    return np.log(at[kept]), np.log(values[kept])


def _slopes(time: Array, level: Array, half: float) -> tuple[Array, Array]:
    """Slopes of the lines of least squares through the points within a window around each, at least five.

    And their standard errors if those of the points are 1.
    """
    found, errors = np.empty(len(time)), np.empty(len(time))
    for place, now in enumerate(time):
        first, last = np.searchsorted(time, [now - half, now + half], side="left")
        first, last = min(first, max(0, place - 2)), max(last, min(len(time), place + 3))
        first, last = max(0, min(first, last - 5)), min(len(time), max(last, first + 5))
        x = time[first:last] - time[first:last].mean()
        found[place], errors[place] = (x @ level[first:last]) / (x @ x), (x @ x) ** -0.5
    return found, errors


def _noise(level: Array) -> float:
    """The standard deviation of independent noise, robustly, from second differences: their median size."""
    return float(np.median(np.abs(np.diff(level, 2))) / (0.6745 * math.sqrt(6)))


def _runs(flat: npt.NDArray[np.bool_], time: Array, long: float) -> list[tuple[int, int]]:
    """First and last place of each stretch of flat slopes that is long enough."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(int), [0]])))
    return [(a, b - 1) for a, b in edges.reshape(-1, 2) if time[b - 1] - time[a] >= long]


def _merged(
    runs: list[tuple[int, int]], time: Array, level: Array, slope: Array, noise: float, rule: Rule
) -> list[tuple[int, int]]:  # fmt: skip
    """The plateaus: neighbours are one if nothing between them is steep, or the drop is small."""
    found = runs[:1]
    for start, stop in runs[1:]:
        end = found[-1][1]
        before, after = _ends(time, level, [found[-1], (start, stop)], end, start)
        counts = [min(_LAST, b - a + 1) for a, b in (found[-1], (start, stop))]
        error = 1.2533 * noise * math.sqrt(sum(1 / count for count in counts))  # of a median: sqrt(pi / 2) of a mean's
        drop = before - after
        if -slope[end : start + 1].min() >= rule.steep and drop >= max(rule.least, rule.errors * error):
            found.append((start, stop))
        else:
            found[-1] = (found[-1][0], stop)
    return found


_LAST = 7  # points at an end of a plateau that tell its level


def _ends(
    time: Array, level: Array, runs: Sequence[tuple[int, int]], end: int, start: int
) -> tuple[float, float]:  # fmt: skip
    """The log losses of a plateau at its end and of the next one at its beginning, medians of a few points."""
    first = next(a for a, b in runs if b == end)
    last = next(b for a, b in runs if a == start)
    return float(np.median(level[max(first, end - _LAST + 1) : end + 1])), float(
        np.median(level[start : min(last, start + _LAST - 1) + 1])
    )


START = "start"


def names(transition: Transition, points: Sequence[Polygon], scale: float = 1.0) -> tuple[str, str]:
    """The critical points between which a drop lies, those of the nearest log losses; "" if none is within 4 %.

    "start" is the plateau of the drawn weights, which may be anywhere.

    Args:
        scale: by which the loss is greater than that of the critical points, such as a common importance.
    """

    def name(loss: float) -> str:
        nearest = min(points, key=lambda point: abs(math.log(loss / (scale * point.loss))))
        return nearest.name if abs(math.log(loss / (scale * nearest.loss))) < 0.04 else ""

    return START if transition.first else name(transition.before), name(transition.after)


@dataclass(frozen=True)
class Interval:
    """A median with an interval that covers that of the distribution."""

    median: float
    low: float
    high: float
    count: int
    coverage: float  # at least, whatever the distribution


def interval(times: Sequence[float], coverage: float = 0.95) -> Interval:
    """The median of times over seeds with the interval of order statistics; inf is a seed that has not got there.

        [x_(k), x_(n + 1 - k)],   the greatest k with 2 P(Binomial(n, 1/2) < k) <= 1 - coverage

    It covers the median of any distribution. With fewer than six seeds no such interval of 95 % exists: then it is from
    0 to inf. Source: Conover, "Practical nonparametric statistics" (1999), section 3.2.

    Raises:
        ValueError: there are no times, or some are NaN.
    """
    ordered = np.sort(np.asarray(times, float))
    n = len(ordered)
    if not n or np.isnan(ordered).any():
        raise ValueError("there must be times, none of them NaN")
    k = int(binom.ppf((1 - coverage) / 2, n, 0.5))  # the least k with P(X <= k) >= (1 - coverage) / 2
    k += binom.cdf(k, n, 0.5) <= (1 - coverage) / 2
    lower, upper = ordered[(n - 1) // 2], ordered[n // 2]
    middle = lower if lower == upper else (lower + upper) / 2
    if k < 1:
        return Interval(float(middle), 0.0, math.inf, n, 1.0)
    covered = 1 - 2 * binom.cdf(k - 1, n, 0.5)
    return Interval(float(middle), float(ordered[k - 1]), float(ordered[n - k]), n, float(covered))
