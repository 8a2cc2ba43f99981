"""A language: documents with a question, whose structure is known.

    bos content eos query [relation] answer eos

The network reads a document and is scored where the answer is next: at the query, or at the token of the relation.
Tokens: 0 pads documents, 1 begins them, 2 ends the content and the document, 3 to 5 are relations; symbols follow.

Source: Arora et al., "Mechanistic evaluation of Transformers and state space models" (2025).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError
from utils.seeding import generator
from utils.settings import Range, setting

PAD, BEGIN, END = range(3)
RELATIONS = ("parent", "child", "sibling")  # of the query to the answer; their tokens follow END
SPECIAL = ("pad", "bos", "eos", *RELATIONS)  # words for the tokens that are no symbols
FIRST_SYMBOL = len(SPECIAL)
# The items of a document: those of the content that the question is about, the token between content and question, and
# the question with its answer.
ORIGINAL, TARGET, DIVIDER, QUERY, RELATION, ANSWER = ITEMS = (
    "original_query", "target", "divider", "query", "relation", "answer"
)  # fmt: skip
# Documents that are drawn at once at most, and before it is given up: at least so many, and for each that is needed.
_AT_LEAST, _IN_VAIN = 2**16, 1000


class Documents(NamedTuple):
    """N documents in tokens [N, L], 0 behind the end of each."""

    tokens: Tensor  # [N, L] int64
    positions: dict[str, Tensor]  # by item, [N] int64, -1 where there is none
    answers: Tensor  # [N, A] int64, the tokens that may answer
    probabilities: Tensor  # [N, A] float32
    known: Mapping[str, Tensor] = MappingProxyType({})  # what else statistics tell of each document, by name, [N]

    @property
    def asked(self) -> Tensor:
        """Where the answer is next, [N]."""
        return self.positions[ANSWER] - 1

    @property
    def right(self) -> Tensor:
        """The tokens that answer, [N]."""
        return self.tokens.gather(1, self.positions[ANSWER].unsqueeze(1)).squeeze(1)

    def kept(self, chosen: Tensor | slice) -> "Documents":
        """Some of the documents: their numbers [K], a mask [N] or a slice."""
        places = {item: found[chosen] for item, found in self.positions.items()}
        known = {name: values[chosen] for name, values in self.known.items()}
        return Documents(self.tokens[chosen], places, self.answers[chosen], self.probabilities[chosen], known)


class Language(ABC):
    """Documents of one kind."""

    @dataclass(frozen=True)
    class Settings:
        """Settings that all languages have."""

        withheld: float = setting(
            Range(0, 1, whole=False, open_high=True), "share of the pairs of symbols that only test examples ask for",
            default=0.0,
        )  # fmt: skip
        seed: int = setting(Range(0), "of what is drawn once: the pairs that are withheld, the grammar", default=0)

    settings: Any  # of its class `Settings`
    symbols: int  # tokens from FIRST_SYMBOL on
    longest: int  # positions of the longest document

    @abstractmethod
    def __init__(self, settings: Any) -> None:
        """The language with these settings, of its class `Settings`; UserError if there is none."""

    @abstractmethod
    def draw(self, count: int, rng: torch.Generator, withheld: bool) -> Documents:
        """`count` documents, on the device of the generator; those that ask for withheld pairs or the others."""

    @abstractmethod
    def replacements(self, documents: Documents, rng: torch.Generator) -> dict[str, Tensor]:
        """By item, a token for each document that could stand in its place in a document of the language, [N]."""

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """The expected accuracy of answers that need no network, by name."""

    def word(self, token: int) -> str:
        """A token for people, such as bos or k12."""
        return SPECIAL[token] if token < FIRST_SYMBOL else self._symbol(token - FIRST_SYMBOL)

    def _symbol(self, number: int) -> str:
        """A symbol for people, by its number from 0."""
        return f"s{number}"

    def facts(self) -> dict[str, Any]:
        """What people may want to know of the language, as values for JSON."""
        return {}

    def arrays(self) -> dict[str, Tensor]:
        """What was drawn once, by name."""
        return {}

    def drawn_withheld(self, symbols: int, name: str) -> Tensor:
        """Which pairs of so many symbols each are withheld, bool [symbols, symbols]; UserError if all are, or none."""
        share = self.settings.withheld
        rng = generator(self.settings.seed, "languages", name, "withheld")
        drawn = torch.rand(symbols, symbols, generator=rng) < share
        if drawn.all() or not drawn.any():
            which = "all" if drawn.any() else "none"
            raise UserError(f"withheld is {share:g}; that is {which} of the {drawn.numel()} pairs of symbols")
        return drawn

    def drawn_until(self, count: int, draw: Callable[[int], Documents], what: str) -> Documents:
        """The first `count` documents that calls of `draw` return; it is asked for a number and may return fewer.

        UserError if they do not come together; `what` says which documents these are.
        """
        found, got, asked = list[Documents](), 0, 0
        while asked < _AT_LEAST + _IN_VAIN * count:
            some = max(64, count - got)
            if asked:  # as many as will do if the same share of them is kept, and not many more than before
                some = min(2 * asked, _AT_LEAST, int(some * (asked + 1) / (got + 1)) + 1)
            found.append(draw(some))
            got, asked = got + len(found[-1].tokens), asked + some
            if got >= count:
                return joined([part for part in found if len(part.tokens)]).kept(slice(count))
        raise UserError(f"there are too few {what}: {got} of {count}")

    def statistics(self, documents: Documents) -> dict[str, float]:
        """What documents are like, by name: means over them, where a name says nothing else."""
        lengths = documents.positions[DIVIDER] - 1  # of the content
        away = (documents.positions[TARGET] - documents.positions[ORIGINAL]).abs()
        places = torch.arange(documents.tokens.shape[1], device=lengths.device)
        content = documents.tokens.where(places < documents.positions[DIVIDER].unsqueeze(1), 0).sort(1).values
        repeated = ((content[:, 1:] == content[:, :-1]) & (content[:, 1:] >= FIRST_SYMBOL)).sum(1) / lengths
        found = {
            "length": lengths, "shortest length": lengths.min(), "longest length": lengths.max(),
            "distance of query and target": away, "share of neighbours": away == 1,
            "share of repeated symbols": repeated, **documents.known,
        }  # fmt: skip
        return {name: float(values.double().mean()) for name, values in found.items()}


def joined(parts: list[Documents]) -> Documents:
    """Documents one after another, with as many positions and answers as the longest and the most of them need."""
    length = max(part.tokens.shape[1] for part in parts)
    most = max(part.answers.shape[1] for part in parts)

    def filled(values: Tensor, width: int) -> Tensor:
        return F.pad(values, (0, width - values.shape[1]))

    return Documents(
        torch.cat([filled(part.tokens, length) for part in parts]),
        {item: torch.cat([part.positions[item] for part in parts]) for item in parts[0].positions},
        torch.cat([filled(part.answers, most) for part in parts]),
        torch.cat([filled(part.probabilities, most) for part in parts]),
        {name: torch.cat([part.known[name] for part in parts]) for name in parts[0].known},
    )
