"""A memory of a fixed number of slots that is filled while examples arrive, as in one pass over a stream.

Which slot an example takes depends on the examples before it, not on the network, so it is decided for all examples of
a task at once, before the task is learned: no step waits for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import StreamSpec
from training.batches import Batch, Replays

NONE = -1  # the slot of an example that is not kept


def reservoir_slots(size: int, seen: int, count: int, rng: torch.Generator) -> Tensor:
    """The slot that each of `count` arriving examples takes, [count] int64, after `seen` earlier ones; NONE: no slot.

    Example n, counted from 0 over all that ever arrived, takes slot n while there are empty ones, then slot r, uniform
    over 0..n, if r < size. So every example is kept with the same probability.

    Source: Vitter, "Random Sampling with a Reservoir" (1985), algorithm R.
    """
    n = seen + torch.arange(count)
    drawn = (torch.rand(count, generator=rng, dtype=torch.float64) * (n + 1)).long()
    slots = torch.where(n < size, n, drawn)
    return torch.where(slots < size, slots, NONE)


class ClassReservoir:
    """A reservoir that keeps its classes as equal in number as the stream allows.

    While there are empty slots every example takes one. Then an example of a class that was never the largest one in
    the memory takes the place of a random example of the largest class; one of the others, of a class of which m
    examples are kept and n were seen, takes the place of a random one of its own class with probability m / n.

    Source: Chrysakis & Moens, "Online Continual Learning from Imbalanced Data", ICML 2020, algorithm 1.
    """

    def __init__(self, size: int) -> None:
        self._size, self._used = size, 0
        self._slots: dict[object, list[int]] = {}  # of each class
        self._seen: dict[object, int] = {}
        self._full: set[object] = set()  # classes that were once the largest

    def slots(self, classes: Sequence[object], rng: torch.Generator) -> Tensor:
        """The slot that each example of these classes takes, in their order, see `reservoir_slots`."""
        # Each choice depends on all before it: a loop, of a microsecond an example, before training.
        first, second = torch.rand(2, len(classes), generator=rng, dtype=torch.float64).tolist()
        return torch.tensor([self._slot(*arrival) for arrival in zip(classes, first, second, strict=True)])

    def _slot(self, label: object, chance: float, which: float) -> int:
        self._seen[label] = self._seen.get(label, 0) + 1
        own = self._slots.setdefault(label, [])
        if self._used < self._size:
            own.append(self._used)
            self._used += 1
            if self._used == self._size:
                self._full.update(self._largest())
            return own[-1]
        if label in self._full:
            return own[int(which * len(own))] if chance * self._seen[label] < len(own) else NONE
        largest = list(self._largest().values())
        number, place = divmod(int(which * sum(map(len, largest))), len(largest[0]))
        slot = largest[number].pop(place)
        own.append(slot)
        self._full.update(self._largest())
        return slot

    def _largest(self) -> dict[object, list[int]]:
        """The slots of each of the largest classes."""
        most = max(map(len, self._slots.values()))
        return {label: slots for label, slots in self._slots.items() if len(slots) == most}


class Arrivals:
    """What the memory holds after any number of examples of a task has arrived.

    Examples are rows of a pool: the `before` examples that the memory held, in the order of their slots `held`
    [before], and then those of the task, which arrive in the order `order` [n] and take the slots `slots` [n].
    """

    def __init__(self, size: int, held: Tensor, order: Tensor, slots: Tensor) -> None:
        self.size, self.slots = size, slots
        self.filled = len(held) + torch.cumsum(_first_uses(slots, held, size), 0)  # after 1, 2, ... arrivals
        self._before, self._order, self._stride = len(held), order, len(slots) + 1
        taken = (slots != NONE).nonzero().flatten()
        # Each time that a slot is taken has a number, slot * stride + time, time 0 for what was held before.
        keys = torch.cat([held * self._stride, slots[taken] * self._stride + taken + 1])
        rows = torch.cat([torch.arange(len(held)), len(held) + order[taken]])
        self._keys, by_key = keys.sort()
        self._rows = rows[by_key]

    def count(self, arrived: int) -> int:
        """How many slots are in use after so many arrivals."""
        return int(self.filled[arrived - 1]) if arrived else self._before

    def rows(self, slots: Tensor, arrived: Tensor) -> Tensor:
        """The rows of the pool in used slots, [S, B], after `arrived` arrivals, [S]."""
        asked = slots * self._stride + arrived.unsqueeze(1)
        return self._rows[torch.searchsorted(self._keys, asked, right=True) - 1]

    def written(self, start: int, count: int) -> Tensor:
        """For the arrivals start, ..., start + count - 1 the slot that each has after the last one; `size`: none."""
        slots = self.slots[start : start + count].clone()
        last = torch.full((self.size + 1,), NONE).scatter_reduce_(
            0, slots.where(slots != NONE, self.size), torch.arange(len(slots)), "amax"
        )
        stays = (slots != NONE) & (last[slots] == torch.arange(len(slots)))
        return slots.where(stays, self.size)


def _first_uses(slots: Tensor, held: Tensor, size: int) -> Tensor:
    """Whether each arrival takes a slot that was empty, [n]."""
    first = torch.full((size + 1,), len(slots))
    first[size] = NONE
    places = slots.where(slots != NONE, size)
    first.scatter_reduce_(0, places, torch.arange(len(slots)), "amin")
    first[held] = NONE
    return first[places] == torch.arange(len(slots))


def distinct(count: int, size: int, draws: int, rng: torch.Generator) -> Tensor:
    """`draws` times `size` different numbers from 0 to count - 1, [draws, size] int64, each set equally likely."""
    if size * size > count:  # drawing again until all are different would take long
        return torch.rand(draws, count, generator=rng).topk(size, 1).indices
    found = torch.randint(count, (draws, size), generator=rng)
    while len(again := _with_repeats(found)):
        found[again] = torch.randint(count, (len(again), size), generator=rng)
    return found


def _with_repeats(numbers: Tensor) -> Tensor:
    ordered = numbers.sort(1).values
    return (ordered[:, 1:] == ordered[:, :-1]).any(1).nonzero().flatten()


class DistinctReplays(Replays):
    """Endless batches of `size` different examples of a replay memory, or of all if it has fewer."""

    def chunks(self) -> Iterator[tuple[int, Iterator[Batch]]]:
        size = min(self.size, len(self.data))
        while True:
            picks = distinct(len(self.data), size, self.at_once, self.rng)
            yield self.at_once, self.gathered(picks.flatten(), size)


class SlotReplays(Replays):
    """For each step of a task, examples that the memory held before it: as many as `size`, or all if it has fewer.

    Args:
        arrivals, data: see ReplayMemory.arrivals.
        batch: how many examples of the task arrive in a step.
        repeat: steps on each batch of the task.
        noted: whether batches say which slots their new examples take, in the last step on them.
    """

    def __init__(
        self, arrivals: Arrivals, data: Mixture, spec: StreamSpec, batch: int, size: int, rng: torch.Generator, *,
        augment: bool, repeat: int = 1, noted: bool = False,
    ) -> None:  # fmt: skip
        self._arrivals, self._batch, self._repeat, self._noted = arrivals, batch, repeat, noted
        super().__init__(data, spec, size, rng, augment=augment)

    def chunks(self) -> Iterator[tuple[int, Iterator[Batch]]]:
        arrivals, step, total = self._arrivals, 0, len(self._arrivals.slots)
        while True:
            filled = arrivals.count(min(step // self._repeat * self._batch, total))
            size = min(self.size, filled)
            # What can be drawn stays the same from when all slots are in use, or all examples have arrived.
            settled = filled in (arrivals.size, arrivals.count(total))
            steps = torch.arange(step, step + (self.at_once if settled else 1))
            slots = distinct(filled, size, len(steps), self.rng) if size else torch.zeros(len(steps), 0).long()
            rows = arrivals.rows(slots, (steps // self._repeat * self._batch).clamp_max(total))
            # Drawn here even if the batches are skipped, so that those after them are the same.
            batches = self.gathered(rows.flatten(), size) if size else iter([self.empty()] * len(steps))
            yield len(steps), self._with_slots(steps.tolist(), slots, batches)
            step += len(steps)

    def _with_slots(self, steps: list[int], slots: Tensor, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of some steps with the slots of their examples, [S, B]."""
        slots = slots.to(self.data.device)
        for step, batch, places in zip(steps, batches, slots, strict=True):
            written, first = None, step // self._repeat * self._batch
            if self._noted and first < len(self._arrivals.slots):
                last = (step + 1) % self._repeat == 0
                written = self._arrivals.written(first, self._batch)
                written = (written if last else torch.full_like(written, self._arrivals.size)).to(self.data.device)
            yield replace(batch, slots=places, written=written)
