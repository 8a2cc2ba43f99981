"""Circuits: parity and majority of bits or tokens, at the end of a sequence or at every position; skip-trigrams.

Each function draws `count` sequences of a shape with L tokens, on the device of the generator.

Source: the circuit tasks of the code beside Arora et al., "Zoology" (2023). There cumulative parity has L - 1 bits.
Skip-trigrams are named after Elhage et al., "A mathematical framework for transformer circuits" (2021).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.synthetic.asked import Asked, Fault, Kind, Shape

END = 2  # the token behind the bits, at which the answer is asked for


def parity(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """L - 1 random bits and the token 2, where the answer is 1 if the number of ones is odd, else 0."""
    bits = _bits(count, shape.length - 1, rng)
    return _at_the_end(bits, END, bits.sum(-1) % 2)


def majority(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """L - 1 random bits and the token 2, where the answer is 1 if more than half of them are ones, else 0."""
    bits = _bits(count, shape.length - 1, rng)
    return _at_the_end(bits, END, (2 * bits.sum(-1) > bits.shape[-1]).long())


def vocabulary_majority(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """L - 1 random tokens of {1, ..., V - 1} and the token 0, where the answer is the most frequent one of them.

    Of tokens that are equally frequent it is the smallest: it takes the place of one of the other tokens, drawn at
    random, so that in the sequence it is more frequent than every other token.
    """
    tokens = torch.randint(1, shape.vocabulary, (count, shape.length - 1), generator=rng, device=rng.device)
    ordered = tokens.sort(-1).values
    times = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(ordered, ordered)
    winner = ordered.gather(1, times.argmax(-1, keepdim=True))  # argmax is the first of several
    others = tokens != winner
    tied = ((times == times.amax(-1, keepdim=True)) & (ordered != winner)).any(-1, keepdim=True)
    draws = torch.rand(tokens.shape, generator=rng, device=rng.device).masked_fill_(~others, -1)
    place = draws.argmax(-1, keepdim=True)
    tokens.scatter_(1, place, torch.where(tied, winner, tokens.gather(1, place)))
    return _at_the_end(tokens, 0, winner.squeeze(-1))


def cumulative_parity(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """L random bits; at each the answer is the parity of the bits up to it."""
    bits = _bits(count, shape.length, rng)
    return _everywhere(bits, bits.cumsum(-1) % 2)


def cumulative_majority(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """L random bits; at each the answer is 1 if at least half of the bits up to it are ones, else 0."""
    bits = _bits(count, shape.length, rng)
    return _everywhere(bits, ((2 * bits - 1).cumsum(-1) >= 0).long())


def skip_trigram(count: int, shape: Shape, rng: torch.Generator) -> Asked:
    """L random tokens of {1, ..., 2m}, m = (V - 1) / 2, with the triple 0, r, e in the place of three of them.

    r and e are random tokens of {1, ..., m}, and the triple stands anywhere. Asked at the 0, the answer is e + m: the
    token two places further on tells it, and r is skipped.
    """
    half, device = (shape.vocabulary - 1) // 2, rng.device
    tokens = torch.randint(1, 2 * half + 1, (count, shape.length), generator=rng, device=device)
    place = torch.randint(shape.length - 2, (count, 1), generator=rng, device=device)
    pair = torch.randint(1, half + 1, (count, 2), generator=rng, device=device)
    tokens.scatter_(1, place + torch.arange(3, device=device), F.pad(pair, (1, 0)))
    return Asked(tokens, place, pair[:, 1:] + half)


def _bits(count: int, length: int, rng: torch.Generator) -> Tensor:
    return torch.randint(2, (count, length), generator=rng, device=rng.device)


def _at_the_end(tokens: Tensor, end: int, answers: Tensor) -> Asked:
    """Sequences to which the token `end` is appended, where the answer is asked for."""
    last = torch.full_like(tokens[:, :1], end)
    return Asked(torch.cat([tokens, last], -1), torch.full_like(last, tokens.shape[1]), answers.unsqueeze(-1))


def _everywhere(tokens: Tensor, answers: Tensor) -> Asked:
    return Asked(tokens, torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens), answers)


def _end_fault(shape: Shape) -> Fault | None:
    return ("vocabulary", f"is {shape.vocabulary}; it must be at least 3") if shape.vocabulary < 3 else None


def _trigram_fault(shape: Shape) -> Fault | None:
    if shape.vocabulary < 3 or shape.vocabulary % 2 == 0:
        return "vocabulary", f"is {shape.vocabulary}; it must be odd and at least 3: a mark and two halves"
    return ("length", f"is {shape.length}; it must be at least 3") if shape.length < 3 else None


def _no_fault(shape: Shape) -> Fault | None:
    return None


def _one(shape: Shape) -> int:
    return 1


def _every(shape: Shape) -> int:
    return shape.length


def _bit(shape: Shape) -> dict[str, float]:
    return {"a random bit": 0.5}


def _token(shape: Shape) -> dict[str, float]:
    return {"a random token": 1 / (shape.vocabulary - 1)}


def _half(shape: Shape) -> dict[str, float]:
    return {"a random answer": 2 / (shape.vocabulary - 1)}


CIRCUITS = {
    "parity": Kind(parity, _one, _end_fault, ("length",), _bit),
    "majority": Kind(majority, _one, _end_fault, ("length",), _bit),
    "vocabulary_majority": Kind(vocabulary_majority, _one, _end_fault, ("length",), _token),
    "cumulative_parity": Kind(cumulative_parity, _every, _no_fault, ("length",), _bit),
    "cumulative_majority": Kind(cumulative_majority, _every, _no_fault, ("length",), _bit),
    "skip_trigram": Kind(skip_trigram, _one, _trigram_fault, ("length",), _half, by_answer=True),
}
