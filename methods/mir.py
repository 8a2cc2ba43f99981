"""Maximally interfered retrieval: replays those kept examples that a step on the new batch alone would harm most.

Aljundi et al., "Online Continual Learning with Maximally Interfered Retrieval", NeurIPS 2019.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from datasets.objectives import Objective
from datasets.task import Task
from methods.er import SumOfMeans
from methods.memory.slots import DistinctReplays
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch, Replays
from utils.settings import Range, setting


@contextmanager
def in_test_mode(net: MultiHead) -> Iterator[None]:
    """Within this context the network is in test mode."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class MostInterfered(NormRule):
    """A step of the rule `er` on the new batch and the `count` candidates that are harmed most.

    The score of a candidate (x, y) is  l(h(x; theta - rate g), y) - l(h(x; theta), y),  g the gradient of the loss on
    the new batch. All of it is in test mode: no statistics of batch normalisation change, and dropout draws nothing.

    Source: Aljundi et al. (2019), section 3.1 and algorithm 1.
    """

    def __init__(self, er: NormRule, count: int) -> None:
        self.er, self.count = er, count

    def before(self, step: int, steps: int) -> None:
        self.rate = self.rates(self.recipe, steps)(step)

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        if batch.replayed > self.count:
            scores = self.scores(net, batch, objective)
            new = torch.arange(len(batch) - batch.replayed, device=scores.device)
            chosen = torch.cat([new, len(new) + scores.topk(self.count).indices])
            batch = Batch(batch.inputs[chosen], batch.targets[chosen], batch.task_ids[chosen], self.count)
        return self.er.loss(net, batch, objective)

    def scores(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        """How much the loss of each replayed example would rise, [replayed]."""
        new, past = batch.halves()
        parameters = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
        with in_test_mode(net):
            loss = objective.loss(net(new.inputs, new.task_ids), new.targets)
            gradient = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
            with torch.no_grad():
                moved = {name: p - self.rate * g for (name, p), g in zip(parameters.items(), gradient, strict=True)}
                outputs = [functional_call(net, values, (past.inputs, past.task_ids)) for values in ({}, moved)]
        # The objective's loss is a mean over a batch, here of one example each.
        before, after = (vmap(objective.loss)(out.unsqueeze(1), past.targets.unsqueeze(1)) for out in outputs)
        return after - before


class MIR(ReplayNet):
    """Experience replay of the most interfered of `candidates` that are drawn for each step, without repeats.

    Candidates are all counted as examples trained on: two forward passes of each are about the cost of one gradient.
    """

    @dataclass(frozen=True)
    class Settings(ReplayNet.Settings):
        replay_loss: str = setting(("mean", "sum"), "a mean over new and replayed examples, or the sum of two")
        candidates: int = setting(Range(1, 65536), "kept examples scored in every step; at least replay_batch")

    no_graph_reason = "those of MIR have not been tried as a CUDA graph"

    def rule(self) -> NormRule:
        er = SumOfMeans() if self.settings.replay_loss == "sum" else NormRule()
        return MostInterfered(er, self.settings.replay_batch)

    def past(self, task: Task) -> Sequence[Replays]:
        size = max(self.settings.candidates, self.settings.replay_batch)
        if self.during:
            return [self.arriving(task, size)]
        augment = self.recipe.augments
        return [DistinctReplays(self.memory.mixture(), self.spec, size, self._replay_stream(), augment=augment)]
