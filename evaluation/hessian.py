"""The Hessian of the loss of a network: its eigenvalues, and how many of them are not 0."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from datasets.objectives import Scored, Scores
from evaluation.flat_loss import FlatLoss
from evaluation.subject import Subject
from utils.settings import Range, setting

TOLERANCE = 5e-3  # as a share of the largest eigenvalue, below which one counts as 0
_SHOWN = 64  # eigenvalues that are scores
_CHUNK = 64  # columns computed at once


@dataclass(frozen=True)
class HessianSettings:
    """Settings of the evaluation."""

    examples: int = setting(Range(1, 10**6), "examples that the loss is the mean over, at most", default=1000)
    tolerance: float = setting(
        Range(0, 1, whole=False), "share of the largest eigenvalue below which one counts as 0", default=TOLERANCE
    )
    most_parameters: int = setting(Range(1, 10**5), "refuse larger networks", default=2000)


def hessian(subject: Subject) -> Scores:
    """Eigenvalues of the Hessian of the loss on the examples, its rank and trace, in double precision.

    "rank" is the number of eigenvalues whose size is above the tolerance, "negative" that of those below minus the
    tolerance. The loss on examples lacks what the kinks of ReLU add to the Hessian of the expected loss.
    """
    own = subject.own(HessianSettings)
    loss = FlatLoss(subject, own.examples, torch.float64)
    values = eigenvalues(lambda point: loss(point.unsqueeze(0))[0], loss.centre)
    n = loss.examples
    found = {
        "rank": rank(values, own.tolerance),
        "trace": float(values.sum()),
        "negative": negative(values, own.tolerance),
        **{f"eigenvalue {place}": value for place, value in enumerate(values[:_SHOWN].tolist(), 1)},
    }
    return {name: Scored(float(value), None, n) for name, value in found.items()}


def hessian_matrix(loss: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The Hessian [P, P] of a loss at a point [P]."""
    directions = torch.eye(len(point), dtype=point.dtype, device=point.device)
    found = vmap(lambda direction: jvp(grad(loss), (point,), (direction,))[1], chunk_size=_CHUNK)(directions)
    return (found + found.T) / 2  # type: ignore[no-any-return]


def eigenvalues(loss: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The eigenvalues [P] of the Hessian of a loss at a point [P], largest first."""
    return torch.linalg.eigvalsh(hessian_matrix(loss, point)).flip(0)


def rank(values: Tensor, tolerance: float = TOLERANCE) -> int:
    """The number of eigenvalues [P] whose size is above this share of the largest size."""
    return int((values.abs() > tolerance * values.abs().max()).sum())


def negative(values: Tensor, tolerance: float = TOLERANCE) -> int:
    """The number of eigenvalues [P] that are below minus this share of the largest size."""
    return int((values < -tolerance * values.abs().max()).sum())
