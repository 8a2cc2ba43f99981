"""Associative recall: pairs of a key and a value, and a question for one half of one pair."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets.schema import NOWHERE
from datasets.synthetic.language import (
    ANSWER,
    BEGIN,
    DIVIDER,
    END,
    FIRST_SYMBOL,
    ORIGINAL,
    QUERY,
    RELATION,
    TARGET,
    Documents,
    Language,
)  # fmt: skip
from datasets.synthetic.recall import distinct
from utils.errors import UserError
from utils.settings import Range, setting

_MOST_WITHHELD = 2**14  # symbols of a language with withheld pairs, whose table then has 2^26 of them


class AssociativeRecall(Language):
    """bos k_1 v_1 ... k_K v_K eos query answer eos, with different keys and different values.

    Half of the symbols are keys, half values. The query is the key of one of the pairs and the answer its value, or the
    other way round; all pairs are equally likely, except that those which are withheld are never asked for.

    Source: Arora et al. (2025), section 3.
    """

    @dataclass(frozen=True)
    class Settings(Language.Settings):
        """Settings of associative recall."""

        symbols: int = setting(Range(4, 2**20), "different symbols, half of them keys, half values", default=128)
        pairs: int = setting(Range(1, 2**14), "pairs of a document, at most", default=8)
        fewest_pairs: int | None = setting(
            Range(1, 2**14), "pairs of a document, at least (default: `pairs`)", default=None
        )
        ask: str = setting(("key", "value"), "what the query is; value: the answer is a key", default="key")

    def __init__(self, settings: Settings) -> None:
        self.settings, self.symbols = settings, settings.symbols
        self.fewest = settings.pairs if settings.fewest_pairs is None else settings.fewest_pairs
        self.asks_value = int(settings.ask == "value")
        self.longest = 2 * settings.pairs + 5
        if settings.symbols % 2:
            raise UserError(f"symbols is {settings.symbols}; it must be even, half keys and half values")
        self.half = settings.symbols // 2
        if settings.pairs >= self.half:
            raise UserError(f"pairs is {settings.pairs}; {settings.symbols} symbols have room for {self.half - 1}, as "
                            "one key and one value are left out of a document")  # fmt: skip
        if self.fewest > settings.pairs:
            raise UserError(f"fewest_pairs is {self.fewest}; it must be at most the pairs, {settings.pairs}")
        self.withheld = self._withheld() if settings.withheld else None  # [key, value]
        self._placed: dict[torch.device, Tensor] = {}  # copies of it

    def _withheld(self) -> Tensor:
        """Which pairs are withheld, bool [key, value]."""
        if self.symbols > _MOST_WITHHELD:
            raise UserError(f"symbols is {self.symbols}; with withheld pairs there can be at most {_MOST_WITHHELD}")
        return self.drawn_withheld(self.half, "recall")

    def draw(self, count: int, rng: torch.Generator, withheld: bool) -> Documents:
        if self.withheld is None:
            return self._drawn(count, rng, withheld)
        which = "that are withheld" if withheld else "that are not withheld"
        return self.drawn_until(count, lambda n: self._drawn(n, rng, withheld), f"documents with pairs {which}")

    def _drawn(self, count: int, rng: torch.Generator, withheld: bool) -> Documents:
        """Documents out of `count`: without those that have no pair to ask for."""
        device, most = rng.device, self.settings.pairs
        keys, values = (distinct(count, most, self.half, rng) for _ in range(2))
        sizes = torch.randint(self.fewest, most + 1, (count, 1), generator=rng, device=device)
        allowed = torch.arange(most, device=device) < sizes
        if self.withheld is not None:
            if device not in self._placed:
                self._placed[device] = self.withheld.to(device)
            allowed &= self._placed[device][keys, values] == withheld
        luck = torch.rand(count, most, generator=rng, device=device)
        chosen = luck.masked_fill(~allowed, -1).argmax(1, keepdim=True)
        content = torch.stack([keys, values + self.half], -1).flatten(1) + FIRST_SYMBOL
        tokens = torch.zeros(count, self.longest, dtype=torch.int64, device=device)
        tokens[:, 0] = BEGIN
        inside = torch.arange(2 * most, device=device) < 2 * sizes
        tokens[:, 1 : 2 * most + 1] = content.where(inside, 0)
        original, target = 1 + 2 * chosen + self.asks_value, 2 + 2 * chosen - self.asks_value
        end = 2 * sizes + 1
        asked = tokens.gather(1, torch.cat([original, target], 1))
        tokens.scatter_(1, end, END).scatter_(1, end + 3, END)
        tokens.scatter_(1, torch.cat([end + 1, end + 2], 1), asked)
        positions = {ORIGINAL: original, TARGET: target, DIVIDER: end, QUERY: end + 1,
                     RELATION: torch.full_like(end, NOWHERE), ANSWER: end + 2}  # fmt: skip
        documents = Documents(
            tokens, {item: place.squeeze(1) for item, place in positions.items()}, asked[:, 1:],
            torch.ones(count, 1, device=device), {"pairs": sizes.squeeze(1)},
        )  # fmt: skip
        return documents.kept(allowed.any(1))

    def replacements(self, documents: Documents, rng: torch.Generator) -> dict[str, Tensor]:
        """A key or a value that is not in the document; all are equally likely."""
        return {ORIGINAL: self._other(documents, self.asks_value, rng),
                TARGET: self._other(documents, 1 - self.asks_value, rng)}  # fmt: skip

    def _other(self, documents: Documents, value: int, rng: torch.Generator) -> Tensor:
        """A key (`value` 0) or a value (1) for each document that has it nowhere, [N]."""
        first = FIRST_SYMBOL + self.half * value
        shown = documents.tokens[:, 1 + value : 2 * self.settings.pairs + 1 + value : 2]
        places = torch.arange(shown.shape[1], device=shown.device)
        sizes = (documents.positions[DIVIDER] - 1) // 2
        taken = (shown - first).where(places < sizes.unsqueeze(1), self.symbols).sort(1).values
        luck = torch.rand(len(shown), dtype=torch.float64, generator=rng, device=shown.device)
        number = (luck * (self.half - sizes)).long()  # among those that are left, in their order
        # Symbol number n of those that are left has before it as many taken ones as have at most n left ones before.
        before = (taken - places <= number.unsqueeze(1)).sum(1)
        return first + number + before

    def baselines(self) -> dict[str, float]:
        sizes = range(self.fewest, self.settings.pairs + 1)
        # A test document has a withheld pair, which large ones have more often.
        allowed = 0.0 if self.withheld is None else float(1 - self.withheld.float().mean())
        shares = [1 - allowed**size for size in sizes]
        expected = sum(share / size for share, size in zip(shares, sizes, strict=True)) / sum(shares)
        return {f"a {'key' if self.asks_value else 'value'} of the document": expected}

    def facts(self) -> dict[str, Any]:
        numbers = {"keys": self.half, "values": self.half}
        return numbers if self.withheld is None else {**numbers, "withheld pairs": int(self.withheld.sum())}

    def arrays(self) -> dict[str, Tensor]:
        return {} if self.withheld is None else {"withheld": self.withheld}

    def _symbol(self, number: int) -> str:
        return f"k{number}" if number < self.half else f"v{number - self.half}"
