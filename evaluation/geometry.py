"""The geometry of features in an autoencoder: which are represented, how they share its dimensions."""

import torch
from torch import Tensor

from datasets.objectives import Scored, Scores
from datasets.task import Task
from evaluation.landscape import one_active_loss, polygons
from evaluation.subject import Subject
from net.autoencoder import Autoencoder
from net.multihead import MultiHead

REPRESENTED = 0.5  # squared length from which a feature counts as represented
MOST = 64  # features that have scores of their own


@torch.no_grad()
def geometry(subject: Subject) -> Scores:
    """How the vectors of the features, columns of W, lie to each other.

        dimensionality of i = |W_i|^2 / sum_j (u_i . W_j)^2,   u_i = W_i / |W_i|;  0 if W_i = 0
        interference of i = sum_{j != i} (u_i . W_j)^2
        dimensions per feature = n / |W|_F^2

    "represented" is the number of features of squared length 0.5 or more, "dead" that of the others, and "dead, bias
    above 0" and "dead, bias below 0" tell their biases. Of two hidden values and features of which one at a time is
    there, "loss" is the exact expected one and "polygon" the number k of the k-gon whose loss is nearest, with
    "above the polygon" the difference.

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
    if _is_planar(subject, net):
        loss = float(one_active_loss(vectors, torch.zeros(count).double() if bias is None else bias))
        nearest = min(polygons(count), key=lambda polygon: abs(polygon.loss - loss))
        found |= {"loss": _number(loss), "polygon": _number(float(nearest.k)),
                  "above the polygon": _number(loss - nearest.loss)}  # fmt: skip
    if count <= MOST:
        for number in range(count):
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


def _is_planar(subject: Subject, net: Autoencoder) -> bool:
    """Whether the exact loss and the polygons are known: one feature at a time, uniform and equally important."""
    targets = subject.task.test.targets
    values, importances = targets.unbind(-2)
    plain = net.decoder is None and net.hidden_bias is None and net.factor is None and net.scale == 1
    alone = bool(((values != 0).sum(-1) == 1).all() and (importances == importances[:1, :1]).all())
    uniform = bool((values.sum(-1) < 1).any())
    return plain and alone and uniform and net.width == 2 and net.lengths == "free"


def _number(value: float) -> Scored:
    return Scored(value, None, 1)
