"""What a stream asks of a network: the loss, the space in which members are averaged, the score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of the calibration error


@dataclass(frozen=True)
class Score:
    """How well predictions fit: mean loss (nats for classification), accuracy and calibration error in [0, 1]."""

    loss: float
    accuracy: float
    ece: float


class Objective(Protocol):
    """Loss and score of one kind of supervised problem."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Training loss: mean over the batch, a scalar on the device."""

    def predict(self, outputs: Tensor) -> Tensor:
        """Network outputs -> what members are averaged in (probabilities)."""

    def guess(self, examples: int, num_outputs: int) -> Tensor:
        """The prediction of who knows nothing, [examples, num_outputs]."""

    def guess_loss(self, num_outputs: int) -> float:
        """The loss of that prediction."""

    def evaluate(self, predictions: Tensor, targets: Tensor) -> Score:
        """Score of averaged predictions."""

    def energy(self, outputs: Tensor) -> Tensor | None:
        """[N] how much the outputs [N, C] speak for their own task; None if outputs are no classes, so that the
        scenarios without a task are not defined."""


class CrossEntropy:
    """Classification: outputs are logits [N, C], targets class indices [N]."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        # In float32 also under autocast: bf16 has three digits.
        return F.cross_entropy(outputs.float(), targets)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(-1)

    def guess(self, examples: int, num_outputs: int) -> Tensor:
        return torch.full((examples, num_outputs), 1 / num_outputs)

    def guess_loss(self, num_outputs: int) -> float:
        return math.log(num_outputs)

    def evaluate(self, predictions: Tensor, targets: Tensor) -> Score:
        right = predictions.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return score(right, predictions.amax(-1), predictions.argmax(-1) == targets)

    def energy(self, outputs: Tensor) -> Tensor:
        return outputs.float().logsumexp(-1)


def score(right: Tensor, confidence: Tensor, hits: Tensor) -> Score:
    """Score of N classifications.

    Args:
        right: [N] probability of the right class.
        confidence: [N] probability of the predicted class.
        hits: [N] whether the prediction is right.
    """
    # The floor keeps a probability that rounded to zero from making the mean infinite.
    loss = -right.clamp_min(torch.finfo(torch.float32).tiny).log().double().mean()
    return Score(*torch.stack([loss, hits.double().mean(), calibration_error(confidence, hits)]).tolist())


def scores(groups: Tensor, count: int, right: Tensor, confidence: Tensor, hits: Tensor) -> list[Score | None]:
    """`score` of each of `count` groups of classifications, all at once; None of an empty one.

    Args:
        groups: [N] int64 number of the group, from 0.
    """
    groups, right, confidence, hits = (part.cpu() for part in (groups, right, confidence.double(), hits.double()))
    sizes = groups.bincount(minlength=count)
    losses = -right.clamp_min(torch.finfo(torch.float32).tiny).log().double()
    # As in calibration_error; groups lie one after the other, a confidence being at most 1.
    keys = 2 * groups + confidence
    ranks = torch.searchsorted(keys.sort().values, keys) - (sizes.cumsum(0) - sizes)[groups]
    places = groups * BINS + ranks * BINS // sizes[groups]
    gaps = torch.zeros(count * BINS, dtype=torch.float64).index_add_(0, places, hits - confidence)
    sums = (groups.bincount(losses, count), groups.bincount(hits, count), gaps.view(count, BINS).abs().sum(-1))
    means = (torch.stack(sums, -1) / sizes.unsqueeze(-1)).tolist()
    return [Score(*mean) if size else None for mean, size in zip(means, sizes.tolist(), strict=True)]


def calibration_error(confidence: Tensor, hits: Tensor, bins: int = BINS) -> Tensor:
    """Expected calibration error of the predicted class, with bins that hold equally many examples.

        ECE = sum_b n_b/N |acc_b - conf_b| = 1/N sum_b |sum_{i in b} (hit_i - confidence_i)|

    Few examples in a bin make the error larger than that of endless data: compare only where N is the same.

    Args:
        confidence: [N] probability of the predicted class.
        hits: [N] whether the prediction is right.

    Returns:
        A float64 scalar on the device, in [0, 1].

    Source: Naeini et al. (2015); bins of equal mass as in the adaptive calibration error of Nixon et al. (2019),
    which looks at every class and not at the predicted one alone.
    """
    gaps = hits.double() - confidence.double()
    # Sums of rows come out the same every time; adding into bins on a GPU would not.
    inside = equal_bins(confidence, bins) == torch.arange(bins, device=gaps.device).unsqueeze(-1)
    return torch.where(inside, gaps, 0.0).sum(-1).abs().sum() / len(gaps)


def equal_bins(confidence: Tensor, bins: int = BINS) -> Tensor:
    """The bin of each of N examples, int64: sorted by confidence, example r = 0 ... N-1 is in bin floor(bins * r / N).

    Equal confidences take the bin of the first of them, so that the order of the examples cannot matter.
    """
    return torch.searchsorted(confidence.sort().values, confidence) * bins // len(confidence)
