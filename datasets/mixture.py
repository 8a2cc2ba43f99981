"""Several tasks as one table, from which mixed batches are gathered."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.task import Examples


class Mixture:
    """The examples of several tasks as one table on the device.

    `parts` are task ids and their examples; inputs have one shape. A store that is too large for the device stays in
    the host's memory, and batches of it are copied to `device`, where targets and task ids lie.
    """

    def __init__(self, parts: Sequence[tuple[int, Examples]]) -> None:
        examples = [part for _, part in parts]
        self._store = examples[0].store
        if all(part.store is self._store for part in examples):
            self._rows = torch.cat([part.rows for part in examples])
        else:
            self._store = torch.cat([part.store[part.rows] for part in examples])
            self._rows = torch.arange(len(self._store), device=self._store.device)
        self.targets = torch.cat([part.targets for part in examples])
        self.device = self.targets.device
        sizes = torch.tensor([len(part) for part in examples], device=self.device)
        numbers = torch.tensor([task_id for task_id, _ in parts], device=self.device)
        self.task_ids = numbers.repeat_interleave(sizes)
        self._views: Tensor | None = None
        if any(part.view is not None for part in examples):
            same = torch.arange(self._store[0].numel(), device=self.device)
            self._views = torch.stack([same if part.view is None else part.view for part in examples])
            self._view_of = torch.arange(len(parts), device=self.device).repeat_interleave(sizes)

    def __len__(self) -> int:
        return len(self._rows)

    def reordered(self, order: Tensor) -> "Mixture":
        """The table of the examples at the positions `order`, [K] int64 on the CPU."""
        other = copy.copy(self)
        other._rows = self._rows[order.to(self._rows.device)]
        order = order.to(self.device)
        other.targets, other.task_ids = self.targets[order], self.task_ids[order]
        if self._views is not None:
            other._view_of = self._view_of[order]
        return other

    def inputs(self, part: slice) -> Tensor:
        """A copy of the inputs of consecutive examples, [K, *input] as stored, on the device."""
        rows = self._rows[part]
        if self._store.device == self.device:
            inputs = self._store[rows]
        else:
            # Page-locked memory is copied asynchronously: the host gathers a batch and launches its operations while
            # the device still works on earlier ones.
            gathered = torch.empty(len(rows), *self._store.shape[1:], dtype=self._store.dtype, pin_memory=True)
            torch.index_select(self._store, 0, rows, out=gathered)
            inputs = gathered.to(self.device, non_blocking=True)
        if self._views is None:
            return inputs
        view = self._views[self._view_of[part]]
        seen = inputs.flatten(1).gather(1, view.clamp_min(0)).masked_fill_(view < 0, 0)
        return seen.view_as(inputs)
