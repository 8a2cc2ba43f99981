"""Statistics of a comparison over a few seeds: pure functions, NaN where undefined."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy  # loads scipy.stats, which is slow, when it is used


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


def against(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[int, float, float, float]:
    """Number of common seeds, mean of `one` - `other` over them, half-width of its 95 % interval, and p of the paired
    t-test; both map seed -> value."""
    common = sorted(one.keys() & other.keys())
    first, second = [one[seed] for seed in common], [other[seed] for seed in common]
    return len(common), *mean_interval(np.subtract(first, second).tolist()), paired_p(first, second)


def against_best(
    values: Mapping[str, Mapping[int, float]], higher_is_better: bool = True
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
    values: Mapping[str, Mapping[int, float]], higher_is_better: bool = True, alpha: float = 0.05
) -> set[str]:
    """Names of the best mean and of every mean that a paired t-test over common seeds does not separate from it.

    Each is tested at `alpha`, uncorrected for the number of comparisons; none if no mean is separated from the best.
    """
    several = {name: found for name, found in values.items() if len(found) >= 2}
    tested = {name: p for name, (*_, p) in against_best(several, higher_is_better).items()}
    return {name for name, p in tested.items() if p >= alpha} if any(p < alpha for p in tested.values()) else set()
