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
# Of a replay memory not more batches than these, which a small task can use up.
_REPLAYS_AT_ONCE = 64


@dataclass(frozen=True)
class Batch:
    """What a network sees in one step."""

    inputs: Tensor  # [B, *input]
    targets: Tensor  # [B, *target]
    task_ids: Tensor  # [B]
    replayed: int = 0  # the last so many examples are of past tasks, drawn from a replay memory
    recorded: Tensor | None = None  # [replayed, C] what the network once said to the replayed examples

    def __len__(self) -> int:
        return len(self.targets)

    def halves(self) -> tuple[Batch, Batch]:
        """The examples of the new task, and those that are replayed."""
        new = len(self) - self.replayed
        return (
            Batch(self.inputs[:new], self.targets[:new], self.task_ids[:new]),
            Batch(self.inputs[new:], self.targets[new:], self.task_ids[new:], recorded=self.recorded),
        )


def batches(
    data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool, count: int | None = None
) -> Iterator[Batch]:
    """The examples in a random order, or the first `count` of them, in batches of `size`; the last may be smaller."""
    order = torch.randperm(len(data), generator=rng)[:count]
    choices = spec.preprocess.draw(len(order), rng) if augment else None
    choices = choices.to(data.device) if choices is not None else None
    data = data.reordered(order)
    chunk = size * _at_once(size, spec)
    for start in range(0, len(data), chunk):
        part = slice(start, start + chunk)
        inputs = spec.preprocess(data.inputs(part), None if choices is None else choices[part])
        split = (inputs.split(size), data.targets[part].split(size), data.task_ids[part].split(size))
        for batch in zip(*split, strict=True):
            yield Batch(*batch)


def _at_once(size: int, spec: StreamSpec) -> int:
    """How many batches of `size` are gathered together."""
    return max(1, _CHUNK_BYTES // (size * 4 * math.prod(spec.input_shape)))


class Replays:
    """Batches of `size` examples of a replay memory, drawn with replacement, without end.

    Args:
        recorded: [len(data), C], comes along with the examples.
    """

    def __init__(
        self, data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool,
        recorded: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._data, self._spec, self._size, self._rng = data, spec, size, rng
        self._augment, self._recorded = augment, recorded
        self._at_once = min(_REPLAYS_AT_ONCE, _at_once(size, spec))
        self._ready: Iterator[Batch] = iter(())

    def __iter__(self) -> Replays:
        return self

    def __next__(self) -> Batch:
        batch = next(self._ready, None)
        if batch is None:
            self._ready = self._gathered(*self._drawn())
            batch = next(self._ready)
        return batch

    def skip(self, count: int) -> None:
        """Go on after `count` more batches, as if they had been asked for; nothing is gathered for most of them."""
        for _ in range(count // self._at_once):
            self._drawn()
        for _ in range(count % self._at_once):
            next(self)

    def _drawn(self) -> tuple[Tensor, Tensor | None]:
        chunk = self._size * self._at_once
        picks = torch.randint(len(self._data), (chunk,), generator=self._rng)
        return picks, self._spec.preprocess.draw(chunk, self._rng) if self._augment else None

    def _gathered(self, picks: Tensor, choices: Tensor | None) -> Iterator[Batch]:
        drawn, size = self._data.reordered(picks), self._size
        choices = None if choices is None else choices.to(drawn.device)
        inputs = self._spec.preprocess(drawn.inputs(slice(0, len(picks))), choices)
        along: Sequence[Tensor | None] = [None] * self._at_once
        if self._recorded is not None:
            along = self._recorded[picks.to(self._recorded.device)].split(size)
        split = (inputs.split(size), drawn.targets.split(size), drawn.task_ids.split(size))
        for (images, targets, task_ids), said in zip(zip(*split, strict=True), along, strict=True):
            yield Batch(images, targets, task_ids, recorded=said)


class Joined:
    """Batches of several replay memories, one of each in every batch."""

    def __init__(self, parts: Sequence[Replays]) -> None:
        self._parts = parts

    def __iter__(self) -> Joined:
        return self

    def __next__(self) -> Batch:
        return joined([next(part) for part in self._parts])

    def skip(self, count: int) -> None:
        """Go on after `count` more batches."""
        for part in self._parts:
            part.skip(count)


def with_replay(new: Iterator[Batch], past: Iterator[Batch]) -> Iterator[Batch]:
    """Each batch of the new task followed by one of the replay memory."""
    for batch, old in zip(new, past, strict=False):
        both = joined([batch, old])
        yield replace(both, replayed=len(old), recorded=old.recorded)


def joined(parts: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    return Batch(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.task_ids for part in parts]),
    )
