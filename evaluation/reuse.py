"""Whether networks arrange the same features alike: similarity of the angles between their vectors."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from evaluation.geometry import REPRESENTED

IMPORTANT = 0.5  # share of the largest importance of a task from which a feature is important to it
Pair = tuple[Tensor, Tensor, Sequence[int]]  # vectors of two networks, and the features that are compared


def important(importances: Tensor) -> list[int]:
    """The features, of importances [f], that count at least half as much as the most important one."""
    return (importances >= IMPORTANT * importances.max()).nonzero().flatten().tolist()  # type: ignore[no-any-return]


def similarity(pairs: Iterable[Pair], *, lengths: bool = False) -> float:
    """How alike two networks arrange features: the cosine of the entries of their Gram matrices G = W'W, -1 to 1.

        sum G_ij H_ij / sqrt(sum G_ij^2 sum H_ij^2),   i != j among the features, over all pairs of networks

    It is the same for rotated vectors; networks may differ in their number of hidden values. NaN if one of the two has
    no entry that is not 0, as where no two features share a direction.

    Args:
        pairs: vectors [n, f] and [m, f], and the features that are compared.
        lengths: squared lengths, i = j, count as well; they are alike wherever the same features are represented.

    Source: Kornblith et al., "Similarity of neural network representations revisited" (2019): linear CKA without
    centering, of the representations of one feature at a time.
    """
    product, first, second = 0.0, 0.0, 0.0
    for one, other, features in pairs:
        G, H = (_gram(vectors, features, lengths) for vectors in (one, other))
        product += float((G * H).sum())
        first += float(G.square().sum())
        second += float(H.square().sum())
    return product / (first * second) ** 0.5 if first and second else float("nan")


def represented(vectors: Tensor, features: Iterable[int]) -> float:
    """The share of some features, of vectors [n, f], whose squared length is at least 0.5; NaN of none."""
    chosen = vectors[:, list(features)].double().square().sum(0) >= REPRESENTED
    return float(chosen.double().mean())


def _gram(vectors: Tensor, features: Sequence[int], lengths: bool) -> Tensor:
    chosen = vectors[:, list(features)].double()
    gram = chosen.T @ chosen
    return gram if lengths else gram - torch.diag(gram.diagonal())
