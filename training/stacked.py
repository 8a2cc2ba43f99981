"""Training several networks of one architecture as one computation, each with its own data and its own state."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.objectives import Objective
from datasets.task import StreamSpec, TrainSource
from net.multihead import MultiHead
from net.stack import Stack
from training.batches import Batch, Columns
from training.loop import Feed, Training
from training.monitor import Checkpoints, Monitor
from training.optimizers import make_optimizer
from training.recipe import Recipe
from training.steps import StepRule
from utils.compute import Compute
from utils.trees import Tree

Sources = Sequence[tuple[int, TrainSource]]


@dataclass(frozen=True)
class StackedBatch(Batch):
    """The examples of one gradient step of S networks: inputs [S, B, *input], targets [S, B, *target]."""

    def __len__(self) -> int:
        """Examples for each network."""
        return self.targets.shape[1]


class _StackedFeed(Feed):
    """The batches of several feeds side by side; `last`: in memory the examples are the last axis."""

    def __init__(self, feeds: Sequence[Feed], last: bool) -> None:
        self._feeds, self.fixed, self._last = feeds, feeds[0].fixed, last
        self._whole: StackedBatch | None = None  # an epoch that is one batch, the same each time
        self._drawn: tuple[Tensor, ...] = ()  # where the examples of an epoch are that was drawn

    def state(self) -> Tensor:
        if self._whole is None:  # else nothing is drawn
            self._state = torch.stack([feed.state() for feed in self._feeds])
        return self._state

    def restore(self, state: Tensor) -> None:
        self._state = state
        for feed, own in zip(self._feeds, state, strict=True):
            feed.restore(own.clone())  # torch crashes on a part of a tensor

    def epoch(self, size: int, count: int) -> Iterator[Batch]:
        # Drawn now, not with the first batch: the streams are those of the next epoch even if this one is skipped.
        if all(feed.plain for feed in self._feeds):
            # In the memory of the last epoch, which is over: new memory for each would cost more than the copies.
            columns = zip(*(feed.drawn(count) for feed in self._feeds), strict=True)
            before = self._drawn or (None, None, None)
            self._drawn = tuple(_stacked(own, self._last, old) for own, old in zip(columns, before, strict=True))
            return map(StackedBatch, *(column.split(size, 1) for column in self._drawn))
        together, constant = len(self._feeds), size >= count and all(feed.constant for feed in self._feeds)
        if not constant:
            parts = [feed.lots(size, count, together) for feed in self._feeds]
            return (batch for own in zip(*parts, strict=True) for batch in self._split(own, size))
        if self._whole is None:  # the order within it changes nothing but rounding
            parts = [feed.lots(size, count, together, shuffle=False) for feed in self._feeds]
            (self._whole,) = self._split([next(part) for part in parts], size)
        return iter((self._whole,))

    def _split(self, parts: Sequence[Columns], size: int) -> Iterator[StackedBatch]:
        """The examples of each network in batches of `size`."""
        columns = [_stacked(column, self._last) for column in zip(*parts, strict=True)]
        return map(StackedBatch, *(column.split(size, 1) for column in columns))


def _stacked(parts: Sequence[Tensor], last: bool, into: Tensor | None = None) -> Tensor:
    """The tensors [N, ...] as rows of one, [S, N, ...], in the memory of `into`, what it returned before, if they fit.

    A single one is not copied if its order in memory is right.
    """
    if last:
        parts = [part.movedim(0, -1) for part in parts]
        into = None if into is None else into.movedim(1, -1)
    if len(parts) == 1:
        whole = parts[0].unsqueeze(0)
    else:
        fits = into is not None and into.shape[1:] == parts[0].shape
        whole = torch.stack(list(parts), out=into if fits else None)
    return whole.contiguous().movedim(-1, 1) if last else whole


class _StackRule(StepRule):
    """The sum of the losses of the networks, whose gradients do not meet; and a learning rate for each."""

    counts = True

    def __init__(self, factors: Sequence[float]) -> None:
        self._factors = factors  # on the learning rate of the recipe

    def begin(self, net: Any) -> None:
        self.sums = torch.zeros(len(self._factors), device=net.nets[0].weight.device)

    def optimizer(self, net: Any, recipe: Recipe, lr: float | Tensor) -> torch.optim.Optimizer:
        optimizer = make_optimizer(net, recipe, lr)
        if len(net.parts) > 1:
            (group,) = optimizer.param_groups
            shared = {key: value for key, value in group.items() if key != "params"}
            optimizer.param_groups.clear()
            for number, part in enumerate(net.parts):
                own = {"params": net.part(number), "factor": self._factors[part.start]}
                optimizer.add_param_group({**shared, **own})
        return optimizer

    def loss(self, net: Any, batch: Batch, objective: Objective) -> Tensor:
        losses = objective.losses(net(batch.inputs, batch.task_ids), batch.targets)
        self.sums.add_(losses.detach(), alpha=len(batch))
        return losses.sum()

    def take(self) -> list[float]:
        """For each network, the sum of the examples' losses since the last call; waits for the device."""
        found: list[float] = self.sums.tolist()
        self.sums.zero_()
        return found

    def state(self) -> Tree:
        return self.sums

    def restore(self, state: Tree) -> None:
        self.sums.copy_(state)


class StackedTraining(Training):
    """The training of S networks, each as if it were alone up to rounding, as one computation.

    For networks that are `stackable` and without replay, rules of a method or normalisation over batches. Where the
    loss of one is no longer finite the others go on. The state of each network is the one that
    a Training of its own would have: networks may be stopped together and resumed apart.

    Args:
        nets: on the device; are changed in place.
        sources: of each network, as for Training.
        seeds: of each network.
        rates: learning rate of each network, in place of the recipe's.
    """

    def __init__(
        self, nets: Sequence[MultiHead], sources: Sequence[Sources], spec: StreamSpec, recipe: Recipe,
        compute: Compute, seeds: Sequence[int], name: tuple[object, ...], *, rates: Sequence[float] = (),
        monitor: Monitor | None = None, checkpoints: Checkpoints | None = None,
    ) -> None:  # fmt: skip
        feeds = [Feed(own, spec, recipe, seed, name) for own, seed in zip(sources, seeds, strict=True)]
        factors = [rate / recipe.lr for rate in rates] or [1.0] * len(nets)
        self._stacked, self._members = _StackRule(factors), nets
        stack: Any = Stack(nets, factors)
        self._parts = stack.parts
        super().__init__(
            stack, sources[0], spec, recipe, compute, seeds[0], name, rule=self._stacked, monitor=monitor,
            checkpoints=checkpoints, feed=_StackedFeed(feeds, getattr(stack.trunk, "examples_last", False)),
        )  # fmt: skip
        self.losses = [math.nan] * len(nets)

    def _epoch_losses(self, seen: int) -> list[float]:
        return [found / seen for found in self._stacked.take()]

    def state(self) -> Tree:
        """All that is needed to resume: a list with the state of each network."""
        whole = super().state()
        steps, count = whole["steps"], len(whole["steps"]["optimizer"]) // len(self._parts)
        states = []
        for number, part in enumerate(self._parts):
            of_part = steps["optimizer"][number * count : (number + 1) * count]
            for row, member in enumerate(part):
                optimizer = [{key: _row(value, row) for key, value in own.items()} for own in of_part]
                mine = {**steps, "loss": whole["rule"][member], "optimizer": optimizer}
                net = self._members[member].state_dict()
                own = {"losses": [self.losses[member]], "order": whole["order"][member], "net": net, "steps": mine}
                states.append({**whole, "rule": None, **own})
        return states

    def restore(self, state: Tree) -> None:
        """Resume from a list of the states of the networks, which have taken the same number of steps."""
        optimizer: list[Tree] = []
        for part in self._parts:
            columns = zip(*(state[member]["steps"]["optimizer"] for member in part), strict=True)
            optimizer += [{key: _rows([values[key] for values in own]) for key in own[0]} for own in columns]
        for net, own in zip(self._members, state, strict=True):
            net.load_state_dict(own["net"])
        losses = torch.stack([own["steps"]["loss"] for own in state])
        steps = {**state[0]["steps"], "optimizer": optimizer, "loss": losses.sum()}
        order = torch.stack([own["order"] for own in state])
        joined = {"net": self._net.state_dict(), "rule": losses, "order": order, "steps": steps}
        super().restore({**state[0], **joined, "losses": [loss for own in state for loss in own["losses"]]})


def _row(value: Tree, row: int) -> Tree:
    """The part of an optimizer's state that belongs to one network; counts of steps belong to all."""
    return value[row] if isinstance(value, Tensor) and value.ndim else value


def _rows(values: Sequence[Tree]) -> Tree:
    """The inverse of `_row`."""
    return torch.stack(list(values)) if isinstance(values[0], Tensor) and values[0].ndim else values[0]
