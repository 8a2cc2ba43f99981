"""What a stream asks of a network: the loss, the space in which members are averaged, the score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """How well predictions fit: mean loss (nats for classification) and accuracy in [0, 1]."""

    loss: float
    accuracy: float


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
        # The floor keeps a probability that rounded to zero from making the mean infinite.
        chosen = predictions.gather(-1, targets.unsqueeze(-1)).clamp_min(torch.finfo(predictions.dtype).tiny)
        hits = predictions.argmax(-1) == targets
        loss, accuracy = torch.stack([-chosen.log().double().mean(), hits.double().mean()]).tolist()
        return Score(loss, accuracy)
