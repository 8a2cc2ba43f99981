"""Recall: sequences that show keys with their values and then ask for the values of keys.

Each function draws `count` sequences of a shape with L tokens, on the device of the generator. Questions stand behind
the context, in slots that hold a key and a blank; what stands in a slot is drawn by `slots`. The right output at a key
that is asked is its value, which is not shown behind it. Blanks are random tokens, or 0 without noise.

Source: multi-query associative recall is that of Arora et al., "Zoology: Measuring and Improving Recall in Efficient
Language Models" (2023). Here an update always changes the value of its key.
"""

import math

import torch
from torch import Tensor

from datasets.synthetic.asked import UNASKED, Asked, Fault, Kind, Shape


def mqar(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """Multi-query associative recall: k_1 v_1 ... k_K v_K, then every key once in a slot of two tokens.

    Keys are different tokens of {1, ..., V/2 - 1}, values of {V/2, ..., V - 1}.
    """
    keys, values = _pairs(count, shape, rng)
    return _ask(torch.stack([keys, values], -1).flatten(1), keys.unsqueeze(-1), values, shape, rng)


def compositional(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """Keys of two tokens: K triplets a b v, all combinations of sqrt(K) first and second parts in random order.

    First parts are of the first third of the vocabulary without 0, second parts of the second, values of the last.
    Slots have three tokens, a, b and a blank; the value is asked for at b.
    """
    third, side = shape.vocabulary // 3, math.isqrt(shape.pairs)
    first, second = 1 + distinct(count, side, third - 1, rng), third + distinct(count, side, third, rng)
    values = 2 * third + distinct(count, shape.pairs, shape.vocabulary - 2 * third, rng)
    which = distinct(count, shape.pairs, shape.pairs, rng)
    keys = torch.stack([first.gather(1, which // side), second.gather(1, which % side)], -1)
    context = torch.cat([keys, values.unsqueeze(-1)], -1).flatten(1)
    return _ask(context, keys, values, shape, rng)


def forgetting(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """MQAR where K pairs are followed by U pairs that give some of the keys another value; the last one counts."""
    half = shape.vocabulary // 2
    keys, values = _pairs(count, shape, rng)
    which = distinct(count, shape.updates, shape.pairs, rng)
    others = shape.vocabulary - half - 1  # values that are not the old one
    away = torch.randint(1, others + 1, which.shape, generator=rng, device=rng.device)
    changed = half + (values.gather(1, which) - half + away) % (others + 1)
    shown = torch.cat([keys, keys.gather(1, which)], 1), torch.cat([values, changed], 1)
    return _ask(torch.stack(shown, -1).flatten(1), keys.unsqueeze(-1), values.scatter(1, which, changed), shape, rng)


def continuous_mqar(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """Recall of vectors: all pairs, a key beside its value, in a new order in each pass; then all keys beside zeros.

    Tokens are rows of a table, [N, (passes + 1) K, 2]: keys of its first half, values of its second half or -1 for
    zeros. Answers are rows of the second half.
    """
    half, pairs = shape.vocabulary // 2, shape.pairs
    keys, values = distinct(count, pairs, half, rng), distinct(count, pairs, shape.vocabulary - half, rng)
    orders = [distinct(count, pairs, pairs, rng) for _ in range(shape.passes + 1)]
    shown = [torch.stack([keys.gather(1, order), half + values.gather(1, order)], -1) for order in orders]
    shown[-1][..., 1] = UNASKED
    last = torch.arange(shape.passes * pairs, (shape.passes + 1) * pairs, device=rng.device)
    return Asked(torch.cat(shown, 1), last.expand(count, -1), values.gather(1, orders[-1]))


def distinct(count: int, k: int, size: int, rng: torch.Generator) -> Tensor:
    """k different numbers of {0, ..., size - 1}, [count, k]; all choices and orders are equally likely.

    Source: algorithm F2 of Floyd (in Bentley, "Programming Pearls: A Sample of Brilliance", 1987), for all rows at
    once: no memory is needed for the size - k numbers that are not chosen.
    """
    chosen = torch.empty(k, count, dtype=torch.int64, device=rng.device)
    for place, top in enumerate(range(size - k, size)):
        number = torch.randint(top + 1, (count,), generator=rng, device=rng.device)
        taken = (chosen[:place] == number).any(0)
        chosen[place] = torch.where(taken, top, number)
    # Which numbers these are is random, but larger ones tend to be last.
    order = torch.rand(k, count, dtype=torch.float64, generator=rng, device=rng.device).argsort(0)
    return chosen.gather(0, order).T.contiguous()


def slots(count: int, k: int, size: int, power: float, rng: torch.Generator) -> Tensor:
    """k different slots of {0, ..., size - 1}, drawn one after the other, [count, k].

    Of the slots that are left, slot j (from 1) is drawn with a probability proportional to j^(power - 1): 1 is uniform,
    a small power prefers the first slots. Draws are the order in which clocks of these rates ring.

    Source: Efraimidis & Spirakis, "Weighted random sampling with a reservoir" (2006).
    """
    # Exponential waiting times from uniform numbers, which is faster than exponential_.
    waits = torch.rand(count, size, dtype=torch.float64, generator=rng, device=rng.device).log_().neg_()
    waits *= torch.arange(1, size + 1, device=rng.device).double() ** (1 - power)
    return waits.topk(k, largest=False, sorted=True).indices


def _pairs(count: int, shape: Shape, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Different keys and different values, [count, K] each."""
    half = shape.vocabulary // 2
    keys = 1 + distinct(count, shape.pairs, half - 1, rng)
    return keys, half + distinct(count, shape.pairs, shape.vocabulary - half, rng)


def _ask(context: Tensor, keys: Tensor, values: Tensor, shape: Shape, rng: torch.Generator) -> Asked:
    """Sequences that begin with a context [N, C] and then ask for the values [N, K] of keys [N, K, w].

    Slots have w + 1 tokens. The first key gets the first draw of a slot.
    """
    (count, start), (_, number, width) = context.shape, keys.shape
    size = (shape.length - start) // (width + 1)
    found, order = slots(count, number, size, shape.power, rng).sort(-1)
    if shape.noise:
        tokens = torch.randint(shape.vocabulary, (count, shape.length), generator=rng, device=rng.device)
    else:
        tokens = torch.zeros(count, shape.length, dtype=torch.int64, device=rng.device)
    tokens[:, :start] = context
    places = start + found * (width + 1)
    for part in range(width):
        tokens.scatter_(1, places + part, keys[..., part].gather(1, order))
    return Asked(tokens, places + width - 1, values.gather(1, order))


def _mqar_fault(shape: Shape) -> Fault | None:
    if shape.length % 2:
        return "length", f"is {shape.length}; it must be even"
    if shape.vocabulary <= shape.length:
        return "vocabulary", f"is {shape.vocabulary}; it must be above the length, {shape.length}"
    if 4 * shape.pairs > shape.length:
        return "pairs", f"is {shape.pairs}; a length of {shape.length} has room for {shape.length // 4}"
    return None


def _compositional_fault(shape: Shape) -> Fault | None:
    side, third = math.isqrt(shape.pairs), shape.vocabulary // 3
    if side**2 != shape.pairs:
        return "pairs", f"is {shape.pairs}; it must be a square number, such as {max(1, side) ** 2}"
    if 6 * shape.pairs > shape.length:
        return "pairs", f"is {shape.pairs}; a length of {shape.length} has room for {shape.length // 6}"
    if third <= side or shape.vocabulary - 2 * third < shape.pairs:
        enough = 3 * max(side + 1, shape.pairs)
        return "vocabulary", f"is {shape.vocabulary}; too little for {shape.pairs} pairs, {enough} is enough"
    return None


def _forgetting_fault(shape: Shape) -> Fault | None:
    if shape.updates > shape.pairs:
        return "updates", f"is {shape.updates}; there are only {shape.pairs} pairs"
    needed = 4 * shape.pairs + 2 * shape.updates
    if needed > shape.length:
        return "length", f"is {shape.length}; {shape.pairs} pairs and {shape.updates} updates need {needed}"
    if shape.vocabulary < 2 * shape.pairs + 2:
        return "vocabulary", f"is {shape.vocabulary}; {shape.pairs} pairs need {2 * shape.pairs + 2}"
    return None


def _continuous_fault(shape: Shape) -> Fault | None:
    if shape.pairs > shape.vocabulary // 2:
        return "vocabulary", f"is {shape.vocabulary}; {shape.pairs} pairs need {2 * shape.pairs}"
    return None


def _all_pairs(shape: Shape) -> int:
    return shape.pairs


def _guessed(shape: Shape) -> dict[str, float]:
    return {"a value of the context": 1 / shape.pairs}


def _guessed_of_all(shape: Shape) -> dict[str, float]:
    return {"a value of the context": 1 / (shape.pairs + shape.updates)}


RECALL = {
    "mqar": Kind(mqar, _all_pairs, _mqar_fault, ("length", "pairs"), _guessed),
    "compositional": Kind(compositional, _all_pairs, _compositional_fault, ("length", "pairs"), _guessed),
    "forgetting": Kind(forgetting, _all_pairs, _forgetting_fault, ("length", "pairs", "updates"), _guessed_of_all),
    "continuous_mqar": Kind(continuous_mqar, _all_pairs, _continuous_fault, ("pairs",), _guessed, vectors=True),
}
