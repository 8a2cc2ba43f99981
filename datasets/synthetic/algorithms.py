"""Algorithms to be learned: inputs [N, n] -> answers, exact where entries are equal, on any device.

Of equal entries the first one counts as the larger: "descending order" is that of a stable sort. Inputs are standard
normal numbers, float32, or maps f of {0, ..., n - 1} into itself, int64, entry i being f(i).

Source: the tasks of AlgZoo (Alignment Research Center); its argmax, 2nd_argmax, argmedian, median, argoutlier and
longest_cycle leave open what equal entries mean.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from datasets.objectives import CrossEntropy, Objective, RealNumbers
from utils.seeding import on_device

GAUSSIAN, MAP = "gaussian", "map"  # kinds of inputs
CLASSES = CrossEntropy()
GAPS = 4  # equal parts of a split by the gap between the two largest entries


def argmax(values: Tensor) -> Tensor:
    """Position of the largest entry, [N]."""
    return values.argmax(-1)


def second_argmax(values: Tensor) -> Tensor:
    """Position of the second largest entry, [N]."""
    largest = values.argmax(-1, keepdim=True)
    return values.scatter(-1, largest, -torch.inf).argmax(-1)


def argmedian(values: Tensor) -> Tensor:
    """Position of the median, [N]; for even n that of the larger of the two middle entries."""
    return values.argsort(dim=-1, descending=True, stable=True)[:, (values.shape[-1] - 1) // 2]


def median(values: Tensor) -> Tensor:
    """The median, [N, 1]; for even n the mean of the two middle entries."""
    n = values.shape[-1]
    return values.sort(-1).values[:, [(n - 1) // 2, n // 2]].mean(-1, keepdim=True)


def argoutlier(values: Tensor) -> Tensor:
    """Position of the entry that is farthest from the mean of all, [N]; of equal distances the first."""
    exact = values.double()  # n times the distance: no rounding of a mean decides
    return (values.shape[-1] * exact - exact.sum(-1, keepdim=True)).abs().argmax(-1)


def longest_cycle(maps: Tensor) -> Tensor:
    """Length of the longest cycle of each map, less 1, [N]."""
    starts = torch.arange(maps.shape[-1], device=maps.device).expand_as(maps)
    places, away = maps, torch.ones_like(maps, dtype=torch.bool)  # away: has not come back to its start yet
    answers = torch.zeros_like(maps[:, 0])
    for steps in range(maps.shape[-1]):
        back = (places == starts) & away
        answers[back.any(-1)] = steps
        places, away = maps.gather(-1, places), away & ~back
    return answers


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm answers, and how its inputs are drawn."""

    answer: Callable[[Tensor], Tensor]
    inputs: str = GAUSSIAN
    objective: Objective = CLASSES
    by_gap: bool = False  # examples are scored by the gap between their two largest entries as well

    @property
    def classes(self) -> bool:
        """Whether an answer is one of n positions or lengths, not a number."""
        return isinstance(self.objective, CrossEntropy)

    def outputs(self, length: int) -> int:
        """Outputs of a network for inputs of that length."""
        return length if self.classes else 1

    def slices(self, inputs: Tensor, answers: Tensor) -> dict[str, Tensor]:
        """Positions of examples by their answer and, in equal parts, by their gap; "gap 1 of 4" has the smallest."""
        parts = {}
        if self.classes:
            named = ((f"answer {number}", answers == number) for number in range(inputs.shape[-1]))
            parts = {name: chosen.nonzero().flatten() for name, chosen in named}
        if self.by_gap:
            largest, second = inputs.topk(2).values.unbind(-1)
            quarters = (largest - second).argsort(stable=True).tensor_split(GAPS)
            parts |= {f"gap {number} of {GAPS}": part for number, part in enumerate(quarters, 1)}
        return {name: part for name, part in parts.items() if len(part)}

    def baselines(self, length: int, readout: bool = False) -> dict[str, float]:
        """The expected main score of answers that need no network, by name.

        "chance", the best constant answer; for the median "zero" and "sample mean".
        """
        if self.inputs == MAP:
            return {"chance": float(max(cycle_shares(length - readout)))}
        if self.classes:
            return {"chance": 1 / length}
        variance = median_variance(length)
        # The mean is independent of the differences between entries, so of median - mean (Basu): their variances add.
        return {"zero": math.sqrt(variance), "sample mean": math.sqrt(max(0.0, variance - 1 / length))}


ALGORITHMS = {
    "argmax": Algorithm(argmax),
    "2nd_argmax": Algorithm(second_argmax, by_gap=True),
    "argmedian": Algorithm(argmedian),
    "median": Algorithm(median, objective=RealNumbers()),
    "argoutlier": Algorithm(argoutlier),
    "longest_cycle": Algorithm(longest_cycle, MAP),
}


def draw(inputs: str, count: int, length: int, readout: bool, rng: torch.Generator, device: torch.device) -> Tensor:
    """Random inputs of a kind, [count, length] on the device.

    With `readout` a map is one of {0, ..., n - 2}, to which the token n - 1 is appended: there an answer can be read.
    """
    rng = on_device(rng, device)
    if inputs == GAUSSIAN:
        return torch.randn(count, length, generator=rng, device=device)
    maps = torch.randint(length - readout, (count, length - readout), generator=rng, device=device)
    return torch.cat([maps, torch.full_like(maps[:, :1], length - 1)], -1) if readout else maps


def cycle_shares(n: int) -> list[Fraction]:
    """Of all n^n maps, the share whose longest cycle has length 1, 2, ..., n.

        maps with no cycle longer than k = sum_m C(n, m) P(m, k) m n^(n - m - 1)
        P(m, k) = sum_j (m - 1)! / (m - j)! P(m - j, k),   j = 1 .. min(k, m)

    m entries lie on cycles, in one of P(m, k) permutations; the others form a forest whose roots are these m.
    """
    up_to = [Fraction(0)]
    for k in range(1, n + 1):
        permutations = [1]
        for m in range(1, n + 1):
            ways = (math.perm(m - 1, j - 1) * permutations[m - j] for j in range(1, min(k, m) + 1))
            permutations.append(sum(ways))
        forests = (math.comb(n, m) * permutations[m] * m * Fraction(n) ** (-m - 1) for m in range(1, n + 1))
        up_to.append(sum(forests, Fraction(0)))
    return [after - before for before, after in pairwise(up_to)]


def median_variance(n: int) -> float:
    """Variance of the median of n standard normal numbers.

    The integral of m^2 over the joint density of the middle entries m - t and m + t, by Gauss-Legendre quadrature; for
    odd n these are one entry, t = 0.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    even = n % 2 == 0
    m = 10 / math.sqrt(n) * nodes[:, None]  # 8 standard deviations to each side or more
    t = 20 / n * (nodes + 1) if even else np.zeros(1)
    below, above = (torch.special.ndtr(torch.from_numpy(edge)).numpy() for edge in (m - t, -(m + t)))
    middle = np.exp(-((m - t) ** 2 + even * (m + t) ** 2) / 2)
    mass = weights[:, None] * (weights if even else 1) * (below * above) ** ((n - 1) // 2) * middle
    return float((mass * m**2).sum() / mass.sum())
