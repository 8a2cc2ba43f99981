"""Associative treecall: sentences of a grammar with heads, and a question for a relative of one of the terminals."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.synthetic.grammar import Grammar, GrammarSettings, Trees, spread
from datasets.synthetic.language import (
    ANSWER,
    BEGIN,
    DIVIDER,
    END,
    FIRST_SYMBOL,
    ORIGINAL,
    QUERY,
    RELATION,
    RELATIONS,
    TARGET,
    Documents,
    Language,
)  # fmt: skip
from utils.errors import UserError, unknown
from utils.seeding import generator
from utils.settings import Range, setting

_AT_ONCE = 2**22  # terminals that are drawn together, at most: more would need more memory, and be no faster
PARENT, CHILD, SIBLING = range(len(RELATIONS))


class RelationList:
    """Some of the relations, a list of different names."""

    @staticmethod
    def read(where: str, value: object) -> tuple[str, ...]:
        """The checked names, in the order of RELATIONS; a UserError names the wrong one."""
        if not isinstance(value, (list, tuple)) or not value:
            raise UserError(f"{where} must be a list of relations, such as [parent, sibling]")
        for name in value:
            if name not in RELATIONS:
                raise UserError(f"{where}: {unknown('relation', name, RELATIONS)}")
        return tuple(name for name in RELATIONS if name in value)

    @staticmethod
    def describe() -> str:
        """The accepted values in words."""
        return f"a list of {', '.join(RELATIONS)}"


class Pairs(NamedTuple):
    """P pairs of terminals that can be asked for, as numbers of nodes; each [P] int64."""

    query: Tensor
    target: Tensor
    relation: Tensor  # of the target to the query, its place in RELATIONS


class Treecall(Language):
    """bos sentence eos query [relation] answer eos: what is the parent, a child or a sibling of the query?

    The head of a phrase is the parent of the other terminals of its rule and of the heads of the phrases in it. An
    unambiguous query means the right-most of the terminals like it: it is asked for its parent, its right-most child,
    or the right-most of its siblings, unless this is itself or there is one like it further right. An ambiguous one may
    be any terminal like it, and the answer any child or sibling.

    `first` target: all terminals of which something can be asked are equally likely targets, then all questions for the
    target (query and relation); query: all queries, then all that can be asked of the query.

    Source: Arora et al. (2025), section 4.
    """

    @dataclass(frozen=True)
    class Settings(GrammarSettings, Language.Settings):
        """Settings of associative treecall."""

        head: str = setting(("right", "left"), "where the head of a phrase stands", default="right")
        relations: tuple[str, ...] = setting(
            RelationList, f"what is asked for, a list of {', '.join(RELATIONS)}; the document says which, if there are "
            "several", default=("parent",),
        )  # fmt: skip
        unambiguous: bool = setting(bool, "the document and the question have one answer", default=True)
        first: str = setting(("target", "query"), "what is drawn first, among all equally likely", default="target")
        longest: int = setting(Range(3, 2**14), "terminals of a sentence, at most", default=64)

    def __init__(self, settings: Settings) -> None:
        self.settings, self.symbols = settings, settings.terminals
        self.relations = [RELATIONS.index(name) for name in settings.relations]
        self.longest = settings.longest + 5 + (len(self.relations) > 1)
        if settings.transparent and settings.terminals < settings.nonterminals:
            raise UserError(f"transparent needs a terminal for each non-terminal; terminals is {settings.terminals}, "
                            f"nonterminals {settings.nonterminals}")  # fmt: skip
        if settings.children == 1 and self.relations == [SIBLING]:
            raise UserError("children is 1, so that nothing has a sibling; relations is [sibling]")
        if settings.withheld and settings.terminals > 2**13:
            raise UserError(f"terminals is {settings.terminals}; at most {2**13} if pairs are withheld")
        self.grammar = Grammar.drawn(settings, generator(settings.seed, "languages", "grammar"))
        none = torch.zeros(1, 1, dtype=torch.bool)
        self.withheld = self.drawn_withheld(self.symbols, "tree") if settings.withheld else none  # [target, query]
        self._copies = {torch.device("cpu"): (self.grammar, self.withheld)}  # one for each device

    def draw(self, count: int, rng: torch.Generator, withheld: bool) -> Documents:
        which = "" if not self.settings.withheld else " that are withheld" if withheld else " that are not withheld"
        what = f"sentences of 3 to {self.settings.longest} terminals with pairs to ask for{which}"
        most = max(64, _AT_ONCE // self.settings.longest)
        return self.drawn_until(count, lambda n: self.ask(self.trees(min(n, most), rng), rng, withheld), what)

    def trees(self, count: int, rng: torch.Generator) -> Trees:
        """Of `count` random sentences those that are neither too short nor too long."""
        return self._on(rng.device)[0].trees(count, self.settings.longest, self.settings.head, rng)

    def ask(self, trees: Trees, rng: torch.Generator, withheld: bool) -> Documents:
        """A document for each sentence that has a pair to ask for: a withheld one, or one that is not."""
        pairs = self._pairs(trees, withheld)
        document, number = trees.document[pairs.query], len(trees.lengths)
        first = pairs.target if self.settings.first == "target" else pairs.query
        share = 1 / first.bincount(minlength=1)[first].double()  # the chance of a pair is proportional to it
        # The smallest of exponential variables with these rates: each is it with a chance in proportion to its rate.
        luck = torch.rand(len(share), dtype=torch.float64, generator=rng, device=rng.device)
        winner = _first(-luck.log() / share, document, number)
        asked = winner < len(share)
        place = (asked.cumsum(0) - 1)[document]
        chosen = Pairs(*(values[winner[asked]] for values in pairs))
        alike = trees.symbol[pairs.query] == trees.symbol[chosen.query][place]
        alike &= pairs.relation == chosen.relation[place]
        answers, probabilities = _distribution(
            place[alike], trees.symbol[pairs.target][alike], share[alike], len(chosen.query), self.symbols
        )
        known = self._known(trees, pairs)
        return self._written(trees, chosen, asked)._replace(
            answers=FIRST_SYMBOL + answers,
            probabilities=probabilities,
            known={name: values[asked] for name, values in known.items()},
        )

    def replacements(self, documents: Documents, rng: torch.Generator) -> dict[str, Tensor]:
        """A terminal that is not in the document; if all are, any but the one that is there."""
        ranked = documents.tokens.sort(1).values - FIRST_SYMBOL
        new = F.pad(ranked[:, 1:] != ranked[:, :-1], (1, 0), value=True) & (ranked >= 0)
        # Of the terminals below the j-th different one of a document, from 0, all but j are missing.
        missing_below = (ranked - new.cumsum(1) + 1).masked_fill(~new, self.symbols)
        missing = self.symbols - new.sum(1)
        found = {}
        for item in (ORIGINAL, TARGET):
            there = documents.tokens.gather(1, documents.positions[item].unsqueeze(1)).squeeze(1) - FIRST_SYMBOL
            choices = missing.where(missing > 0, self.symbols - 1)
            luck = torch.rand(len(there), dtype=torch.float64, generator=rng, device=there.device)
            rank = (luck * choices).long()
            skipped = (missing_below <= rank.unsqueeze(1)).sum(1).where(missing > 0, (there <= rank).long())
            found[item] = FIRST_SYMBOL + rank + skipped
        return found

    def baselines(self) -> dict[str, float]:
        return {}  # no answer without a network has an accuracy that is known of every grammar

    def facts(self) -> dict[str, Any]:
        """What people want to know of the grammar."""
        return self.grammar.facts()

    def arrays(self) -> dict[str, Tensor]:
        """The grammar, which Grammar.rebuilt reads, and which pairs are withheld, [target, query]."""
        return self.grammar.arrays() | ({"withheld": self.withheld} if self.settings.withheld else {})

    def _on(self, device: torch.device) -> tuple[Grammar, Tensor]:
        """The grammar and the pairs that are withheld, on a device."""
        if device not in self._copies:
            self._copies[device] = self.grammar.to(device), self.withheld.to(device)
        return self._copies[device]

    def _pairs(self, trees: Trees, withheld: bool) -> Pairs:
        """All pairs that can be asked for."""
        node = torch.arange(len(trees.symbol), device=trees.symbol.device)
        child = node[trees.parent >= 0]
        parent, order = trees.parent[child], trees.order[child]
        family = parent.bincount(minlength=1)[parent]
        eldest = child - order
        youngest = eldest + family - 1
        sure = self.settings.unambiguous
        last = _last_alike(trees, self.symbols, self.settings.longest) if sure else torch.ones_like(node).bool()
        found = []
        if PARENT in self.relations:
            asks = last[child]
            found.append((child[asks], parent[asks], PARENT))
        if CHILD in self.relations:
            asks = last[parent] & (child == youngest) if sure else last[parent]
            found.append((parent[asks], child[asks], CHILD))
        if SIBLING in self.relations and sure:
            asks = last[child] & last[youngest] & (child != youngest)
            found.append((child[asks], youngest[asks], SIBLING))
        elif SIBLING in self.relations:
            owner, other = spread(family)
            query, target = child[owner], eldest[owner] + other
            found.append((query[query != target], target[query != target], SIBLING))
        query, target = (torch.cat(values) for values in list(zip(*found, strict=True))[:2])
        pairs = Pairs(query, target, torch.cat([torch.full_like(query, relation) for query, _, relation in found]))
        if not self.settings.withheld:
            return pairs
        matrix = self._on(node.device)[1]
        allowed = matrix[trees.symbol[target], trees.symbol[query]] == withheld
        return Pairs(*(values[allowed] for values in pairs))

    def _written(self, trees: Trees, chosen: Pairs, asked: Tensor) -> Documents:
        """The documents of the sentences that are asked [K], each with its pair; without the answers' distribution."""
        lengths, nodes = trees.lengths[asked], asked[trees.document]
        tokens = torch.zeros(len(lengths), self.longest, dtype=torch.int64, device=lengths.device)
        tokens[:, 0] = BEGIN
        row = (asked.cumsum(0) - 1)[trees.document[nodes]]
        tokens[row, 1 + trees.position[nodes]] = FIRST_SYMBOL + trees.symbol[nodes]
        end, typed = lengths + 1, int(len(self.relations) > 1)
        positions = {
            ORIGINAL: 1 + trees.position[chosen.query], TARGET: 1 + trees.position[chosen.target], DIVIDER: end,
            QUERY: end + 1, RELATION: end + 2 if typed else torch.full_like(end, -1), ANSWER: end + 2 + typed,
        }  # fmt: skip
        query, answer = (FIRST_SYMBOL + trees.symbol[node] for node in (chosen.query, chosen.target))
        question = [end.new_full(end.shape, END), query, *[END + 1 + chosen.relation] * typed, answer]
        places = end.unsqueeze(1) + torch.arange(4 + typed, device=end.device)
        tokens.scatter_(1, places, torch.stack([*question, question[0]], 1))
        return Documents(tokens, positions, answer.unsqueeze(1), torch.ones(len(end), 1, device=end.device))

    def _known(self, trees: Trees, pairs: Pairs) -> dict[str, Tensor]:
        """What statistics tell of the trees of all sentences, [K] each."""
        number = len(trees.lengths)
        heads = trees.document[trees.nonterminal >= 0].bincount(minlength=number)
        depth = torch.zeros_like(trees.lengths).scatter_reduce(0, trees.document, trees.depth, "amax")
        known = {"depth": depth, "branching factor": (trees.lengths - 1) / heads}
        known["pairs to ask for"] = trees.document[pairs.query].bincount(minlength=number)
        for name, nodes in (("possible queries", pairs.query), ("possible targets", pairs.target)):
            used = torch.zeros_like(trees.symbol).index_fill(0, nodes, 1)
            known[name] = torch.zeros_like(trees.lengths).index_add(0, trees.document, used)
        return known


def _last_alike(trees: Trees, symbols: int, longest: int) -> Tensor:
    """Which terminals are the right-most ones like them of their sentences, [M]."""
    group = trees.document * symbols + trees.symbol
    place, node = (group * longest + trees.position).sort()  # no table of all symbols of all sentences
    group = place // longest
    last = F.pad(group[1:] != group[:-1], (0, 1), value=True)[: len(node)]
    return torch.zeros_like(last).index_copy(0, node, last)


def _first(values: Tensor, row: Tensor, count: int) -> Tensor:
    """The place of the smallest of the values [P] of each of `count` rows; P of rows without one."""
    smallest = values.new_full((count,), torch.inf).scatter_reduce(0, row, values, "amin")
    place = (values == smallest[row]).nonzero().squeeze(1)
    return row.new_full((count,), len(values)).scatter_reduce(0, row[place], place, "amin")


def _distribution(row: Tensor, symbol: Tensor, share: Tensor, count: int, symbols: int) -> tuple[Tensor, Tensor]:
    """The different symbols [count, A] of each row, and their parts of the shares, which are the rest 0.

    Entries of rows are given: row, symbol and share, [P] each.
    """
    key, place = (row * symbols + symbol).unique(return_inverse=True)
    owner = key // symbols
    total = share.new_zeros(count).index_add(0, row, share)
    part = share.new_zeros(len(key)).index_add(0, place, share) / total[owner]
    sizes = owner.bincount(minlength=count)
    order = spread(sizes)[1]
    width = int(sizes.max()) if count else 1
    answers, probabilities = key.new_zeros(count, width), part.new_zeros(count, width)
    answers[owner, order], probabilities[owner, order] = key % symbols, part
    return answers, probabilities.float()
