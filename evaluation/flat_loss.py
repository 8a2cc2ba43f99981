"""The loss of a network as a function of all its parameters in one vector, for many such vectors at once."""

import copy

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from datasets.mixture import Mixture
from evaluation.subject import Subject
from net.stack import outputs_of_stack, stackable
from training.prediction import evaluation_batches


class FlatLoss:
    """The mean loss on test examples, at most so many, of networks whose trained parameters are given as vectors.

    Args:
        subject: the network and its task.
        most: examples, evenly from all of them.
        dtype: the precision of all numbers.
    """

    def __init__(self, subject: Subject, most: int, dtype: torch.dtype = torch.float32) -> None:
        examples = subject.some(most)
        data = Mixture([(subject.task.id, examples)])
        self._net = copy.deepcopy(subject.net).to(dtype).eval()
        batches = evaluation_batches(subject.net, data, subject.spec, subject.compute)
        inputs = torch.cat([part for part, _ in batches])
        self._inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        self._targets, self._ids, self.examples = examples.targets, data.task_ids, len(examples)
        if getattr(subject.net.trunk, "examples_last", False):
            self._inputs, self._targets = (
                values.movedim(0, -1).contiguous().movedim(-1, 0) for values in (self._inputs, self._targets)
            )
        self._objective, self._width = subject.spec.objective, subject.net.head_sizes[subject.task.id]
        named = {name: value.detach() for name, value in self._net.named_parameters() if value.requires_grad}
        self._shapes = {name: value.shape for name, value in named.items()}
        self._fixed = {name: value.detach() for name, value in self._net.named_parameters() if name not in named}
        self.centre = torch.cat([value.flatten() for value in named.values()])  # the network's own parameters, [P]

    def __call__(self, points: Tensor, rows: Tensor | None = None) -> Tensor:
        """The losses [C] of parameters [C, P], on the examples at the positions `rows`, [C, B]; None: on all."""
        parts = points.split([shape.numel() for shape in self._shapes.values()], 1)
        named = {
            name: part.unflatten(1, shape) if shape else part[:, 0]
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivatives
            return self._losses(named, rows)

    def _losses(self, named: dict[str, Tensor], rows: Tensor | None) -> Tensor:
        if stackable(self._net):
            return self._stacked(named, rows)
        if rows is None:
            return vmap(lambda own: self._alone(own, self._inputs, self._targets, self._ids))(named)
        return vmap(lambda own, at: self._alone(own, self._inputs[at], self._targets[at], self._ids[at]))(named, rows)

    def _stacked(self, named: dict[str, Tensor], rows: Tensor | None) -> Tensor:
        count = len(next(iter(named.values())))
        inputs, targets = (
            values.expand(count, *values.shape) if rows is None else values[rows]
            for values in (self._inputs, self._targets)
        )
        fixed = {name: value.expand(count, *value.shape) for name, value in self._fixed.items()}
        return self._objective.losses(outputs_of_stack(self._net, {**named, **fixed}, inputs), targets)

    def _alone(self, named: dict[str, Tensor], inputs: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
        outputs = functional_call(self._net, named, (inputs, ids))
        return self._objective.loss(outputs[..., : self._width], targets)
