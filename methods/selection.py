"""How past tasks are chosen for the next member: from what was measured of each to its probability of being drawn.

To add a selector: one function and one line in SELECTORS. Nothing here looks at single members again, so that the cost
does not grow with their number.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST, _MOST = 1e-4, 1e3  # weights before they are divided by their sum
_RECENT = 0.5  # share of the newest fall in the moving mean of `progress`
_GRID = 4001  # points of the integral of `largest_probabilities`


class Fit(NamedTuple):
    """How well the zoo fits the kept training examples of a task: what selectors know of it.

    Attributes:
        loss: of the mean of the members trained on the task; of the uninformed prediction if there are none.
        weight, squared_weights: sum of the members' weights in this mean, and of their squares.
        alone: sum over members of weight times the loss of the member alone.
        recent: moving mean of the falls of `loss` that members brought; the first is from the uninformed prediction.
        replays: members after the first; gain, squared_gains: sum of the falls that they brought, and of the squares.
    """

    loss: float
    weight: float = 0.0
    squared_weights: float = 0.0
    alone: float = 0.0
    recent: float = 0.0
    replays: int = 0
    gain: float = 0.0
    squared_gains: float = 0.0

    def joined(self, before: float, after: float, alone: float, weight: float) -> "Fit":
        """The fit with one more member, of this loss and weight; before and after it joined, on the same examples."""
        fall, replayed = before - after, self.weight > 0
        return Fit(
            after,
            self.weight + weight,
            self.squared_weights + weight**2,
            self.alone + weight * alone,
            _RECENT * fall + (1 - _RECENT) * self.recent if replayed else fall,
            self.replays + replayed,
            self.gain + fall * replayed,
            self.squared_gains + fall**2 * replayed,
        )

    @property
    def members(self) -> float:
        """The number of equally weighted members whose mean varies as much: (sum of w)² / sum of w²; Kish (1965)."""
        return self.weight**2 / self.squared_weights if self.weight else 0.0


def boosting_weights(losses: Tensor) -> Tensor:
    """Probability of drawing each task: larger where the zoo fits it worse.

        w_i = clip(exp((l_i - m) / m), 1e-4, 1e3) / sum,   m = mean of the losses

    `losses`: [T], of the zoo on the kept training examples of each task; equal ones, also all zero, give equal weights.

    Source: Ramesh & Chaudhari (2022); centring and clipping as in the authors' code.
    """
    losses = losses.double()
    mean = losses.mean().clamp_min(torch.finfo(torch.float64).tiny)
    weights = ((losses - mean) / mean).exp().clamp(_LEAST, _MOST)
    return weights / weights.sum()


def boosting(fits: Sequence[Fit]) -> Tensor:
    """`boosting_weights` of the losses, [T]."""
    return boosting_weights(_column(fit.loss for fit in fits))


def uniform(fits: Sequence[Fit]) -> Tensor:
    """Equal probabilities, [T]."""
    return torch.full((len(fits),), 1 / len(fits), dtype=torch.float64)


def progress(fits: Sequence[Fit]) -> Tensor:
    """`boosting_weights` of the recent fall of the loss in the place of the loss, [T].

        q <- (fall + q) / 2 with each member trained on the task, negative q counting as 0

    The first q is the fall from the uninformed prediction: a task that was not replayed yet is likely to be drawn. One
    without a member can fall by all of its loss.

    Source: Matiisen et al. (2017), "Teacher-Student Curriculum Learning", the online algorithm; there |q|, as a network
    forgets.
    """
    return boosting_weights(_column(max(0.0, fit.recent) if fit.weight else fit.loss for fit in fits))


def gain(fits: Sequence[Fit]) -> Tensor:
    """Probability that replaying the task makes its loss fall more than replaying any other, [T]; Thompson sampling.

        gain of task i ~ Normal((m + G_i) / (1 + n_i), s² / (1 + n_i))

    G_i: sum of the falls that the n_i replays of task i brought; m, s²: mean and variance of those of all tasks, which
    count as one more replay of each, so that a task that was not replayed is expected to gain as much as the others.
    Equal probabilities as long as no two gains differ.

    Source: Thompson (1933); the prior is fitted to all tasks (empirical Bayes, Efron & Morris 1975).
    """
    replays, total = _column(fit.replays for fit in fits), _column(fit.gain for fit in fits)
    count = replays.sum().clamp_min(1)
    mean = total.sum() / count
    variance = sum(fit.squared_gains for fit in fits) / count - mean**2
    if variance <= 1e-12 * mean**2:  # none, up to rounding
        return uniform(fits)
    probabilities = largest_probabilities((mean + total) / (1 + replays), (variance / (1 + replays)).sqrt())
    probabilities = probabilities.clamp_min(_LEAST)
    return probabilities / probabilities.sum()


def above_floor(fits: Sequence[Fit]) -> Tensor:
    """`boosting_weights` of the loss above an estimated noise floor in the place of the loss, [T].

        l - floor = max(0, a - l) / (n - 1),   l = floor + v / n,   a = floor + v

    l: loss of the mean of n members, a: their mean loss alone, floor: loss of the mean of infinitely many; exact for
    squared errors of independent members. With a single member v is the share of its loss that it is in the tasks with
    several members (all of it if there are none); without a member all of the loss is above the floor.

    Source: the decompositions of Krogh & Vedelsby (1995) and Ueda & Nakano (1996).
    """
    several = [fit for fit in fits if fit.replays]
    alone = [fit.alone / fit.weight for fit in several]
    savings = sum(_saving(fit) * fit.members for fit in several)
    share = savings / sum(alone) if sum(alone) > 0 else 1.0
    return boosting_weights(
        _column(_saving(fit) if fit.replays else fit.loss * (share if fit.weight else 1.0) for fit in fits)
    )


SELECTORS: Mapping[str, Callable[[Sequence[Fit]], Tensor]] = {
    "boosting": boosting,
    "uniform": uniform,
    "progress": progress,
    "gain": gain,
    "above_floor": above_floor,
}


def relative_entropy(probabilities: Sequence[float]) -> float:
    """Entropy over that of as many equal probabilities, from 0, one is certain, to 1; Shannon (1948). Two or more."""
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    return entropy / math.log(len(probabilities))


def largest_probabilities(means: Tensor, deviations: Tensor) -> Tensor:
    """Probability that each of T independent normal values is the largest, [T].

    p_i = integral of pdf_i(x) times the product over j ≠ i of cdf_j(x), by the trapezoidal rule.
    """
    reach = 8 * deviations.max()
    x = torch.linspace(0, 1, _GRID, dtype=torch.float64) * (means.max() - means.min() + 2 * reach)
    z = (x + means.min() - reach - means[:, None]) / deviations[:, None]
    below = torch.special.log_ndtr(z)
    densities = (below.sum(0) - below - z**2 / 2 - deviations[:, None].log()).exp()
    return densities.sum(1) / densities.sum()


def _saving(fit: Fit) -> float:
    """What infinitely many members would save over those that there are, two or more."""
    return max(0.0, fit.alone / fit.weight - fit.loss) / (fit.members - 1)


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
