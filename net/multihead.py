"""A trunk and one linear head per task, all heads in one tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What a task has of its own in a trunk that tasks share, by name: other values, or (bool) the weights that it uses.
Own = Mapping[str, Tensor]


class MultiHead(nn.Module):
    """inputs [B, *input], task ids [B] -> outputs [B, C], C the width of the widest head.

    The rows of all heads are stacked in one weight [sum of widths, D]: the logits of a mixed batch are one
    matrix product and one gather, without a loop over tasks or a wait for the device. Heads may differ
    in width; a narrower one is filled up with -inf, which softmax turns into probability 0.

    Args:
        trunk: inputs -> features [B, D].
        features: D.
        head_sizes: width of the head of each task, by task id.
    """

    def __init__(self, trunk: nn.Module, features: int, head_sizes: Mapping[int, int]) -> None:
        super().__init__()
        self.trunk = trunk
        self.head_sizes = dict(head_sizes)
        total, widest = sum(head_sizes.values()), max(head_sizes.values())
        # As nn.Linear initialises each head; biases start at zero.
        bound = 1 / math.sqrt(features)
        self.weight = nn.Parameter(torch.empty(total, features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(total))
        columns = torch.zeros(max(head_sizes) + 1, widest, dtype=torch.long)
        filled = torch.zeros(max(head_sizes) + 1, widest)
        start = 0
        for task_id, size in head_sizes.items():
            columns[task_id, :size] = torch.arange(start, start + size)
            filled[task_id, size:] = -torch.inf
            start += size
        self.columns: Tensor
        self.filled: Tensor | None
        self.register_buffer("columns", columns, persistent=False)
        equal = len(set(head_sizes.values())) == 1
        self.register_buffer("filled", None if equal else filled, persistent=False)

    def forward(self, inputs: Tensor, task_ids: Tensor) -> Tensor:
        return self.head(self.trunk(inputs), task_ids)

    def head(self, features: Tensor, task_ids: Tensor) -> Tensor:
        """Outputs of each example's own head; features [B, D], task ids [B] -> [B, C]."""
        outputs = F.linear(features, self.weight, self.bias).gather(1, self.columns[task_ids])
        return outputs if self.filled is None else outputs + self.filled[task_ids]

    def heads(self, features: Tensor, tasks: Tensor) -> Tensor:
        """Outputs of several heads for every example; features [B, D], tasks [T] on their device -> [B, T, C]."""
        outputs = F.linear(features, self.weight, self.bias)[:, self.columns[tasks]]
        return outputs if self.filled is None else outputs + self.filled[tasks]

    @contextmanager
    def for_task(self, own: Own) -> Iterator[None]:
        """The trunk as a task has it; weights that it does not use are 0."""
        here = self.trunk.state_dict()
        common = {name: here[name].clone() for name in own}
        for name, value in own.items():
            here[name].copy_(torch.where(value, common[name], 0.0) if value.dtype == torch.bool else value)
        try:
            yield
        finally:
            for name, value in common.items():
                here[name].copy_(value)

    def rows(self, task_id: int) -> slice:
        """Where the rows of a task's head are in `weight` and `bias`."""
        start = int(self.columns[task_id, 0])
        return slice(start, start + self.head_sizes[task_id])
