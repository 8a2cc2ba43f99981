"""Batches: examples in random order or drawn from a replay memory, gathered and augmented many batches at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import StreamSpec

# Batches are gathered and augmented together, up to this many bytes of network input: the cost of
# launching those operations is shared by all batches of the chunk, and the chunk stays in the cache.
_CHUNK_BYTES = 4 << 20
# A small task may use no more batches of a replay memory than these.
_REPLAYS_AT_ONCE = 64


@dataclass(frozen=True)
class Batch:
    """The examples of one gradient step."""

    inputs: Tensor  # [B, *input]
    targets: Tensor  # [B, *target]
    task_ids: Tensor  # [B]
    replayed: int = 0  # how many examples, the last ones, were drawn from a replay memory
    recorded: Tensor | None = None  # [replayed, C] earlier outputs for the replayed examples

    def __len__(self) -> int:
        return len(self.targets)

    def halves(self) -> tuple[Batch, Batch]:
        """The examples of the new task, and the replayed ones."""
        sizes = [len(self) - self.replayed, self.replayed]
        inputs, targets, task_ids = (part.split(sizes) for part in (self.inputs, self.targets, self.task_ids))
        return Batch(inputs[0], targets[0], task_ids[0]), Batch(inputs[1], targets[1], task_ids[1], 0, self.recorded)

    def tensors(self) -> list[Tensor]:
        """Inputs, targets, task ids and, if there are any, recorded outputs."""
        return [self.inputs, self.targets, self.task_ids, *([] if self.recorded is None else [self.recorded])]


def batches(
    data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool, count: int | None = None
) -> Iterator[Batch]:
    """The examples in a random order, or the first `count` of them, in batches of `size`; the last may be smaller."""
    order = torch.randperm(len(data), generator=rng)[:count]
    return _gathered(data.reordered(order), spec, size, spec.preprocess.draw(len(order), rng) if augment else None)


def _gathered(data: Mixture, spec: StreamSpec, size: int, choices: Tensor | None) -> Iterator[Batch]:
    """The examples in order in batches of `size`, augmented by `choices` unless they are None."""
    if choices is not None:
        choices = choices.to(data.device, non_blocking=True)
    chunk = size * _batches_at_once(size, spec)
    for start in range(0, len(data), chunk):
        part = slice(start, start + chunk)
        inputs = spec.preprocess(data.inputs(part), None if choices is None else choices[part])
        split = inputs.split(size), data.targets[part].split(size), data.task_ids[part].split(size)
        yield from (Batch(*batch) for batch in zip(*split, strict=True))


def _batches_at_once(size: int, spec: StreamSpec) -> int:
    """How many batches of `size` are gathered together."""
    return max(1, _CHUNK_BYTES // (size * 4 * math.prod(spec.input_shape)))


class Replays(Iterator[Batch]):
    """Batches of `size` examples of a replay memory, drawn with replacement, without end.

    Args:
        recorded: earlier outputs for the examples, [len(data), C], to be handed out with them.
    """

    def __init__(
        self, data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool,
        recorded: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._data, self._spec, self._size, self._rng = data, spec, size, rng
        self._augment, self._recorded = augment, recorded
        self._at_once = min(_REPLAYS_AT_ONCE, _batches_at_once(size, spec))
        self._ready: Iterator[Batch] = iter(())

    def __next__(self) -> Batch:
        batch = next(self._ready, None)
        if batch is None:
            self._ready = self._chunk(*self._drawn())
            batch = next(self._ready)
        return batch

    def skip(self, count: int) -> None:
        """Skip `count` batches as if they had been asked for, without gathering most of them."""
        for _ in range(count // self._at_once):
            self._drawn()
        for _ in range(count % self._at_once):
            next(self)

    def _drawn(self) -> tuple[Tensor, Tensor | None]:
        """Positions of the examples of a chunk, and the random choices of their augmentation."""
        chunk = self._size * self._at_once
        picks = torch.randint(len(self._data), (chunk,), generator=self._rng)
        return picks, self._spec.preprocess.draw(chunk, self._rng) if self._augment else None

    def _chunk(self, picks: Tensor, choices: Tensor | None) -> Iterator[Batch]:
        gathered = _gathered(self._data.reordered(picks), self._spec, self._size, choices)
        if self._recorded is None:
            return gathered
        recorded = self._recorded[picks.to(self._recorded.device)].split(self._size)
        return (replace(batch, recorded=part) for batch, part in zip(gathered, recorded, strict=True))


def with_replay(new: Iterator[Batch], past: Sequence[Replays]) -> Iterator[Batch]:
    """Each batch of the new task, followed by one of each replay memory."""
    for batch in new:
        replayed = [next(part) for part in past]  # a single one where outputs are recorded
        columns = zip(*((part.inputs, part.targets, part.task_ids) for part in (batch, *replayed)), strict=True)
        inputs, targets, task_ids = (torch.cat(column) for column in columns)
        yield Batch(inputs, targets, task_ids, sum(map(len, replayed)), replayed[0].recorded)
