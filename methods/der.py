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
from utils.trees import Tree


def squared_distance(outputs: Tensor, recorded: Tensor) -> Tensor:
    """Mean of (z - z')^2 over recorded outputs; both [N, C], -inf where there is no output."""
    own = outputs.isfinite() & recorded.isfinite()
    difference = torch.where(own, outputs.float(), 0.0) - torch.where(own, recorded, 0.0)
    return difference.square().sum() / own.sum()


class DarkLoss(NormRule):
    """CE(new) + alpha |h(x') - z'|^2 + beta CE(h(x''), y''), x' and x'' two draws of the same size; no beta in DER."""

    def __init__(self, alpha: float, beta: float | None, recorded: Tensor | None = None) -> None:
        self.alpha, self.beta, self.recorded = alpha, beta, recorded  # by slot, [slots + 1, C], with fill: during

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        outputs = net(batch.inputs, batch.task_ids)
        new, past = batch.halves()
        outputs, replayed = outputs[: len(new)], outputs[len(new) :]
        loss = objective.loss(outputs, new.targets)
        if len(past):
            recorded = past.recorded if self.recorded is None else self.recorded[past.slots, : outputs.shape[1]]
            assert recorded is not None
            first = len(past) if self.beta is None else max(1, len(past) // 2)
            loss = loss + self.alpha * squared_distance(replayed[:first], recorded[:first])
            if self.beta is not None and first < len(past):
                loss = loss + self.beta * objective.loss(replayed[first:], past.targets[first:])
        if self.recorded is not None and new.written is not None:
            self.recorded[new.written, : outputs.shape[1]] = outputs.detach().float()
        return loss

    def state(self) -> Tree:
        return self.recorded

    def restore(self, state: Tree) -> None:
        if self.recorded is not None:
            self.recorded.copy_(state)


class DER(ReplayNet):
    """DER; outputs are recorded when a task has been learned, on un-augmented images, in test mode.

    With `fill: during` they are recorded as in the paper: in training mode, in the step after which an example enters
    the buffer. That is impossible for generators, and with batch normalisation outputs in training mode differ from
    those that are to be preserved.
    """

    @dataclass(frozen=True)
    class Settings(ReplayNet.Settings):
        alpha: float = setting(Range(0, whole=False), "weight of the recorded outputs")

    requires = Requirements(classes=True)  # it records the logits of classes, [kept, C]
    saved_attributes = (*ReplayNet.saved_attributes, "recorded", "by_slot")

    draws: ClassVar[int] = 1  # batches of past tasks in a step

    recorded: dict[int, Tensor]  # by task: outputs on its kept examples, [kept, C]
    by_slot: dict[str, Tensor]  # with fill: during, "outputs" of the example in each slot, [slots + 1, C]

    def rule(self) -> NormRule:
        beta = getattr(self.settings, "beta", None)  # a setting of DER++
        return DarkLoss(self.settings.alpha, beta, self.by_slot.get("outputs")) if self.replaying else NormRule()

    def past(self, task: Task) -> Sequence[Replays]:
        if self.during:
            self._make_room(task)
            return [self.arriving(task, self.draws * self.settings.replay_batch, noted=True)]
        outputs = [self.recorded[other] for other in self.memory.tasks]
        widest = max(task.num_outputs, *(part.shape[1] for part in outputs))
        recorded = torch.cat([F.pad(part, (0, widest - part.shape[1]), value=-torch.inf) for part in outputs])
        return [self.replays(self.memory.mixture(), self.draws * self.settings.replay_batch, recorded=recorded)]

    def _make_room(self, task: Task) -> None:
        """Widen the outputs of all slots to those of a new task; -inf where none is recorded."""
        assert self.config.memory is not None
        width = max(task.num_outputs, len(task.classes) if self.settings.outputs == "all" else 0)
        before = self.by_slot.get("outputs", torch.empty(self.config.memory + 1, 0, device=self.compute.device))
        if before.shape[1] < width:
            self.by_slot["outputs"] = F.pad(before, (0, width - before.shape[1]), value=-torch.inf)

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        if self.during:
            return super().after(task, net, rule)
        for other, stay in self.memory.add(task).items():
            self.recorded[other] = self.recorded[other][stay.to(self.compute.device)]
        parts = outputs_on(net, task.id, self.memory.examples(task.id), self.spec, self.compute)
        self.recorded[task.id] = torch.cat(list(parts)).float()
        return 0

    def storage(self) -> Storage:
        """The network, and the examples with their recorded outputs."""
        stored = super().storage()
        kept = [*self.recorded.values(), *self.by_slot.values()]
        return replace(stored, bytes=stored.bytes + sum(outputs.nbytes for outputs in kept))


class DERpp(DER):
    """DER++: DER with the labels of a second draw."""

    @dataclass(frozen=True)
    class Settings(DER.Settings):
        beta: float = setting(Range(0, whole=False), "weight of the labels of the second draw")

    draws = 2
