"""A network: a trunk with one head for each task, one head that all tasks share, or none."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

# task: a linear head for each task; shared: one linear head for all; growing: the same, with as many outputs as the
# task that has most, to which later tasks add some; identity: the features are the outputs.
HEADS = ("task", "shared", "growing", "identity")
# Weights of a shared trunk that are particular to a task, by parameter name: its values, or a bool mask of those used.
TaskWeights = Mapping[str, Tensor]


class MultiHead(nn.Module):
    """inputs [B, *input], task ids [B] -> outputs [B, ..., C], C the width of the widest head.

    Heads act on the last axis of the features. Their rows are stacked in one weight [sum of widths, D]: the outputs of
    a mixed batch are one matrix product and one gather, without a loop over tasks or a wait for the device. The outputs
    of a narrower head are filled up with -inf, which softmax turns into probability 0. The trunk returns `features` D;
    `head_sizes` are the widths by task id, `heads` is one of HEADS. The biases are zeros that stay if the trunk has the
    attribute `head_bias` = False. UserError if tasks of different widths share a head, or without a head the features
    do not fit the outputs.
    """

    def __init__(self, trunk: nn.Module, features: int, head_sizes: Mapping[int, int], heads: str = "task") -> None:
        super().__init__()
        self.trunk = trunk
        if heads == "growing":
            head_sizes = dict.fromkeys(head_sizes, max(head_sizes.values()))
        self.head_sizes, self.kind = dict(head_sizes), heads
        widths = set(head_sizes.values())
        if heads != "task" and len(widths) > 1:
            raise UserError(f"tasks have {sorted(widths)} outputs; with {heads} heads all have the same number")
        if heads == "identity" and widths != {features}:
            unlike = f"the network has {features} features and tasks have {max(widths)} outputs"
            raise UserError(f"{unlike}; without a head these must be the same")
        self._rows, columns, filled = _stacked(head_sizes, heads)
        total = max(rows.stop for rows in self._rows.values())
        self.weight = nn.Parameter(torch.empty(total, features), requires_grad=total > 0)
        with torch.no_grad():
            for rows in {rows.start: rows for rows in self._rows.values()}.values():  # a shared head once
                bound = self.head_bound(rows.stop - rows.start)
                self.weight[rows].uniform_(-bound, bound)
        self.bias: Tensor = (
            nn.Parameter(torch.zeros(total), requires_grad=total > 0)
            if getattr(trunk, "head_bias", True)
            else nn.Buffer(torch.zeros(total), persistent=False)
        )
        self.columns = nn.Buffer(columns, persistent=False)
        narrower = heads == "task" and len(widths) > 1
        self.filled: Tensor | None = nn.Buffer(filled, persistent=False) if narrower else None

    def head_bound(self, width: int) -> float:
        """The weights of a new head of so many outputs are uniform in plus or minus this, its biases zero.

        As in nn.Linear, or by the rule of Xavier where the trunk has the attribute `head_init` = "xavier".
        """
        features = self.weight.shape[1]
        xavier = getattr(self.trunk, "head_init", "torch") == "xavier"
        return math.sqrt(6 / (features + width)) if xavier else 1 / math.sqrt(features)

    def forward(self, inputs: Tensor, task_ids: Tensor) -> Tensor:
        return self.head(self.trunk(inputs), task_ids)

    def head(self, features: Tensor, task_ids: Tensor) -> Tensor:
        """Outputs of the head of each example's task; features [B, ..., D], task ids [B] -> [B, ..., C]."""
        outputs = self._all_heads(features)
        if self.kind == "task":
            outputs = outputs.gather(-1, _along(self.columns[task_ids], features))
        return outputs if self.filled is None else outputs + _along(self.filled[task_ids], features)

    def restrict(self, task_id: int, outputs: Tensor | None) -> None:
        """Let only these outputs, [K], of a head that tasks share compete for the examples of a task; None: all."""
        if self.kind == "growing":
            filled = torch.zeros_like(self.columns, dtype=self.weight.dtype)
            filled[task_id] = -torch.inf
            filled[task_id, ... if outputs is None else outputs] = 0
            self.filled = None if outputs is None else filled

    def heads(self, features: Tensor, tasks: Tensor) -> Tensor:
        """Outputs of several heads for every example; features [B, ..., D], tasks [T] -> [B, ..., T, C]."""
        outputs = self._all_heads(features)
        if self.kind != "task":
            return outputs.unsqueeze(-2).expand(*outputs.shape[:-1], len(tasks), -1)
        outputs = outputs[..., self.columns[tasks]]
        return outputs if self.filled is None else outputs + self.filled[tasks]

    def _all_heads(self, features: Tensor) -> Tensor:
        return features if self.kind == "identity" else F.linear(features, self.weight, self.bias)

    @contextmanager
    def for_task(self, weights: TaskWeights) -> Iterator[None]:
        """Within this context the trunk has the weights of a task; those that a mask leaves out are 0."""
        trunk = self.trunk.state_dict()
        shared = {name: trunk[name].clone() for name in weights}
        for name, value in weights.items():
            trunk[name].copy_(torch.where(value, shared[name], 0.0) if value.dtype == torch.bool else value)
        try:
            yield
        finally:
            for name, value in shared.items():
                trunk[name].copy_(value)

    def head_values(self) -> dict[str, Tensor]:
        """What training changes in the heads, by name: the weight, and the bias if they have one."""
        return dict(self.named_parameters(recurse=False))

    def rows(self, task_id: int) -> slice:
        """The rows of a task's head in `weight` and `bias`."""
        return self._rows[task_id]

    def head_parameters(self, task_id: int) -> int:
        """Number of trained values of a task's head."""
        rows = self._rows[task_id]
        return sum(value[rows].numel() for value in self.head_values().values())


def grown(value: Tensor | None, like: Tensor) -> Tensor:
    """A value of each parameter, with zeros for those that have joined: the rows of new outputs of a growing head."""
    if value is None or value.shape == like.shape:
        return torch.zeros_like(like) if value is None else value
    return torch.cat([value, value.new_zeros(len(like) - len(value), *value.shape[1:])])


def _along(rows: Tensor, features: Tensor) -> Tensor:
    """Rows [B, C], repeated along the middle axes of features [B, ..., D]: [B, ..., C]."""
    if features.ndim == 2:
        return rows
    return rows.unflatten(0, (-1, *(1,) * (features.ndim - 2))).expand(*features.shape[:-1], -1)


def _stacked(head_sizes: Mapping[int, int], heads: str) -> tuple[dict[int, slice], Tensor, Tensor]:
    """Where the rows of each task's head are in the stacked weight, by task id: as slices, and as numbers [ids, C].

    The third value, [ids, C], is added to the outputs: 0 on the head, -inf where it is narrower than C.
    """
    columns = torch.zeros(max(head_sizes) + 1, max(head_sizes.values()), dtype=torch.long)
    filled = torch.zeros(columns.shape)
    rows, start = {}, 0
    for task_id, width in head_sizes.items():
        size = 0 if heads == "identity" else width
        rows[task_id] = slice(start, start + size)
        columns[task_id, :size] = torch.arange(start, start + size)
        filled[task_id, size:] = -torch.inf
        start += size if heads == "task" else 0
    return rows, columns, filled
