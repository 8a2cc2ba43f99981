"""Phases of two features with one hidden value: which of them are represented, by sparsity and importance.

Losses of candidate solutions and the lines at which the best one changes. Source: Elhage et al., "Toy models of
superposition" (2022), section "Superposition as a phase change".
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from evaluation.landscape import relu_moments

FIRST, BOTH, SECOND = "only feature 1", "both, superposed", "only feature 2"
_NODES, _SHARES = (torch.tensor(values / 2) for values in np.polynomial.legendre.leggauss(64))


def errors(weights: Tensor, bias: Tensor, probability: float) -> Tensor:
    """The expected squared errors, [2], of y_i = relu(w_i (w_1 x_1 + w_2 x_2) + b_i), weights and biases [2].

    A feature is uniform in [0, 1] with the probability p, or else 0. Exact but for the integral over one of two
    features that are both there, by 64 nodes of Gauss and Legendre: an error below 1e-5.
    """
    p, cross, found = probability, weights.prod(), []
    for slope, offset in zip(weights**2, bias, strict=True):
        offsets = cross * (_NODES + 0.5) + offset
        squares, products = relu_moments(slope.expand_as(offsets), offsets)
        both = ((1 / 3 - 2 * products + squares) * _SHARES).sum()
        squares, products = relu_moments(slope, offset)
        alone = 1 / 3 - 2 * products + squares + relu_moments(cross, offset)[0]  # itself, and the other one
        found.append(p * p * both + p * (1 - p) * alone + (1 - p) ** 2 * offset.relu() ** 2)
    return torch.stack(found)


def candidates(probability: float, importance: float) -> dict[str, float]:
    """The losses of the three solutions: one feature is left out, its output the mean p / 2, or w_1 w_2 < 0.

        L(only one) = importance of the other (p / 3 - p^2 / 4)

    Weights and biases of the superposition minimise the loss, from (1, -1) on; it ends at one feature alone where
    there is no such minimum. The importance is that of feature 2, that of feature 1 is 1.
    """

    def loss(point: Tensor) -> Tensor:
        first, second = errors(point[:2], point[2:], probability)
        return first + importance * second

    spread = _variance(probability)
    return {FIRST: importance * spread, BOTH: float(_lowest(loss, probability).fun), SECOND: spread}


def boundary(probability: float) -> float | None:
    """The importance of feature 2 below which the best solution leaves it out; above 1 / it, feature 1 is left out.

        min e_1 / (p / 3 - p^2 / 4 - e_2)   over weights and biases, with the squared errors e_1 and e_2

    since e_1 + I e_2 < I (p / 3 - p^2 / 4) is I > that ratio. None if superposition is never the best, since features
    are there too often.
    """

    def ratio(point: Tensor) -> Tensor:
        first, second = errors(point[:2], point[2:], probability)
        return first.log() - (_variance(probability) - second).clamp_min(1e-12).log()

    # Both weights stay away from 0, where the ratio is 0 / 0.
    found = float(np.exp(_lowest(ratio, probability, [(0.1, 2.0), (-2.0, -0.1), (None, None), (None, None)]).fun))
    return found if found < 1 - 1e-6 else None


def _lowest(
    function: Callable[[Tensor], Tensor],
    probability: float,
    bounds: Sequence[tuple[float | None, float | None]] | None = None,
) -> OptimizeResult:
    """The minimum of a function of weights and biases, [4], nearest to those of superposition."""

    def of(values: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.tensor(values, requires_grad=True)
        value = function(point)
        (slope,) = torch.autograd.grad(value, point)
        return value.item(), slope.numpy()

    # Both features at their best length when they are rare, and when they are frequent.
    starts = [1.0, -1.0, 0.0, 0.0], [0.75, -0.75, probability / 2, probability / 2]
    options = {"ftol": 1e-13, "gtol": 1e-8}
    return min((minimize(of, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for start in starts),
               key=lambda found: found.fun)  # fmt: skip


def _variance(probability: float) -> float:
    """Of a feature: the error of an output that is its mean."""
    return probability / 3 - probability**2 / 4


def phase(lengths: tuple[float, float], least: float = 0.25) -> str:
    """The phase of a trained network by the sizes of its two weights: a feature with w^2 < `least` is left out."""
    first, second = (length**2 >= least for length in lengths)
    return {(True, False): FIRST, (True, True): BOTH, (False, True): SECOND}.get((first, second), "")
