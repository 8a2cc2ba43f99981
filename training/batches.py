"""Batches: examples in random order or drawn from a replay memory, gathered and augmented many batches at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, islice

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import StreamSpec

# Batches are gathered and augmented together, up to this many bytes of network input: the cost of
# launching those operations is shared by all batches of the chunk, and the chunk stays in the cache.
CHUNK_BYTES = 4 << 20
# A small task may use no more batches of a replay memory than these.
_REPLAYS_AT_ONCE = 64
Columns = tuple[Tensor, Tensor, Tensor]  # inputs, targets and task ids of some examples


@dataclass(frozen=True)
class Batch:
    """The examples of one gradient step."""

    inputs: Tensor  # [B, *input]
    targets: Tensor  # [B, *target]
    task_ids: Tensor  # [B]
    replayed: int = 0  # how many examples, the last ones, were drawn from a replay memory
    recorded: Tensor | None = None  # [replayed, C] earlier outputs for the replayed examples
    slots: Tensor | None = None  # [replayed] places of the replayed examples in a memory that is filled meanwhile
    written: Tensor | None = None  # [B - replayed] places that the other examples take there after the step

    def __len__(self) -> int:
        return len(self.targets)

    def halves(self) -> "tuple[Batch, Batch]":
        """The examples of the new task, and the replayed ones."""
        sizes = [len(self) - self.replayed, self.replayed]
        inputs, targets, task_ids = (part.split(sizes) for part in (self.inputs, self.targets, self.task_ids))
        past = Batch(inputs[1], targets[1], task_ids[1], 0, self.recorded, self.slots)
        return Batch(inputs[0], targets[0], task_ids[0], written=self.written), past

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name of the field."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def batches(
    data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool, count: int | None = None,
    shuffle: bool = True,
) -> Iterator[Batch]:  # fmt: skip
    """The examples in a random order, or the first `count` of them, in batches of `size`; the last may be smaller."""
    return _split(lots(data, spec, size, rng, augment=augment, count=count, shuffle=shuffle), size)


def lots(
    data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool, count: int | None = None,
    shuffle: bool = True, networks: int = 1,
) -> Iterator[Columns]:  # fmt: skip
    """The examples of `batches`, those of many batches together; of fewer where several networks have their own."""
    count = len(data) if count is None else min(count, len(data))
    if shuffle:
        data = data.reordered(torch.randperm(len(data), generator=rng)[:count])
    return _lots(data, spec, size, spec.preprocess.draw(count, rng) if augment else None, count, networks)


def _split(parts: Iterator[Columns], size: int) -> Iterator[Batch]:
    return (Batch(*batch) for part in parts for batch in zip(*(column.split(size) for column in part), strict=True))


def _lots(
    data: Mixture, spec: StreamSpec, size: int, choices: Tensor | None, count: int, networks: int = 1
) -> Iterator[Columns]:  # fmt: skip
    """The first `count` examples in order, those of many batches together, augmented unless `choices` are None."""
    if choices is not None:
        choices = choices.to(data.device, non_blocking=True)
    chunk = size * _batches_at_once(size * networks, spec)
    for start in range(0, count, chunk):
        part = slice(start, min(start + chunk, count))
        inputs = spec.preprocess(data.inputs(part), None if choices is None else choices[part])
        yield inputs, data.targets[part], data.task_ids[part]


def _batches_at_once(size: int, spec: StreamSpec) -> int:
    """How many batches of `size` are gathered together."""
    return max(1, CHUNK_BYTES // (size * 4 * math.prod(spec.input_shape)))


class Replays(Iterator[Batch]):
    """Endless batches of `size` examples of a replay memory, drawn with replacement, with their `recorded` outputs."""

    def __init__(
        self, data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool,
        recorded: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.data, self.size, self.rng, self._spec, self._augment = data, size, rng, spec, augment
        self._recorded = recorded
        self.at_once = min(_REPLAYS_AT_ONCE, _batches_at_once(size, spec))
        self._chunks = self.chunks()
        self._batches = chain.from_iterable(chunk for _, chunk in self._chunks)

    def __next__(self) -> Batch:
        return next(self._batches)

    def skip(self, count: int) -> None:
        """Skip the first `count` batches, without gathering most of them."""
        while count > 0:
            length, chunk = next(self._chunks)
            if length > count:
                self._batches = chain(islice(chunk, count, None), self._batches)
            count -= length

    def chunks(self) -> Iterator[tuple[int, Iterator[Batch]]]:
        """Numbers of batches, and these batches, which are gathered when the first one is asked for."""
        while True:
            picks = torch.randint(len(self.data), (self.size * self.at_once,), generator=self.rng)
            gathered = self.gathered(picks, self.size)
            if self._recorded is None:
                yield self.at_once, gathered
            else:
                outputs = self._recorded[picks.to(self._recorded.device)].split(self.size)
                yield self.at_once, (replace(b, recorded=part) for b, part in zip(gathered, outputs, strict=True))

    def empty(self) -> Batch:
        """A batch without examples."""
        none = slice(0, 0)
        return Batch(self._spec.preprocess(self.data.inputs(none)), self.data.targets[none], self.data.task_ids[none])

    def gathered(self, picks: Tensor, size: int) -> Iterator[Batch]:
        """The examples `picks`, [K] int64, of the memory in batches of `size`."""
        choices = self._spec.preprocess.draw(len(picks), self.rng) if self._augment else None
        return _split(_lots(self.data.reordered(picks), self._spec, size, choices, len(picks)), size)


def with_replay(new: Iterator[Batch], past: Sequence[Replays]) -> Iterator[Batch]:
    """Each batch of the new task, followed by one of each replay memory."""
    for batch in new:
        replayed = [next(part) for part in past]  # a single one where outputs are recorded
        columns = zip(*((part.inputs, part.targets, part.task_ids) for part in (batch, *replayed)), strict=True)
        inputs, targets, task_ids = (torch.cat(column) for column in columns)
        one = replayed[0]
        yield Batch(inputs, targets, task_ids, sum(map(len, replayed)), one.recorded, one.slots, one.written)
