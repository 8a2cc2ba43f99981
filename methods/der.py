"""Dark experience replay: outputs for past examples are held to what they were when their task was learned.

Buzzega et al., "Dark Experience for General Continual Learning: a Strong, Simple Baseline", NeurIPS 2020.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.objectives import Objective
from datasets.task import Task
from methods.base import Requirements, Storage
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch, Replays
from training.prediction import outputs_on
from utils.settings import Range, setting


def squared_distance(outputs: Tensor, recorded: Tensor) -> Tensor:
    """Mean of (z - z')^2 over recorded outputs; both [N, C], `recorded` -inf where there was no output."""
    own = recorded.isfinite()
    difference = torch.where(own, outputs.float(), 0.0) - torch.where(own, recorded, 0.0)
    return difference.square().sum() / own.sum()


class DarkLoss(NormRule):
    """CE(new) + alpha |h(x') - z'|^2 + beta CE(h(x''), y''), x' and x'' two draws of the same size; no beta in DER."""

    def __init__(self, alpha: float, beta: float | None) -> None:
        self.alpha, self.beta = alpha, beta

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        outputs = net(batch.inputs, batch.task_ids)
        new, past = batch.halves()
        assert past.recorded is not None
        outputs, replayed = outputs[: len(new)], outputs[len(new) :]
        first = len(past) if self.beta is None else len(past) // 2
        distance = squared_distance(replayed[:first], past.recorded[:first])
        loss = objective.loss(outputs, new.targets) + self.alpha * distance
        if self.beta is not None:
            loss = loss + self.beta * objective.loss(replayed[first:], past.targets[first:])
        return loss


class DER(ReplayNet):
    """DER; outputs are recorded when a task has been learned, on un-augmented images, in test mode.

    The paper records them in training mode, when an example enters the buffer. That is impossible for generators,
    and with batch normalisation outputs in training mode differ from those that are to be preserved.
    """

    @dataclass(frozen=True)
    class Settings(ReplayNet.Settings):
        alpha: float = setting(Range(0, whole=False), "weight of the recorded outputs")

    requires = Requirements(classes=True)  # it records the logits of classes, [kept, C]
    saved_attributes = (*ReplayNet.saved_attributes, "recorded")

    draws: ClassVar[int] = 1  # batches of past tasks in a step

    recorded: dict[int, Tensor]  # by task: outputs on its kept examples, [kept, C]

    def rule(self) -> NormRule:
        beta = getattr(self.settings, "beta", None)  # a setting of DER++
        return DarkLoss(self.settings.alpha, beta) if self.memory.tasks else NormRule()

    def past(self, task: Task) -> Sequence[Replays]:
        outputs = [self.recorded[other] for other in self.memory.tasks]
        widest = max(task.num_outputs, *(part.shape[1] for part in outputs))
        recorded = torch.cat([F.pad(part, (0, widest - part.shape[1]), value=-torch.inf) for part in outputs])
        return [self.replays(self.memory.mixture(), self.draws * self.settings.replay_batch, recorded=recorded)]

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        for other, stay in self.memory.add(task).items():
            self.recorded[other] = self.recorded[other][stay.to(self.compute.device)]
        parts = outputs_on(net, task.id, self.memory.examples(task.id), self.spec, self.compute)
        self.recorded[task.id] = torch.cat(list(parts)).float()
        return 0

    def storage(self) -> Storage:
        """The network, and the examples with their recorded outputs."""
        stored = super().storage()
        return replace(stored, bytes=stored.bytes + sum(outputs.nbytes for outputs in self.recorded.values()))


class DERpp(DER):
    """DER++: DER with the labels of a second draw."""

    @dataclass(frozen=True)
    class Settings(DER.Settings):
        beta: float = setting(Range(0, whole=False), "weight of the labels of the second draw")

    draws = 2
