"""Exact losses of toy models of superposition, and the critical points of one of them.

Losses are expected values over inputs, in closed form and differentiable; the output function is ReLU.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

_FLAT = 1e-6  # slopes below which a line counts as level: division by its square would lose all digits


def one_active_loss(vectors: Tensor, bias: Tensor) -> Tensor:
    """The expected loss of y = relu(W' W x + b), where one of f features is there, with a value uniform in [0, 1].

        L = 1/f sum_i int_0^1 [ (u - relu(G_ii u + b_i))^2 + sum_{j != i} relu(G_ji u + b_j)^2 ] du,   G = W' W

    Args:
        vectors: W, [..., n, f].
        bias: b, [..., f].
    """
    gram = vectors.transpose(-1, -2) @ vectors  # [..., j, i]: output j of feature i
    squares, products = _moments(gram, bias.unsqueeze(-1).expand(gram.shape))
    own = 1 / 3 - 2 * products.diagonal(dim1=-2, dim2=-1)
    return (own + squares.sum(-2)).mean(-1)


def _moments(slope: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """int_0^1 relu(a u + b)^2 du and int_0^1 u relu(a u + b) du."""
    level = slope.abs() < _FLAT
    a = slope.where(~level, 1.0)
    start, end = offset.relu(), (a + offset).relu()
    squares = (end**3 - start**3) / (3 * a)
    products = ((end**3 - start**3) / 3 - offset * (end**2 - start**2) / 2) / a**2
    # On a level line both are polynomials in b, up to terms of the order of the slope.
    return squares.where(~level, start**2 + start * slope), products.where(~level, start / 2 + slope / 3 * (offset > 0))


def two_features_loss(first: Tensor, second: Tensor, sparsity: float) -> Tensor:
    """The expected loss of y_i = relu(w_i (w_1 x_1 + w_2 x_2)), a sum over both features, weights w_1 and w_2 [...].

    A feature is 0 with the probability `sparsity`, or else uniform in [0, 1].
    """
    p, q = first, second
    alone = sum(((1 - w**2) ** 2 + (p * q).relu() ** 2) / 3 for w in (p, q))
    alike = sum(((1 - w**2) ** 2 + (p * q) ** 2) / 3 - (1 - w**2) * p * q / 2 for w in (p, q))
    unlike = _opposite(p.abs(), q.abs()) + _opposite(q.abs(), p.abs())
    both = alike.where(p * q >= 0, unlike)  # type: ignore[union-attr]
    return sparsity * (1 - sparsity) * alone + (1 - sparsity) ** 2 * both


def _opposite(p: Tensor, q: Tensor) -> Tensor:
    """E (x - p relu(p x - q y))^2 for x and y uniform in [0, 1], p and q > 0."""
    p, q = p.clamp_min(1e-12), q.clamp_min(1e-12)
    rest = (p - q).relu()
    square = (p**4 - rest**4) / (12 * p * q)
    product = p**2 / (8 * q) - (rest**4 / 4 + q * rest**3 / 3) / (2 * q * p**2)
    return 1 / 3 - 2 * p * product + p**2 * square


class Polygon(NamedTuple):
    """A critical point of `one_active_loss` with two hidden values: k features at equal angles, the others dead."""

    k: int
    dead_bias: str  # "positive" or "negative", of the features that are dead; "" if there are none
    loss: float
    length: float
    bias: float

    @property
    def name(self) -> str:
        """Such as "5-gon+": the sign tells the biases of dead features."""
        return f"{self.k}-gon{ {'positive': '+', 'negative': '-', '': ''}[self.dead_bias] }"


@cache
def polygons(features: int) -> tuple[Polygon, ...]:
    """The k-gons of so many features, from the highest loss to the lowest.

    The common length and bias of the k vectors minimise the loss; a dead feature has the bias that fits its mean, or a
    negative one. Source: Chen et al., "Dynamical versus Bayesian phase transitions in a toy model of superposition"
    (2023), section 3.
    """
    found = [_polygon(k, features, sign) for k in range(2, features + 1)
             for sign in (("positive", "negative") if k < features else ("",))]  # fmt: skip
    return tuple(sorted(found, key=lambda polygon: -polygon.loss))


def polygon_weights(k: int, features: int, length: float, bias: float, dead_bias: float) -> tuple[Tensor, Tensor]:
    """Vectors [2, f] and biases [f] of a k-gon, in double precision."""
    angles = 2 * math.pi * torch.arange(k, dtype=torch.float64) / k
    vectors, biases = torch.zeros(2, features, dtype=torch.float64), torch.full((features,), dead_bias).double()
    vectors[:, :k] = length * torch.stack([angles.cos(), angles.sin()])
    biases[:k] = bias
    return vectors, biases


def _polygon(k: int, features: int, dead_bias: str) -> Polygon:
    dead = 1 / (2 * features) if dead_bias == "positive" else -1.0

    def loss(values: np.ndarray) -> float:
        return float(one_active_loss(*polygon_weights(k, features, values[0], values[1], dead)))

    starts = [(1.0, 0.0), (1.2, -0.3), (1.3, -0.6)]
    best = min((minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000})
                for start in starts), key=lambda found: found.fun)  # fmt: skip
    return Polygon(k, dead_bias if k < features else "", float(best.fun), float(best.x[0]), float(best.x[1]))
