"""The geometry of features in an autoencoder: which are represented, how they share its dimensions."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.objectives import Scored, Scores
from datasets.task import Task
from evaluation.landscape import Polygon, one_active_loss, one_hot_loss, polygons, polygons_without_biases
from evaluation.subject import Subject
from net.activations import ACTIVATIONS
from net.autoencoder import Autoencoder
from net.multihead import MultiHead

REPRESENTED = 0.5  # squared length from which a feature counts as represented
MOST, MOST_LENGTHS = 512, 64  # features that have scores of their own
MOST_POLYGONS = 16  # features of which polygons are looked for: the time to find all k-gons grows with them
TOLERANCE = 0.15  # of lengths, relative to that of a polygon, and of angles, relative to that between its neighbours
SHORT = 0.35  # the most length of a dead feature, relative to that of a polygon


@torch.no_grad()
def geometry(subject: Subject) -> Scores:
    """How the vectors of the features, columns of W, lie to each other.

        dimensionality of i = |W_i|^2 / sum_j (u_i . W_j)^2,   u_i = W_i / |W_i|;  0 if W_i = 0
        interference of i = sum_{j != i} (u_i . W_j)^2
        dimensions per feature = n / |W|_F^2

    "represented" is the number of features of squared length 0.5 or more, "dead" that of the others, and "dead, bias
    above 0" and "dead, bias below 0" tell their biases. "dimensionality of I" is there for up to 512 features, "length
    of I" for up to 64.

    Of two hidden values and features of which one at a time is there, "loss" is the exact expected one, "polygon" the k
    of the k-gon that the vectors form, see `polygon_of`, 0 if they form none, "critical loss" that of this k-gon with
    these signs of dead biases, and "above critical" the difference of both losses. Polygons are looked for where they
    are known: with uniform values, or without biases, of up to 16 features.

    Source: Elhage et al., "Toy models of superposition" (2022); Chen et al., "Dynamical versus Bayesian phase
    transitions in a toy model of superposition" (2023).
    """
    net = subject.net.trunk
    assert isinstance(net, Autoencoder)
    vectors = net.vectors().double().cpu()
    bias = None if net.bias is None else net.bias.double().cpu()
    lengths, dimensionality, interference = measures(vectors)
    dead = lengths**2 < REPRESENTED
    count = len(lengths)
    found = {
        "represented": _number(float((~dead).sum())),
        "dead": _number(float(dead.sum())),
        "dimensions per feature": _number(float(len(vectors) / vectors.square().sum())),
        "dimensionality": _number(float(dimensionality.sum())),
        "interference": _number(float(interference.mean())),
    }
    if bias is not None:
        found["dead, bias above 0"] = _number(float((dead & (bias > 0)).sum()))
        found["dead, bias below 0"] = _number(float((dead & (bias < 0)).sum()))
    if _one_at_a_time(subject, net):
        found |= _planar(subject, vectors, bias)
    for number in range(count if count <= MOST else 0):
        if count <= MOST_LENGTHS:
            found[f"length of {number}"] = _number(float(lengths[number]))
        found[f"dimensionality of {number}"] = _number(float(dimensionality[number]))
    return found


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network; "" if it can."""
    return "" if isinstance(net.trunk, Autoencoder) else "only an autoencoder has vectors of features"


def measures(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Length, dimensionality and interference of each feature, [..., f], from their vectors [..., n, f]."""
    lengths = vectors.norm(dim=-2)
    units = vectors / lengths.clamp_min(1e-12).unsqueeze(-2)
    shared = (units.transpose(-1, -2) @ vectors).square()  # [..., i, j]
    total = shared.sum(-1)
    dimensionality = (lengths**2 / total.clamp_min(1e-24)).where(lengths > 0, 0.0)
    return lengths, dimensionality, total - lengths**2


def polygon_of(vectors: Tensor, bias: Tensor | None, points: Sequence[Polygon]) -> Polygon | None:
    """The k-gon of `points` that vectors [2, f] form, with these signs of dead biases; None if they form none.

    k vectors are as long as those of the k-gon, within 15 %, the others at most 0.35 times as long. Neighbours are at
    an angle of 360 / k degrees, within 15 %; with k up to 3 at least 90 degrees less 15 %, from where on features
    do not interfere, so that their angles are free. Without biases vectors within 15 % of that angle count as one.

    Source: Chen et al., "Dynamical versus Bayesian phase transitions in a toy model of superposition" (2023).
    """
    for point in points:
        shape = vectors if bias is not None else _shared(vectors, TOLERANCE * 2 * math.pi / point.k)
        relative = shape.norm(dim=0) / point.length
        alive = relative > SHORT
        if int(alive.sum()) != point.k or ((relative[alive] - 1).abs() > TOLERANCE).any():
            continue
        if bias is not None and int((bias[~alive] > 0).sum()) != point.positive:
            continue
        if _evenly(shape[:, alive]):
            return point
    return None


def _evenly(vectors: Tensor) -> bool:
    """Whether the angles between neighbouring vectors [2, k] are those of a k-gon."""
    gaps, k = _gaps(vectors)[1] / (2 * math.pi), vectors.shape[1]
    if k <= 3:
        return bool((gaps >= (1 - TOLERANCE) / 4).all())
    return bool(((k * gaps - 1).abs() <= TOLERANCE).all())


def _gaps(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors [2, k] in the order of their angles, and the angles between neighbours, whose sum is 2 pi."""
    angles, order = torch.atan2(vectors[1], vectors[0]).sort()
    return vectors[:, order], torch.cat([angles[1:], angles[:1] + 2 * math.pi]) - angles


def _shared(vectors: Tensor, angle: float) -> Tensor:
    """Vectors [2, f] with those joined whose neighbours are within an angle: of the sum of their squared lengths."""
    ordered, gaps = _gaps(vectors)
    ends = (gaps > angle).nonzero().flatten().tolist()
    if not ends:
        return vectors
    ordered = ordered.roll(-ends[-1] - 1, 1)  # to begin after an end
    sizes = [b - a for a, b in zip([ends[-1] - ordered.shape[1], *ends], ends, strict=False)]
    joined = []
    for part in ordered.split(sizes, 1):
        direction = (part * part.norm(dim=0)).sum(1)
        joined.append(direction / direction.norm().clamp_min(1e-12) * part.norm())
    return torch.stack(joined, 1)


def _one_at_a_time(subject: Subject, net: Autoencoder) -> bool:
    """Whether the exact loss is known: two hidden values, one feature at a time, all equally important."""
    values, importances = subject.task.test.targets.unbind(-2)
    plain = net.decoder is None and net.hidden_bias is None and net.factor is None and net.scale == 1
    plain = plain and net.lengths == "free" and net.activation is ACTIVATIONS["relu"]
    alone = bool(((values != 0).sum(-1) == 1).all() and (importances == importances[:1, :1]).all())
    return plain and alone and net.width == 2


def _planar(subject: Subject, vectors: Tensor, bias: Tensor | None) -> Scores:
    """The exact loss and the polygon of vectors [2, f]; critical points are known of uniform values, or no biases."""
    values, importances = subject.task.test.targets.unbind(-2)
    count, scale, ones = vectors.shape[1], float(importances.flatten()[0]), bool((values.sum(-1) == 1).all())
    of = one_hot_loss if ones else one_active_loss
    loss = scale * float(of(vectors, torch.zeros(count).double() if bias is None else bias))
    if (bias is not None and ones) or count > MOST_POLYGONS:
        return {"loss": _number(loss)}
    point = polygon_of(vectors, bias, polygons_without_biases(count) if bias is None else polygons(count, mixed=True))
    if point is None:
        return {"loss": _number(loss), "polygon": _number(0.0)}
    critical = scale * point.loss * (1 if bias is not None or ones else 1 / 3)
    return {"loss": _number(loss), "polygon": _number(float(point.k)), "critical loss": _number(critical),
            "above critical": _number(loss - critical)}  # fmt: skip


def _number(value: float) -> Scored:
    return Scored(value, None, 1)
