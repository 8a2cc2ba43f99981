"""Intervals and tests over seeds, against formulas and against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from studies.statistics import level_with_best, mean_interval, paired_p, share_interval

ACCURACIES = st.floats(0, 1).map(lambda value: round(value, 4))
SAMPLES = st.lists(ACCURACIES, min_size=2, max_size=12)
PAIRS = st.lists(st.tuples(ACCURACIES, ACCURACIES), min_size=2, max_size=12)


def test_an_interval_by_hand():
    """1, 2, 3: s = 1, and the table of Student's distribution has 4.303 for two degrees of freedom."""
    mean, half = mean_interval([1, 2, 3])
    assert mean == 2
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=1e-4)


def test_too_few_values_have_no_interval():
    assert mean_interval([0.5])[0] == 0.5
    assert math.isnan(mean_interval([0.5])[1])
    assert all(map(math.isnan, mean_interval([])))


@given(SAMPLES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_intervals_are_those_of_scipy(values, level):
    mean, half = mean_interval(values, level)
    assume(np.std(values) > 1e-6)
    low, high = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for sample in rng.normal(0.9, 0.01, size=(2000, 5)):
        mean, half = mean_interval(sample)
        hits += abs(mean - 0.9) <= half
    assert 0.935 <= hits / 2000 <= 0.965  # 0.95 ± three standard errors of 0.005


def test_a_paired_test_by_hand():
    """d = 1, 1, 2, 2, 3: mean 1.8, s² = 0.7, t = 1.8 / sqrt(0.14) = 4.811; the table has 4.604 for p = 0.01, 4 df."""
    p = paired_p([2, 3, 5, 6, 8], [1, 2, 3, 4, 5])
    assert 0.005 < p < 0.01


@given(PAIRS)
def test_a_paired_test_is_the_formula_of_its_docstring(pairs):
    one, other = map(list, zip(*pairs, strict=True))
    difference = np.subtract(one, other)
    assume(np.std(difference) > 1e-6)
    t = difference.mean() * math.sqrt(len(pairs)) / np.std(difference, ddof=1)
    assert paired_p(one, other) == pytest.approx(2 * stats.t.sf(abs(t), len(pairs) - 1), rel=1e-6, abs=1e-12)


@given(PAIRS)
def test_a_paired_test_has_two_sides(pairs):
    one, other = map(list, zip(*pairs, strict=True))
    assert paired_p(one, other) == pytest.approx(paired_p(other, one), rel=1e-6)
    assert 0 <= paired_p(one, other) <= 1


def test_differences_without_spread():
    assert paired_p([0.5, 0.75], [0.5, 0.75]) == 1
    assert paired_p([0.5, 0.75], [0.25, 0.5]) == 0
    assert paired_p([0.9, 0.5, 0.3], [0.8, 0.4, 0.2]) == 0  # the differences are equal but for rounding
    assert math.isnan(paired_p([0.5], [0.5]))
    assert math.isnan(paired_p([], []))


def seeds(*values):
    return dict(enumerate(values))


def test_what_is_level_with_the_best():
    """Against `best` the differences of `noisy` have t = -1 (p = 0.37), those of `worse` have no spread."""
    values = {
        "worse": seeds(0.75, 0.5, 0.75, 0.5, 0.75),
        "best": seeds(1.0, 0.75, 1.0, 0.75, 1.0),
        "noisy": seeds(1.0, 0.75, 1.0, 0.75, 0.5),
    }
    assert level_with_best(values) == {"best", "noisy"}
    assert level_with_best(values, higher_is_better=False) == {"worse", "noisy"}
    assert level_with_best(values, alpha=0.5) == {"best"}


def test_nothing_is_marked_where_no_difference_is_significant():
    assert level_with_best({"a": seeds(0.5, 0.25), "b": seeds(0.5, 0.25)}) == set()
    two = {"a": seeds(0.90, 0.80), "b": seeds(0.70, 0.75), "c": seeds(0.85, 0.60)}  # p = 0.34 and 0.34
    assert level_with_best(two) == set()


def test_the_interval_of_a_share_by_hand():
    """Wilson: (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n) with z = 1.96; also at 100 % it has a width."""
    assert share_interval(0.9, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert share_interval(1.0, 50) == pytest.approx((50 / (50 + 1.96**2), 1.0), abs=1e-4)


def test_only_common_seeds_are_compared():
    values = {"a": {0: 0.9, 1: 0.8, 2: 0.9}, "b": {2: 0.9, 3: 0.1}, "c": {0: 0.4, 1: 0.3, 7: 0.8}}
    assert level_with_best(values) == {"a"}


def test_one_seed_decides_nothing():
    assert level_with_best({"a": seeds(0.9), "b": seeds(0.5, 0.6)}) == set()
    assert level_with_best({"a": seeds(0.9), "b": seeds(0.5)}) == set()
    assert level_with_best({}) == set()


@given(st.dictionaries(st.sampled_from("abcdef"), st.dictionaries(st.integers(0, 5), ACCURACIES), max_size=6))
def test_lower_is_better_mirrors_higher_is_better(values):
    mirrored = {name: {seed: -value for seed, value in found.items()} for name, found in values.items()}
    assert level_with_best(values) == level_with_best(mirrored, higher_is_better=False)
