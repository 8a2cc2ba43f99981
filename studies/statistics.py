"""Statistics of a comparison over a few seeds: pure functions, NaN where undefined."""

import math
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import numpy as np
import scipy  # loads scipy.stats, which is slow, when it is used
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
K = TypeVar("K", bound=Hashable)  # which run: its seed, or its seed and the order of its tasks


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean, and half-width of its confidence interval.

        mean ± t_{n-1}((1 + level) / 2) s / sqrt(n),   s² = 1/(n-1) sum_i (x_i - mean)²

    Student (1908): exact for independent normal values. The half-width is NaN for n < 2, the mean for n = 0.
    """
    mean = float(np.mean(values)) if len(values) else math.nan
    if len(values) < 2:
        return mean, math.nan
    # scipy.stats.t and sem give the same, a hundred times as slowly: large studies have thousands of intervals.
    quantile = scipy.special.stdtrit(len(values) - 1, (1 + level) / 2)
    return mean, float(quantile * np.std(values, ddof=1) / math.sqrt(len(values)))


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Wilson's (1927) 95 % interval of a share that was measured on n examples."""
    low, high = scipy.stats.binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def paired_p(one: Sequence[float], other: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test that `one` and `other` have the same mean.

        t = mean(d) sqrt(n) / s(d),   d_i = one_i - other_i,   n - 1 degrees of freedom

    Student (1908). If s(d) = 0 up to rounding, t is replaced by its limit: p = 1 if all d are 0, else p = 0. NaN for
    n < 2. The values are of the same seeds in the same order.
    """
    difference = np.subtract(one, other)
    if len(difference) < 2:
        return math.nan
    if np.allclose(difference, difference[0], rtol=1e-12, atol=1e-12):  # equal but for rounding
        return float(abs(difference[0]) <= 1e-12)
    t = np.mean(difference) * math.sqrt(len(difference)) / np.std(difference, ddof=1)
    return float(2 * scipy.special.stdtr(len(difference) - 1, -abs(t)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of m tests, corrected so that all hold together: none is wrong with probability 1 - alpha.

        p_(k) <- max over j <= k of min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Holm (1979). NaN is no test: it stays, and does not count in m.
    """
    order = [i for i in np.argsort(p_values).tolist() if not math.isnan(p_values[i])]
    corrected, largest = list(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def against(one: Mapping[K, float], other: Mapping[K, float]) -> tuple[int, float, float, float]:
    """Number of common runs, mean of `one` - `other` over them, half-width of its 95 % interval, and p of the paired
    t-test; both map seed, or seed and order -> value."""
    common = [key for key in one if key in other]
    first, second = [one[seed] for seed in common], [other[seed] for seed in common]
    return len(common), *mean_interval(np.subtract(first, second).tolist()), paired_p(first, second)


def against_best(
    values: Mapping[str, Mapping[K, float]], higher_is_better: bool = True
) -> dict[str, tuple[int, float, float, float]]:
    """Compare each name with the one that has the best mean, over the seeds that both have.

    `values` maps name -> seed -> value. For each name: number of common seeds, mean difference from the best,
    half-width of its 95 % interval, and p of the paired t-test.
    """
    if not values:
        return {}
    means = {name: float(np.mean(list(found.values()))) for name, found in values.items()}
    best = values[(max if higher_is_better else min)(means, key=means.__getitem__)]
    return {name: against(found, best) for name, found in values.items()}


def level_with_best(
    values: Mapping[str, Mapping[K, float]], higher_is_better: bool = True, alpha: float = 0.05
) -> set[str]:
    """Names of the best mean and of every mean that a paired t-test over common seeds does not separate from it.

    Each is tested at `alpha`, uncorrected for the number of comparisons; none if no mean is separated from the best.
    """
    several = {name: found for name, found in values.items() if len(found) >= 2}
    tested = {name: p for name, (*_, p) in against_best(several, higher_is_better).items()}
    return {name for name, p in tested.items() if p >= alpha} if any(p < alpha for p in tested.values()) else set()


class Friedman(NamedTuple):
    """Friedman's test that all methods rank alike, and the F of Iman & Davenport; NaN where undefined."""

    chi2: float
    p: float
    f: float
    f_p: float


def ranks(values: ArrayLike) -> Array:
    """Ranks of k methods in each of N rows of [N, k] scores: 1 for the highest; equal scores share their mean rank."""
    return np.asarray(scipy.stats.rankdata(-np.asarray(values, float), axis=1))


def friedman(values: ArrayLike) -> Friedman:
    """Test that the k methods of scores [N, k] rank alike over N streams.

        chi2 = (12 / (N k (k + 1)) sum_j R_j² - 3 N (k + 1)) / C,   C = 1 - sum over ties (t³ - t) / (N k (k² - 1))
        F = (N - 1) chi2 / (N (k - 1) - chi2)

    R_j are sums of ranks, t the sizes of groups of equal scores in a row. Friedman (1937): chi2 has k - 1 degrees of
    freedom for large N. Iman & Davenport (1980): F has k - 1 and (k - 1)(N - 1), which is closer for small N, but not
    for fewer than five. NaN if k < 2 or N < 2, or if all scores are ties.
    """
    found = ranks(values)
    n, k = found.shape
    ties = [count**3 - count for row in found for count in np.unique(row, return_counts=True)[1].tolist()]
    spread = n * k * (k * k - 1) - sum(ties)
    if k < 2 or n < 2 or not spread:
        return Friedman(math.nan, math.nan, math.nan, math.nan)
    chi2 = float(12 * (k - 1) * ((found.sum(0) - n * (k + 1) / 2) ** 2).sum() / spread)
    left = n * (k - 1) - chi2
    f = (n - 1) * chi2 / left if left > 1e-9 * n * k else math.inf  # inf: every stream has the same ranks
    chi2_p, f_p = scipy.stats.chi2.sf(chi2, k - 1), scipy.stats.f.sf(f, k - 1, (k - 1) * (n - 1))
    return Friedman(chi2, float(chi2_p), f, float(f_p))


def permuted_p(values: ArrayLike, draws: int = 10_000) -> float:
    """The p of Friedman's test for any number of streams: how often random ranks have a chi2 as large, of `draws`.

        p = (1 + number of draws with as large a chi2) / (1 + draws)

    A draw puts the ranks of every row of scores [N, k] in a random order, always the same draws.
    """
    found, rng = ranks(values), np.random.default_rng(0)
    sums = np.zeros((draws, found.shape[1]))
    for row in found:
        sums += rng.permuted(np.tile(row, (draws, 1)), axis=1)
    spread = ((sums - sums.mean(1, keepdims=True)) ** 2).sum(1)
    return float(1 + (spread >= ((found.sum(0) - found.sum(0).mean()) ** 2).sum() - 1e-9).sum()) / (1 + draws)


@cache
def critical_difference(k: int, n: int, alpha: float = 0.05) -> float:
    """How far mean ranks of k methods over n streams must be apart for Nemenyi's test to separate them at `alpha`.

        CD = q sqrt(k (k + 1) / (6 n)),   q: the 1 - alpha quantile of the studentized range of k normals, / sqrt(2)

    Nemenyi (1963); Demšar, "Statistical comparisons of classifiers over multiple data sets" (2006), equation 8.
    """
    q = scipy.stats.studentized_range.ppf(1 - alpha, k, math.inf) / math.sqrt(2)
    return float(q * math.sqrt(k * (k + 1) / (6 * n)))


def not_separated(mean_ranks: Mapping[str, float], difference: float) -> list[tuple[str, ...]]:
    """The largest groups of at least two methods whose mean ranks all differ by less than `difference`, best first."""
    names = sorted(mean_ranks, key=mean_ranks.__getitem__)
    groups, end = list[tuple[str, ...]](), 0
    for begin, name in enumerate(names):
        last = sum(mean_ranks[other] - mean_ranks[name] < difference for other in names[begin:]) + begin
        if last > max(end, begin + 1):
            groups.append(tuple(names[begin:last]))
            end = last
    return groups


class Components(NamedTuple):
    """Estimated variances of a score: what the seed and the order add, and the rest with their interaction."""

    seed: float
    order: float
    rest: float


def variance_components(values: ArrayLike) -> Components:
    """Split the variance of scores [a seeds, b orders], one run each, by the method of moments; estimates may be < 0.

        y_ij = mu + A_i + B_j + e_ij,   var A = (MS_A - MS_e) / b,   var B = (MS_B - MS_e) / a,   var e = MS_e
        MS_A = b sum_i (y_i. - y..)² / (a - 1),   MS_B = a sum_j (y_.j - y..)² / (b - 1)
        MS_e = sum_ij (y_ij - y_i. - y_.j + y..)² / ((a - 1)(b - 1))

    The two-way model with random effects: Searle, Casella & McCulloch, "Variance Components" (1992). With one run in a
    cell the interaction of seed and order is part of the rest. NaN if a < 2 or b < 2.
    """
    y = np.asarray(values, float)
    a, b = y.shape
    if a < 2 or b < 2:
        return Components(math.nan, math.nan, math.nan)
    seeds, orders = y.mean(1) - y.mean(), y.mean(0) - y.mean()
    rest = float(((y - y.mean() - seeds[:, None] - orders) ** 2).sum() / ((a - 1) * (b - 1)))
    by_seed, by_order = float(b * (seeds**2).sum() / (a - 1)), float(a * (orders**2).sum() / (b - 1))
    return Components((by_seed - rest) / b, (by_order - rest) / a, rest)
