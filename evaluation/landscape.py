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
    squares, products = relu_moments(gram, bias.unsqueeze(-1).expand(gram.shape))
    own = 1 / 3 - 2 * products.diagonal(dim1=-2, dim2=-1)
    return (own + squares.sum(-2)).mean(-1)


def one_hot_loss(vectors: Tensor, bias: Tensor) -> Tensor:
    """The expected loss of y = relu(W' W x + b), where one of f features is there, with the value 1.

    Args:
        vectors: W, [..., n, f].
        bias: b, [..., f].
    """
    outputs = (vectors.transpose(-1, -2) @ vectors + bias.unsqueeze(-1)).relu()  # [..., j, i]: output j of feature i
    return (torch.eye(outputs.shape[-1], dtype=outputs.dtype) - outputs).square().sum(-2).mean(-1)


def relu_moments(slope: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """int_0^1 relu(a u + b)^2 du and int_0^1 u relu(a u + b) du, a and b of the same shape."""
    level = slope.abs() < _FLAT
    a = slope.where(~level, 1.0)
    start, end = offset.relu(), (a + offset).relu()
    squares = (end**3 - start**3) / (3 * a)
    products = ((end**3 - start**3) / 3 - offset * (end**2 - start**2) / 2) / a**2
    # On a level line both are polynomials in a and b, exact where b > 0, so that second derivatives are right, too.
    above = offset > 0
    flat = start**2 + start * slope + slope**2 / 3 * above, start / 2 + slope / 3 * above
    return squares.where(~level, flat[0]), products.where(~level, flat[1])


def two_features_loss(first: Tensor, second: Tensor, sparsity: float, importance: float = 1.0) -> Tensor:
    """The expected loss of y_i = relu(w_i (w_1 x_1 + w_2 x_2)), a sum over both features, weights w_1 and w_2 [...].

    A feature is 0 with the probability `sparsity`, or else uniform in [0, 1]; the squared error of the second counts
    `importance` times.
    """
    p, q = first, second

    def one(own: Tensor, other: Tensor) -> Tensor:
        alone = ((1 - own**2) ** 2 + (p * q).relu() ** 2) / 3
        alike = ((1 - own**2) ** 2 + (p * q) ** 2) / 3 - (1 - own**2) * p * q / 2
        both = alike.where(p * q >= 0, _opposite(own.abs(), other.abs()))
        return sparsity * (1 - sparsity) * alone + (1 - sparsity) ** 2 * both

    return one(p, q) + importance * one(q, p)


def _opposite(p: Tensor, q: Tensor) -> Tensor:
    """E (x - p relu(p x - q y))^2 for x and y uniform in [0, 1], p and q > 0."""
    p, q = p.clamp_min(1e-12), q.clamp_min(1e-12)
    rest = (p - q).relu()
    square = (p**4 - rest**4) / (12 * p * q)
    product = p**2 / (8 * q) - (rest**4 / 4 + q * rest**3 / 3) / (2 * q * p**2)
    return 1 / 3 - 2 * p * product + p**2 * square


class Polygon(NamedTuple):
    """A critical point of a loss with two hidden values: k features at equal angles, the others dead."""

    k: int
    positive: int  # dead features whose bias is positive
    negative: int  # dead features whose bias is negative
    loss: float
    length: float  # of the k vectors; without biases features may share one, whose length is then that of them all
    bias: float  # of the k features

    @property
    def dead_bias(self) -> str:
        """Of the dead features: "positive", "negative", "mixed", or "" if there are none, or no biases."""
        return {(True, False): "positive", (False, True): "negative", (True, True): "mixed"}.get(
            (self.positive > 0, self.negative > 0), ""
        )

    @property
    def name(self) -> str:
        """Such as "5-gon+": the sign tells the biases of all dead features; "3-gon++-": where they differ, of each."""
        signs = {"positive": "+", "negative": "-", "": "", "mixed": "+" * self.positive + "-" * self.negative}
        return f"{self.k}-gon{signs[self.dead_bias]}"


@cache
def polygons(features: int, mixed: bool = False) -> tuple[Polygon, ...]:
    """The k-gons of `one_active_loss` with so many features, from the highest loss to the lowest.

    The common length and bias of the k vectors minimise the loss. A dead feature has the bias that fits its mean,
    1 / 2f, or a negative one, which costs 1 / 4f^2 more. Source: Chen et al., "Dynamical versus Bayesian phase
    transitions in a toy model of superposition" (2023), section 3.

    Args:
        mixed: with those k-gons whose dead features have biases of both signs.
    """
    found = []
    for k in range(2, features + 1):
        lowest, dead = _polygon(k, features), features - k
        for positive in range(dead + 1) if mixed else sorted({0, dead}):
            loss = lowest.loss + (dead - positive) / (4 * features**2)
            found.append(lowest._replace(positive=positive, negative=dead - positive, loss=loss))
    return tuple(sorted(found, key=lambda polygon: -polygon.loss))


def polygons_without_biases(features: int) -> tuple[Polygon, ...]:
    """The k-gons of `one_hot_loss` without biases, from the highest loss to the lowest; others share their directions.

        L = (f - k + k c / (1 + c)) / f,   length^2 = 1 / (1 + c),   c = sum_{j=1}^{k-1} relu(cos 2 pi j / k)^2

    Features that share a direction are worth as much as one whose squared length is the sum of theirs. Where values
    are uniform in [0, 1) instead of 1, losses are a third: without biases reconstructions are proportional to values.
    """
    found = []
    for k in range(2, features + 1):
        cost = sum(max(0.0, math.cos(2 * math.pi * j / k)) ** 2 for j in range(1, k))
        found.append(Polygon(k, 0, 0, (features - k + k * cost / (1 + cost)) / features, (1 + cost) ** -0.5, 0.0))
    return tuple(sorted(found, key=lambda polygon: -polygon.loss))


def polygon_weights(k: int, features: int, length: float, bias: float, dead_bias: float) -> tuple[Tensor, Tensor]:
    """Vectors [2, f] and biases [f] of a k-gon, in double precision."""
    angles = 2 * math.pi * torch.arange(k, dtype=torch.float64) / k
    vectors, biases = torch.zeros(2, features, dtype=torch.float64), torch.full((features,), dead_bias).double()
    vectors[:, :k] = length * torch.stack([angles.cos(), angles.sin()])
    biases[:k] = bias
    return vectors, biases


def dimensions(polygon: Polygon) -> float | None:
    """Half the rank of the Hessian of `one_active_loss` at a k-gon: its learning coefficient if nothing else is flat.

    None where the loss has no Hessian: with a bias of 0, k up to 4, outputs are at the kink of ReLU.
    """
    features = polygon.k + polygon.positive + polygon.negative
    if polygon.bias > -1e-3:
        return None
    vectors, biases = polygon_weights(polygon.k, features, polygon.length, polygon.bias, -1.0)
    biases[polygon.k : polygon.k + polygon.positive] = 1 / (2 * features)

    def loss(point: Tensor) -> Tensor:
        return one_active_loss(point[: 2 * features].view(2, features), point[2 * features :])

    hessian = torch.autograd.functional.hessian(loss, torch.cat([vectors.flatten(), biases]))
    values = torch.linalg.eigvalsh(hessian).abs()
    return float((values > 1e-5 * values.max()).sum()) / 2


@cache
def _polygon(k: int, features: int) -> Polygon:
    """The k-gon whose dead features have positive biases."""

    def loss(values: np.ndarray) -> float:
        return float(one_active_loss(*polygon_weights(k, features, values[0], values[1], 1 / (2 * features))))

    starts = [(1.0, 0.0), (1.2, -0.3), (1.3, -0.6)]
    best = min((minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000})
                for start in starts), key=lambda found: found.fun)  # fmt: skip
    return Polygon(k, features - k, 0, float(best.fun), float(best.x[0]), float(best.x[1]))
