"""Dark experience replay: past examples are answered as they once were, whatever their labels.

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.objectives import Objective
from datasets.task import Task
from methods.base import Context, Requirements, Storage
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch, Replays
from training.prediction import outputs_on
from utils.seeding import generator
from utils.settings import Range, setting


def squared_distance(outputs: Tensor, recorded: Tensor) -> Tensor:
    """Mean of (z - z')^2 over the outputs of each example's own head; [N, C] both, -inf in `outputs` beside a head."""
    own = outputs.isfinite()
    difference = torch.where(own, outputs.float(), 0.0) - torch.where(own, recorded, 0.0)
    return difference.square().sum() / own.sum()


class DarkLoss(NormRule):
    """CE(new) + alpha |h(x') - z'|^2 + beta CE(h(x''), y''), x' and x'' two draws of the same number."""

    def __init__(self, alpha: float, beta: float | None) -> None:
        self.alpha, self.beta = alpha, beta

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        outputs = net(batch.inputs, batch.task_ids)
        if batch.recorded is None:
            return objective.loss(outputs, batch.targets)
        new, past = batch.halves()
        said, labelled = outputs[len(new) :], None
        recorded = batch.recorded
        if self.beta is not None:
            half = len(past) // 2
            said, labelled, recorded = said[:half], said[half:], recorded[:half]
        loss = objective.loss(outputs[: len(new)], new.targets) + self.alpha * squared_distance(said, recorded)
        if labelled is not None and self.beta is not None:
            loss = loss + self.beta * objective.loss(labelled, past.targets[len(said) :])
        return loss


class DER(ReplayNet):
    """What is answered is recorded when the task has been learned, on its images as they are, in test mode.

    The paper records it in passing, in training mode, when an example enters the buffer. Here that would
    be impossible for tasks that draw their examples fresh, and a network with batch normalisation answers in
    training mode differently from what it will be asked to preserve.
    """

    @dataclass(frozen=True)
    class Settings(ReplayNet.Settings):
        """Of the method, see config/method/."""

        alpha: float = setting(Range(0, whole=False), "weight of the recorded outputs")

    requires = Requirements(classes=True)  # it records the logits of classes, [kept, C]
    saved_attributes = (*ReplayNet.saved_attributes, "_recorded")

    def __init__(self, setting: Context) -> None:
        super().__init__(setting)
        self._recorded: dict[int, Tensor] = {}  # by task: outputs on what is kept of it, [kept, C]

    def rule(self, task: Task) -> NormRule:
        return DarkLoss(self.settings.alpha, None)

    @property
    def draws(self) -> int:
        """How many batches of past tasks a step has."""
        return 1

    def past(self, task: Task) -> Replays | None:
        if not self.memory.tasks:
            return None
        outputs = [self._recorded[other] for other in self.memory.tasks]
        widest = max(task.num_outputs, *(part.shape[1] for part in outputs))
        recorded = torch.cat([F.pad(part, (0, widest - part.shape[1])) for part in outputs])
        rng = generator(self.config.seed, "member", len(self._seen), "replay")
        return Replays(
            self.memory.mixture(), self.spec, self.draws * self.settings.replay_batch, rng,
            augment=self.recipe.augments, recorded=recorded,
        )  # fmt: skip

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        for other, stay in self.memory.add(task).items():
            self._recorded[other] = self._recorded[other][stay.to(self.compute.device)]
        parts = list(outputs_on(net, task.id, self.memory.examples(task.id), self.spec, self.compute))
        self._recorded[task.id] = torch.cat(parts).float() if parts else torch.zeros(0, task.num_outputs)
        return 0

    def storage(self) -> Storage:
        """The network, and the examples with what is recorded of them."""
        held = super().storage()
        return replace(held, bytes=held.bytes + sum(outputs.nbytes for outputs in self._recorded.values()))


class DERpp(DER):
    """DER, and the labels of a second draw."""

    @dataclass(frozen=True)
    class Settings(DER.Settings):
        """Of the method, see config/method/."""

        beta: float = setting(Range(0, whole=False), "weight of the labels of the second draw")

    def rule(self, task: Task) -> NormRule:
        return DarkLoss(self.settings.alpha, self.settings.beta)

    @property
    def draws(self) -> int:
        return 2
