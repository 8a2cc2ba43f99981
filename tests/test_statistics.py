"""Intervals and tests over seeds, against formulas and against numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from studies.statistics import (
    critical_difference,
    friedman,
    level_with_best,
    mean_interval,
    not_separated,
    paired_p,
    permuted_p,
    ranks,
    share_interval,
    variance_components,
)

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


# Ranks over streams

SCORES = st.integers(3, 6).flatmap(
    lambda k: st.lists(st.lists(st.integers(0, 4), min_size=k, max_size=k), min_size=2, max_size=8)
)
NEMENYI = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


def test_ranks_by_hand():
    """Equal scores share the mean of their places."""
    assert ranks([[0.9, 0.5, 0.9, 0.1], [1, 2, 3, 4]]).tolist() == [[1.5, 3, 1.5, 4], [4, 3, 2, 1]]


@given(SCORES)
def test_friedmans_test_is_that_of_scipy_also_with_ties(scores):
    assume(any(len(set(row)) > 1 for row in scores))
    found, wanted = friedman(scores), stats.friedmanchisquare(*zip(*scores, strict=True))
    assert (found.chi2, found.p) == pytest.approx((wanted.statistic, wanted.pvalue), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("scores", [[[3, 2, 1], [3, 1, 2], [3, 2, 1]], [[1, 1, 0], [2, 1, 1], [2, 1, 0]], [[1, 2]] * 4])
def test_the_p_of_permutations_is_that_of_all_of_them(scores):
    """Each row in each order; F takes the first for significant."""
    every = [stats.rankdata(row) for row in scores]
    sums = [np.sum(rows, axis=0) for rows in itertools.product(*(list(itertools.permutations(row)) for row in every))]
    spread = np.var(sums, axis=1)
    wanted = np.mean(spread >= np.var(np.sum(every, axis=0)) - 1e-9)
    assert permuted_p(scores) == pytest.approx(wanted, abs=4 * math.sqrt(wanted * (1 - wanted) / 10_000) + 1e-4)


def test_the_worked_example_of_demsar():
    """Four classifiers on 14 data sets (2006, table 6): chi2 = 9.28, F = 3.69 and, at 10 % and k = 4, CD = 1.12.

    The table prints 0.975 twice for the last but one data set, but gives it the ranks 2 and 3.
    """
    auc = """0.763 0.768 0.771 0.798  0.599 0.591 0.590 0.569  0.954 0.971 0.968 0.967  0.628 0.661 0.654 0.657
             0.882 0.888 0.886 0.898  0.936 0.931 0.916 0.931  0.661 0.668 0.609 0.685  0.583 0.583 0.563 0.625
             0.775 0.838 0.866 0.875  1.000 1.000 1.000 1.000  0.940 0.962 0.965 0.962  0.619 0.666 0.614 0.669
             0.972 0.981 0.9751 0.975  0.957 0.978 0.946 0.970"""
    scores = np.array(auc.split(), float).reshape(14, 4)
    assert ranks(scores).mean(0) == pytest.approx([3.143, 2.000, 2.893, 1.964], abs=5e-4)
    untied = 12 * 14 / (4 * 5) * ((ranks(scores).mean(0) ** 2).sum() - 4 * 25 / 4)  # as printed there
    assert untied == pytest.approx(9.28, abs=0.01)
    assert 13 * untied / (14 * 3 - untied) == pytest.approx(3.69, abs=0.01)
    found = friedman(scores)
    assert found.chi2 > untied  # the correction for ties
    assert found.f == pytest.approx(13 * found.chi2 / (14 * 3 - found.chi2))
    assert found.f_p == pytest.approx(stats.f.sf(found.f, 3, 39))
    assert critical_difference(4, 14, 0.1) == pytest.approx(1.12, abs=0.005)
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


@pytest.mark.parametrize(("k", "q"), NEMENYI.items())
def test_critical_values_are_those_of_demsars_table(k, q):
    assert critical_difference(k, 1) / math.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=1e-3)
    assert critical_difference(k, 9) == pytest.approx(critical_difference(k, 1) / 3)


def test_the_same_ranks_everywhere_and_none_at_all():
    same = friedman([[3, 2, 1]] * 4)
    assert (same.chi2, same.f, same.f_p) == (pytest.approx(8), math.inf, 0)
    assert all(map(math.isnan, friedman([[1, 1, 1]] * 4)))
    assert math.isnan(friedman([[1, 2, 3]]).p)


@given(st.dictionaries(st.sampled_from("abcdefg"), st.integers(0, 20), min_size=1), st.integers(1, 8))
def test_groups_that_are_not_separated_are_the_largest_ones(mean_ranks, difference):
    close = [
        {*part}
        for size in range(2, len(mean_ranks) + 1)
        for part in itertools.combinations(mean_ranks, size)
        if max(map(mean_ranks.__getitem__, part)) - min(map(mean_ranks.__getitem__, part)) < difference
    ]
    largest = [part for part in close if not any(part < other for other in close)]
    found = [{*group} for group in not_separated(mean_ranks, difference)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, largest))


# Seeds and orders


def test_variance_components_by_hand():
    """Rows (4, 6), (8, 14): MS_A = 36, MS_B = 16, MS_e = 4."""
    assert variance_components([[4, 6], [8, 14]]) == pytest.approx((16, 6, 4))
    assert variance_components([[0, 1], [1, 0]]) == pytest.approx((-0.5, -0.5, 1))
    assert all(map(math.isnan, variance_components([[1, 2, 3]])))


def test_variance_components_of_a_simulation():
    """The mean over many studies is the truth, as the estimates are unbiased."""
    rng = np.random.default_rng(0)
    a, b, truth = 4, 3, np.array([4.0, 1.0, 0.25])
    found = [
        variance_components(rng.normal(0, 2, (a, 1)) + rng.normal(0, 1, b) + rng.normal(0, 0.5, (a, b)))
        for _ in range(2000)
    ]
    error = np.std(found, axis=0) / math.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - truth) < 4 * error).all()
    assert (error < 0.03 * np.array([4, 2, 0.25])).all()
