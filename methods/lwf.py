"""Learning without forgetting: on the new task's images the outputs of old heads are held to what they were before.

Li & Hoiem, "Learning without Forgetting", ECCV 2016.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.objectives import Objective
from methods.base import Requirements
from methods.single import NormRule, SingleNet
from net import BatchNorm, count_parameters
from net.multihead import MultiHead
from training.batches import Batch
from utils.settings import Range, setting


def distillation(outputs: Tensor, old_outputs: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(old / T) || softmax(new / T) ), mean over examples and over heads.

    Both outputs are logits, [B, tasks, C]; -inf where a head is narrower than C.

    Source: Li & Hoiem (2016), eq. 2-4; the mean over heads, so that the term does not grow with their number.
    """
    new = F.log_softmax(outputs.float() / temperature, -1)
    old = F.softmax(old_outputs.float() / temperature, -1)
    # 0 log 0 is 0: beyond a narrow head the probability is zero.
    terms = torch.where(old > 0, old * (old.clamp_min(torch.finfo(old.dtype).tiny).log() - new), 0.0)
    return temperature**2 * terms.sum(-1).mean()


class Distill(NormRule):
    """The loss on the new task plus the distillation of the old heads from a copy of the network before the task."""

    def __init__(self, strength: float, temperature: float, old: MultiHead, tasks: list[int]) -> None:
        self.strength, self.temperature, self.old = strength, temperature, old
        # Moved to the device here, as a captured step cannot do it.
        self.tasks = torch.tensor(tasks, device=old.weight.device)

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        features = net.trunk(batch.inputs)
        loss = objective.loss(net.head(features, batch.task_ids), batch.targets)
        with torch.no_grad():
            before = self.old.heads(self.old.trunk(batch.inputs), self.tasks)
        # If the new task's head is the widest, it adds columns that no old head has.
        now = net.heads(features, self.tasks)[..., : before.shape[-1]]
        return loss + self.strength * distillation(now, before, self.temperature)


def normalise_by_batch(net: nn.Module) -> None:
    """Drop the statistics of batch normalisation, so that it uses those of each batch, in test mode, too."""
    for module in net.modules():
        if isinstance(module, BatchNorm):
            module.running_mean = module.running_var = None


class LwF(SingleNet):
    """A single network whose old heads are trained by distillation.

    The teacher, a copy of the network before the task, has no dropout. With batch normalisation it answers in test mode
    (`teacher: eval`), or normalises each batch by the statistics of that batch (`train`), as the network does while it
    learns. With `bn: freeze_after_first` the network never does so any more, and its teacher neither.
    """

    @dataclass(frozen=True)
    class Settings(SingleNet.Settings):
        bn: str = setting(
            ("shared", "freeze_after_first"), "with per_task the copy would answer otherwise than the network"
        )
        strength: float = setting(Range(0, whole=False), "weight of the distillation")
        temperature: float = setting(Range(0, whole=False, open_low=True), "of the distillation")
        teacher: str = setting(("eval", "train"), "how batch normalisation answers in the copy", default="eval")

    requires = Requirements(classes=True)

    def old_heads(self) -> Sequence[int]:
        return self.seen

    def rule(self) -> NormRule:
        if not self.seen:
            return NormRule()
        old = copy.deepcopy(self.network(self.seen)).eval().requires_grad_(False)
        if self.settings.teacher == "train" and self.settings.bn == "shared":
            normalise_by_batch(old)
        heads = self.seen if old.kind == "task" else self.seen[:1]
        return Distill(self.settings.strength, self.settings.temperature, old, heads)

    def extra_parameters(self) -> int:
        """The copy of the network."""
        return count_parameters(self.network(self.seen))
