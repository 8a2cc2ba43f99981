"""CLS-ER: replayed examples are to be answered as by one of two slow averages of the weights; the slower one answers.

Arani, Sarfraz & Zonooz, "Learning Fast, Learning Slow: A General Continual Learning Method based on Complementary
Learning System", ICLR 2022.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.objectives import Objective
from datasets.task import Task
from methods.base import Context, Requirements
from methods.der import squared_distance
from methods.single import NormRule, ReplayNet
from net.multihead import MultiHead
from training.batches import Batch
from utils.seeding import generator
from utils.settings import Range, setting
from utils.trees import Tree

AVERAGES = ("plastic", "stable")
_RATE, _DECAY = Range(0, 1, whole=False, open_low=True), Range(0, 1, whole=False, open_high=True)


class Averaging(NormRule):
    """The loss of experience replay + strength |h(x) - z|^2 on replayed examples, z the outputs of an average.

    For each example z is of that average which gives its class the higher probability. After step n of the run each
    average a becomes, with the probability of its rate,  d a + (1 - d) theta,  d = min(1 - 1 / (n + 1), its decay).

    Batch normalisation of the averages has statistics of its own, of the replayed examples, as in the authors' code:
    those of the network are not those of averaged weights. Dropout is for the network alone.

    Args:
        speeds: rate and decay of the plastic and of the stable average.
        copies: makes both of the network as it is before the first step.
        taken: steps of the run before this task.
        rng: says when averages are updated.

    Source: Arani et al. (2022), algorithm 1.
    """

    def __init__(
        self, strength: float, speeds: Sequence[tuple[float, float]], copies: Callable[[MultiHead], list[MultiHead]],
        taken: int, rng: torch.Generator,
    ) -> None:  # fmt: skip
        self.strength, self.speeds, self.copies, self.taken, self.rng = strength, speeds, copies, taken, rng

    def begin(self, net: MultiHead) -> None:
        self.averages = self.copies(net)
        for every in (net, *self.averages):
            super().begin(every)

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        outputs = net(batch.inputs, batch.task_ids)
        loss = objective.loss(outputs, batch.targets)
        if not batch.replayed:
            return loss
        _, past = batch.halves()
        return loss + self.strength * squared_distance(outputs[-len(past) :], self.remembered(past))

    @torch.no_grad()
    def remembered(self, past: Batch) -> Tensor:
        """For each example the outputs of the average that is surer of its class, [B, C]."""
        plastic, stable = (average(past.inputs, past.task_ids).float() for average in self.averages)
        surer = [outputs.softmax(1).gather(1, past.targets.unsqueeze(1)) for outputs in (stable, plastic)]
        return stable.where(surer[0] > surer[1], plastic)

    @torch.no_grad()
    def finish(self, net: MultiHead, rate: float | Tensor) -> None:
        self.taken += 1
        chances = torch.rand(len(self.speeds), generator=self.rng).tolist()
        for average, (often, decay), chance in zip(self.averages, self.speeds, chances, strict=True):
            if chance < often:
                weight = 1 - min(1 - 1 / (self.taken + 1), decay)
                torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), weight)

    def state(self) -> Tree:
        averages = [average.state_dict() for average in self.averages]
        return {"averages": averages, "taken": self.taken, "rng": self.rng.get_state()}

    def restore(self, state: Tree) -> None:
        for average, values in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(values)
        self.taken = state["taken"]
        self.rng.set_state(state["rng"])


class CLSER(ReplayNet):
    """The steps of `Averaging`; the stable average answers.

    With `fill: after` both averages begin at the network that has learned the first task, with `during` at its start.
    """

    @dataclass(frozen=True)
    class Settings(ReplayNet.Settings):
        strength: float = setting(Range(0, whole=False), "lambda, the weight of the squared distance")
        plastic_rate: float = setting(_RATE, "r_p, the probability that a step updates the plastic average")
        plastic_decay: float = setting(_DECAY, "alpha_p, what an update leaves of it")
        stable_rate: float = setting(_RATE, "r_s, the same of the stable average; lower in the paper")
        stable_decay: float = setting(_DECAY, "alpha_s, the same of the stable average")

    requires = Requirements(classes=True)
    no_graph_reason = "chance says which steps of CLS-ER update its averages"
    saved_attributes = (*ReplayNet.saved_attributes, "averages", "taken")

    averages: dict[str, Any]  # by name: state of the "trunk", and "heads" of all tasks

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.taken = 0  # steps of the run

    def rule(self) -> NormRule:
        own = self.settings
        speeds = [(own.plastic_rate, own.plastic_decay), (own.stable_rate, own.stable_decay)]
        rng = generator(self.config.seed, "member", len(self.seen), "averages")
        return Averaging(
            own.strength, speeds, lambda net: [self.averaged(name, net) for name in AVERAGES], self.taken, rng
        )

    def averaged(self, name: str, net: MultiHead) -> MultiHead:
        """A copy of a network with the weights of an average; outputs that it has not seen are those of the network."""
        copied = copy.deepcopy(net).eval().requires_grad_(False)
        if name in self.averages:
            copied.trunk.load_state_dict(self.averages[name]["trunk"])
            self.put_heads(copied, self.averages[name]["heads"])
        return copied

    def after(self, task: Task, net: MultiHead, rule: NormRule) -> int:
        assert isinstance(rule, Averaging)
        for name, average in zip(AVERAGES, rule.averages, strict=True):
            newest = average if self.replaying else net
            trunk = {key: value.clone() for key, value in newest.trunk.state_dict().items()}
            heads = self.averages.get(name, {}).get("heads", {}) | self.heads_of(newest)
            self.averages[name] = {"trunk": trunk, "heads": heads}
        self.taken = rule.taken
        return super().after(task, net, rule)

    def answering(self, tasks: Sequence[int]) -> MultiHead:
        return self.averaged("stable", self.network(tasks))

    def answering_now(self, net: MultiHead, rule: NormRule) -> MultiHead:
        whole = super().answering_now(net, rule)
        if not self.replaying:  # the averages begin after this task
            return whole
        assert isinstance(rule, Averaging)
        average, found = rule.averages[AVERAGES.index("stable")], self.averaged("stable", whole)
        found.trunk.load_state_dict(average.trunk.state_dict())
        self.put_heads(found, self.heads_of(average))
        return found

    def extra_parameters(self) -> int:
        """Both averages, with their statistics of batch normalisation."""
        parts = [
            [*average["trunk"].values(), *(value for head in average["heads"].values() for value in head)]
            for average in self.averages.values()
        ]
        return sum(value.numel() for part in parts for value in part if value.is_floating_point())
