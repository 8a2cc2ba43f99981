"""Experience replay: every batch of the new task comes with one of past tasks.

Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", arXiv 1902.10486 (2019).
"""

from dataclasses import dataclass

from torch import Tensor

from datasets.objectives import Objective
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch
from utils.settings import setting


class SumOfMeans(NormRule):
    """The mean loss on the new task plus the mean loss on the replayed examples."""

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        outputs = net(batch.inputs, batch.task_ids)
        new, past = batch.halves()
        return objective.loss(outputs[: len(new)], new.targets) + objective.loss(outputs[len(new) :], past.targets)


class ER(ReplayNet):
    """Experience replay."""

    @dataclass(frozen=True)
    class Settings(ReplayNet.Settings):
        replay_loss: str = setting(("mean", "sum"), "a mean over new and replayed examples, or the sum of two")

    def rule(self) -> NormRule:
        return SumOfMeans() if self.settings.replay_loss == "sum" and self.memory.tasks else NormRule()
