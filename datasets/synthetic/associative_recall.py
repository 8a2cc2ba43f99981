"""Associative recall: pairs of a key and a value, and a question for one half of one pair."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
from utils.seeding import generator
from utils.settings import Range, setting


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
        self.longest = 2 * settings.pairs + 5
        if settings.symbols % 2:
            raise UserError(f"symbols is {settings.symbols}; it must be even, half keys and half values")
        if settings.pairs >= settings.symbols // 2:
            raise UserError(f"pairs is {settings.pairs}; {settings.symbols} symbols have room for "
                            f"{settings.symbols // 2 - 1}, and one left out")  # fmt: skip
        if self.fewest > settings.pairs:
            raise UserError(f"fewest_pairs is {self.fewest}; pairs are at most {settings.pairs}")
        self.half = settings.symbols // 2
        rng = generator(settings.seed, "languages", "recall", "withheld")
        drawn = torch.rand(self.half, self.half, generator=rng) if settings.withheld else torch.ones(1, 1)
        self.withheld = drawn < settings.withheld  # [key, value], or of all of them

    def draw(self, count: int, rng: torch.Generator, withheld: bool) -> Documents:
        if not withheld and not self.settings.withheld:
            return self._drawn(count, rng, withheld)
        which = "that are withheld" if withheld else "that are not withheld"
        return self.drawn_until(count, lambda n: self._drawn(n, rng, withheld), f"documents with pairs {which}")

    def _drawn(self, count: int, rng: torch.Generator, withheld: bool) -> Documents:
        """Documents out of `count`: without those that have no pair to ask for."""
        device, most = rng.device, self.settings.pairs
        keys, values = (distinct(count, most, self.half, rng) for _ in range(2))
        sizes = torch.randint(self.fewest, most + 1, (count, 1), generator=rng, device=device)
        allowed = torch.arange(most, device=device) < sizes
        if self.settings.withheld:
            allowed &= self.withheld.to(device)[keys, values] == withheld
        luck = torch.rand(count, most, generator=rng, device=device)
        chosen = luck.masked_fill(~allowed, -1).argmax(1, keepdim=True)
        content = torch.stack([keys, values + self.half], -1).flatten(1) + FIRST_SYMBOL
        tokens = torch.zeros(count, self.longest, dtype=torch.int64, device=device)
        tokens[:, 0] = BEGIN
        inside = torch.arange(2 * most, device=device) < 2 * sizes
        tokens[:, 1 : 2 * most + 1] = content.where(inside, 0)
        asks_value = int(self.settings.ask == "value")
        original, target = 1 + 2 * chosen + asks_value, 2 + 2 * chosen - asks_value
        end = 2 * sizes + 1
        asked = tokens.gather(1, torch.cat([original, target], 1))
        tokens.scatter_(1, end, END).scatter_(1, end + 3, END)
        tokens.scatter_(1, torch.cat([end + 1, end + 2], 1), asked)
        positions = {ORIGINAL: original, TARGET: target, DIVIDER: end, QUERY: end + 1, RELATION: 0 * end - 1,
                     ANSWER: end + 2}  # fmt: skip
        documents = Documents(
            tokens, {item: place.squeeze(1) for item, place in positions.items()}, asked[:, 1:],
            torch.ones(count, 1, device=device), {"pairs": sizes.squeeze(1)},
        )  # fmt: skip
        return documents.kept(allowed.any(1))

    def replacements(self, documents: Documents, rng: torch.Generator) -> dict[str, Tensor]:
        """A key or a value that is not in the document."""
        found = {}
        for item in (ORIGINAL, TARGET):
            is_value = (item == TARGET) == (self.settings.ask == "key")
            first = FIRST_SYMBOL + self.half * is_value
            symbols = documents.tokens - first
            here = (symbols >= 0) & (symbols < self.half)
            luck = torch.rand(len(symbols), self.half + 1, generator=rng, device=symbols.device)
            luck.scatter_(1, symbols.where(here, self.half), -1.0)
            found[item] = first + luck[:, : self.half].argmax(1)
        return found

    def baselines(self) -> dict[str, float]:
        return {f"a {'key' if self.settings.ask == 'value' else 'value'} of the document": self._one_of_all()}

    def _one_of_all(self) -> float:
        sizes = range(self.fewest, self.settings.pairs + 1)
        return sum(1 / size for size in sizes) / len(sizes)
