"""Experience replay: every batch of the new task comes with one of past tasks.

Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", arXiv 1902.10486 (2019).
"""

from dataclasses import dataclass

from torch import Tensor

from datasets.objectives import Objective
from datasets.task import Table, Task, TrainSource
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch
from utils.settings import setting


class SumOfMeans(NormRule):
    """The mean loss on the new task plus the mean loss on the replayed examples."""

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        if not batch.replayed:  # of a memory that is still empty
            return super().loss(net, batch, objective)
        outputs = net(batch.inputs, batch.task_ids)
        new, past = batch.halves()
        return objective.loss(outputs[: len(new)], new.targets) + objective.loss(outputs[len(new) :], past.targets)


class ER(ReplayNet):
    """Experience replay."""

    @dataclass(frozen=True)
    class Settings(ReplayNet.Settings):
        replay_loss: str = setting(("mean", "sum"), "a mean over new and replayed examples, or the sum of two")
        mixed: bool = setting(
            bool, "kept examples, repeated to about as many as the new ones, are mixed with these instead of having "
            "batches of their own", default=False,
        )  # fmt: skip

    def rule(self) -> NormRule:
        return SumOfMeans() if self.settings.replay_loss == "sum" and self.replaying else NormRule()

    @property
    def replaying(self) -> bool:
        return not self.settings.mixed and super().replaying

    def sources(self, task: Task) -> list[tuple[int, TrainSource]]:
        """With `mixed`, the new task and those kept (naive rehearsal, Hsu et al. 2018), else the new task."""
        kept = {other: self.memory.examples(other) for other in self.memory.tasks if self.settings.mixed}
        repeat = max(1, len(task.train) // max(1, sum(map(len, kept.values()))))
        return [*super().sources(task), *((other, Table(examples, repeat)) for other, examples in kept.items())]
