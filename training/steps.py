"""Gradient steps on one network, launched as cheaply as the device allows.

On a CUDA device a step on 16 small images takes as long as launching its hundred operations does, so whole steps
are captured into CUDA graphs and replayed, where that is possible.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from datasets.objectives import Objective
from datasets.task import StreamSpec
from net.multihead import MultiHead, grown
from training.batches import Batch
from training.optimizers import learning_rates, make_optimizer, recipe_for
from training.recipe import Recipe
from utils.compute import Compute
from utils.trees import Tree

# Steps of one batch size that are launched one operation at a time before one is captured: by then the optimizer has
# its state and the libraries have chosen their algorithms.
WARM_UP = 3
_Shape = tuple[int, int, bool]


class StepRule:
    """What a method changes in gradient steps; this one changes nothing: plain supervised training.

    Attributes:
        autocast: context in which networks run, for forward passes outside `loss`, which already is in it.
        counts: whether it adds up the losses itself, so that `GradientSteps.take_loss` has none.
        recipe: the recipe of training, as `adapt` returned it.
    """

    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    counts = False
    recipe = Recipe()

    def adapt(self, recipe: Recipe) -> Recipe:
        """The recipe with the method's changes."""
        return recipe

    def optimizer(self, net: MultiHead, recipe: Recipe, lr: float | Tensor) -> torch.optim.Optimizer:
        """The optimizer; a new one for every network and every task."""
        return make_optimizer(net, recipe, lr)

    def rates(self, recipe: Recipe, steps: int) -> Callable[[int], float]:
        """The learning rate of each step, counted from 0, of `steps` in all."""
        return learning_rates(recipe, steps)

    def begin(self, net: MultiHead) -> None:
        """Called before the first step; the network is in training mode."""

    def before(self, step: int, steps: int) -> None:
        """Called before each step, counted from 0; the place for work that a CUDA graph cannot hold."""

    def loss(self, net: MultiHead, batch: Batch, objective: Objective) -> Tensor:
        """The loss to be differentiated; a scalar."""
        return objective.loss(net(batch.inputs, batch.task_ids), batch.targets)

    def adjust(self, net: MultiHead, batch: Batch, objective: Objective) -> None:
        """Change the gradients, before the optimizer's step, in full precision."""

    def finish(self, net: MultiHead, rate: float | Tensor) -> None:
        """Called after the optimizer's step with its learning rate, a tensor on the device where steps are captured."""

    def state(self) -> Tree:
        """The rule's state after the steps so far, besides the network and the optimizer."""
        return None

    def restore(self, state: Tree) -> None:
        """Resume from what `state` returned; `begin` was called with the network as it was before the first step."""


class GradientSteps:
    """Forward, backward and optimizer steps of one network, `steps` in all.

    No step waits for the device. With `compute.captured` the step of each batch size is launched as one CUDA graph
    after a short warm-up, with the same results.
    """

    def __init__(
        self, net: MultiHead, spec: StreamSpec, recipe: Recipe, compute: Compute, steps: int, rule: StepRule,
        before: Mapping[str, Tree] | None = None,
    ) -> None:  # fmt: skip
        self._net, self._spec, self._compute, self._steps, self._rule = net, spec, compute, steps, rule
        rule.autocast, rule.recipe = compute.autocast, rule.adapt(recipe_for(net, recipe))
        recipe, self._rates = rule.recipe, rule.rates(rule.recipe, steps)
        self._loss = torch.zeros((), device=compute.device)
        # A captured step reads its learning rate from the device.
        self._rate = torch.tensor(recipe.lr, device=compute.device) if compute.captured else None
        self._optimizer = rule.optimizer(net, recipe, recipe.lr if self._rate is None else self._rate)
        self._trained = self._parameters()
        self._go_on(before or {})
        self._launched: Counter[_Shape] = Counter()  # steps by shape of the batch, before one is captured
        self._captured: dict[_Shape, tuple[Callable[[], None], Batch]] = {}
        self.done = 0  # steps taken
        self.rate = recipe.lr  # of the last step

    def __call__(self, batch: Batch) -> None:
        """Take one step on a batch, [B, ...]; any B."""
        self.rate = self._rates(self.done)
        self._rule.before(self.done, self._steps)
        if self._rate is None:
            for group in self._optimizer.param_groups:
                group["lr"] = self.rate * group.get("factor", 1)  # networks that train together may have their own
            self._step(batch)
        else:
            self._rate.fill_(self.rate)
            self._replay(batch)
        self.done += 1

    def take_loss(self) -> float:
        """Sum of the examples' losses since the last call; waits for the device."""
        loss = self._loss.item()
        self._loss.zero_()
        return loss

    def optimizer_state(self) -> dict[str, Tree]:
        """A copy of the optimizer's state, by name of the parameter."""
        states = self._optimizer.state
        return {name: copy.deepcopy(states[p]) for name, p in self._net.named_parameters() if p in states}

    def _go_on(self, before: Mapping[str, Tree]) -> None:
        """Give the optimizer the state that another one had before; new heads and outputs begin at zero."""
        momentum = bool(before) and bool(self._optimizer.defaults.get("momentum"))
        for name, parameter in self._net.named_parameters():
            # PyTorch's fused SGD takes a momentum of all parameters or of none.
            new = {"momentum_buffer": torch.zeros_like(parameter)} if momentum and parameter.requires_grad else {}
            for key, value in before.get(name, new).items():
                whole = value.ndim == parameter.ndim and value.shape != parameter.shape
                self._optimizer.state[parameter][key] = grown(value, parameter) if whole else value.clone()

    def state(self) -> Tree:
        """What a resumed training needs: step count, optimizer state, and the losses that `take_loss` has not taken."""
        states = [self._optimizer.state.get(parameter, {}) for parameter in self._parameters()]
        return {"done": self.done, "loss": self._loss, "optimizer": [dict(state) for state in states]}

    def restore(self, state: Tree) -> None:
        """Resume from what `state` returned."""
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
        for parameter in self._trained:  # what zero_grad does, without its hooks
            parameter.grad = None
        loss.backward()
        self._rule.adjust(self._net, batch, objective)
        self._optimizer.step()
        self._rule.finish(self._net, self.rate if self._rate is None else self._rate)
        if not self._rule.counts:
            self._loss.add_(loss.detach(), alpha=len(batch) - batch.replayed)

    def _replay(self, batch: Batch) -> None:
        size = len(batch), batch.replayed, batch.written is None
        if size not in self._captured:
            if self._launched[size] < WARM_UP:
                self._launched[size] += 1
                self._step(batch)
                return
            copies: dict[str, Any] = {name: tensor.clone() for name, tensor in batch.tensors().items()}
            slot = replace(batch, **copies)
            self._captured[size] = self._capture(slot), slot
        replay, slot = self._captured[size]
        for there, here in zip(slot.tensors().values(), batch.tensors().values(), strict=True):
            there.copy_(here)
        replay()

    def _capture(self, slot: Batch) -> Callable[[], None]:
        """Capture a step on the contents of `slot`, without taking it; calling the result takes it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            self._step(slot)
        return graph.replay
