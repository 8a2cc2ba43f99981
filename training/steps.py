"""Gradient steps on one network, launched as cheaply as the device allows.

On a CUDA device a batch of 16 small images is bound by the launching of some hundred operations, so
whole steps are captured into CUDA graphs and replayed, where that is possible.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from datasets.objectives import Objective
from datasets.task import StreamSpec
from net.multihead import MultiHead
from training.batches import Batch
from training.optimizers import learning_rates, make_optimizer
from training.recipe import Recipe
from utils.compute import Compute
from utils.trees import Tree

# Steps of one batch size that are launched one operation at a time before the next one is captured: by
# then the optimizer has its state and the libraries have chosen their algorithms.
WARM_UP = 3


class StepRule:
    """What a method does in a gradient step beside it; this one does nothing more than supervised training.

    Attributes:
        autocast: the precision in which networks run; for forward passes outside `loss`, which is in it.
        recipe: with which the network is trained, as `adapt` has returned it.
    """

    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    recipe = Recipe()

    def adapt(self, recipe: Recipe) -> Recipe:
        """The recipe with what the method changes in it."""
        return recipe

    def optimizer(self, net: MultiHead, recipe: Recipe, lr: float | Tensor) -> torch.optim.Optimizer:
        """What takes the steps; a new one for every network that is trained and every task."""
        return make_optimizer(net, recipe, lr)

    def rates(self, recipe: Recipe, steps: int) -> Callable[[int], float]:
        """The learning rate of each step, from 0, of `steps` in all."""
        return learning_rates(recipe, steps)

    def begin(self, net: MultiHead) -> None:
        """The network is in training mode and about to be trained."""

    def before(self, step: int, steps: int) -> None:
        """Before a step, counted from 0; what must not be part of a step that is captured and replayed."""

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        """What is differentiated; a scalar."""
        return objective.loss(net(batch.inputs, batch.task_ids), batch.targets)

    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        """Change the gradients, before the optimizer's step, in full precision."""

    def finish(self, net: MultiHead, rate: float | Tensor) -> None:
        """After the optimizer's step, which had this learning rate; a tensor on the device where it is captured."""

    def state(self) -> Tree:
        """What it has learned in the steps so far, beside the network and the optimizer."""
        return None

    def restore(self, state: Tree) -> None:
        """Go on from what `state` returned; `begin` was called, with the network as it was before the first step."""


class GradientSteps:
    """Forward, backward and optimizer steps of one network, with the learning rates of `steps` of them.

    Nothing in a step waits for the device. With `compute.captured` the step of each batch size is
    launched as one CUDA graph after a short warm-up, with the same results.

    Attributes:
        done: number of steps taken.
        rate: learning rate of the last step.
    """

    def __init__(
        self,
        net: MultiHead,
        spec: StreamSpec,
        recipe: Recipe,
        compute: Compute,
        steps: int,
        rule: StepRule,
    ) -> None:
        self._net, self._spec, self._compute, self._steps, self._rule = net, spec, compute, steps, rule
        rule.autocast, rule.recipe = compute.autocast, rule.adapt(recipe)
        recipe, self._rates = rule.recipe, rule.rates(rule.recipe, steps)
        self._loss = torch.zeros((), device=compute.device)
        # A captured step reads its learning rate from the device.
        self._rate = torch.tensor(recipe.lr, device=compute.device) if compute.captured else None
        self._optimizer = rule.optimizer(net, recipe, recipe.lr if self._rate is None else self._rate)
        self._launched: Counter[tuple[int, int]] = Counter()  # steps by batch size, before one is captured
        self._captured: dict[tuple[int, int], tuple[Callable[[], None], Batch]] = {}
        self.done = 0
        self.rate = recipe.lr

    def __call__(self, batch: Batch) -> None:
        """Take one step on a batch, [B, ...]; any B."""
        self.rate = self._rates(self.done)
        self._rule.before(self.done, self._steps)
        if self._rate is None:
            for group in self._optimizer.param_groups:
                group["lr"] = self.rate
            self._step(batch)
        else:
            self._rate.fill_(self.rate)
            self._replay(batch)
        self.done += 1

    def take_loss(self) -> float:
        """Sum of the losses of all examples since the last call; waits for the device."""
        loss = self._loss.item()
        self._loss.zero_()
        return loss

    def state(self) -> Tree:
        """What is needed to go on: position, momentum, and the sum of losses that `take_loss` has not taken."""
        states = [self._optimizer.state.get(parameter, {}) for parameter in self._parameters()]
        return {"done": self.done, "loss": self._loss, "optimizer": [dict(state) for state in states]}

    def restore(self, state: Tree) -> None:
        """Go on from what `state` returned."""
        self.done = state["done"]
        if not 0 <= self.done <= self._steps:
            raise ValueError(f"{self.done} of {self._steps} steps")
        self._loss.copy_(state["loss"])
        for parameter, values in zip(self._parameters(), state["optimizer"], strict=True):
            if values:
                self._optimizer.state[parameter] = values

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _step(self, batch: Batch) -> None:
        objective = self._spec.objective
        with self._compute.autocast():
            loss = self._rule.loss(self._net, batch, objective)
        self._optimizer.zero_grad()
        loss.backward()
        self._rule.adjust(self._net, batch, objective)
        self._optimizer.step()
        self._rule.finish(self._net, self.rate if self._rate is None else self._rate)
        self._loss.add_(loss.detach(), alpha=len(batch) - batch.replayed)

    def _replay(self, batch: Batch) -> None:
        size = len(batch), batch.replayed
        if size not in self._captured:
            if self._launched[size] < WARM_UP:
                self._launched[size] += 1
                self._step(batch)
                return
            recorded = None if batch.recorded is None else batch.recorded.clone()
            slot = Batch(
                batch.inputs.clone(), batch.targets.clone(), batch.task_ids.clone(), batch.replayed, recorded
            )  # fmt: skip
            self._captured[size] = self._capture(slot), slot
        replay, slot = self._captured[size]
        slot.inputs.copy_(batch.inputs)
        slot.targets.copy_(batch.targets)
        slot.task_ids.copy_(batch.task_ids)
        if slot.recorded is not None and batch.recorded is not None:
            slot.recorded.copy_(batch.recorded)
        replay()

    def _capture(self, slot: Batch) -> Callable[[], None]:
        """Record a step on whatever will lie in `slot`, without taking it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self._step(slot)
        return graph.replay
