"""Phase transitions of a loss: staircases with known jumps, curves without any, and medians over seeds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.landscape import polygons
from evaluation.transitions import interval, names, transitions

TIME = np.arange(0, 9.2, math.log(2) / 12)  # twelve times in each doubling of the steps
STEPS = np.exp(TIME)


def staircase(jumps, levels, width=0.1):
    """A loss that falls from level to level at these steps, within about `width` of log time."""
    logs = np.log(levels)
    falls = [
        drop / (1 + np.exp(-(TIME - math.log(at)) * 4 / width)) for at, drop in zip(jumps, np.diff(logs), strict=True)
    ]
    return np.exp(logs[0] + sum(falls))


@settings(max_examples=40, deadline=None)
@given(
    first=st.floats(3, 6), gaps=st.lists(st.floats(1.2, 3), max_size=3), drops=st.lists(st.floats(0.15, 1), min_size=4),
    noise=st.floats(0, 0.005), seed=st.integers(0, 100),
)  # fmt: skip
def test_the_jumps_of_a_staircase_are_found_with_their_times_and_levels(first, gaps, drops, noise, seed):
    at = np.exp([place for place in first + np.cumsum([0, *gaps]) if place < 8.5])
    levels = np.exp(-np.cumsum([0, *drops[: len(at)]]))
    losses = staircase(at, levels) * np.exp(noise * np.random.default_rng(seed).normal(size=len(TIME)))
    found = transitions(STEPS, losses)
    assert len(found) == len(at)
    for jump, time, before, after in zip(found, at, levels, levels[1:], strict=False):
        assert abs(math.log(jump.time / time)) < 0.07
        assert jump.start < jump.time < jump.end
        assert (jump.before, jump.after) == pytest.approx((before, after), rel=0.03)


def test_there_are_no_jumps_in_power_laws_or_noise():
    rng, wrong = np.random.default_rng(0), 0
    for exponent in np.linspace(0, 1.5, 100):
        wrong += bool(transitions(STEPS, STEPS**-exponent * np.exp(0.01 * rng.normal(size=len(TIME)))))
        wrong += bool(transitions(STEPS, 0.1 * np.exp(0.03 * rng.normal(size=len(TIME)))))
    assert wrong <= 1  # of 200


def test_what_a_jump_lies_between():
    points = {point.name: point for point in polygons(6)}
    four, five, six = (points[name].loss for name in ("4-gon+", "5-gon+", "6-gon"))
    found = transitions(STEPS, staircase([30, 400, 2000], [four, four / 1.3, five, 1.1 * six]))
    assert [names(jump, tuple(points.values())) for jump in found] == [("start", ""), ("", "5-gon+"), ("5-gon+", "")]
    tripled = transitions(STEPS, 3 * staircase([30, 400], [1, four, five]))
    assert names(tripled[1], tuple(points.values()), scale=3) == ("4-gon+", "5-gon+")


def test_curves_that_are_no_curves():
    assert transitions([0, 1, 2], [1.0, 0.5, 0.1]) == []
    with pytest.raises(ValueError, match="increase"):
        transitions([1, 1], [1.0, 1.0])
    with pytest.raises(ValueError, match="finite"):
        transitions([1, 2], [1.0, math.nan])


@pytest.mark.parametrize("count", [6, 7, 20, 101])
def test_the_interval_of_a_median_covers_as_often_as_it_says(count):
    rng = np.random.default_rng(count)
    draws = rng.exponential(size=(1000, count))  # of the median log 2
    covered = [found.low <= math.log(2) <= found.high for found in map(interval, draws)]
    said = interval(draws[0]).coverage
    assert said >= 0.95
    assert np.mean(covered) == pytest.approx(said, abs=4 * math.sqrt(said * (1 - said) / 1000))


def test_medians_of_few_seeds_and_of_those_that_never_get_there():
    found = interval([1, 2, 3, 4, math.inf])
    assert (found.median, found.low, found.high, found.coverage) == (3, 0, math.inf, 1)
    assert interval([2, 4]).median == 3
    assert interval([1, math.inf, math.inf]).median == math.inf
    for bad in ([], [1, math.nan]):
        with pytest.raises(ValueError, match="times"):
            interval(bad)
