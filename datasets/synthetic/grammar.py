"""Random grammars whose phrases have heads, and sentences of them with their trees.

Every non-terminal has a level and is replaced by terminals and non-terminals of higher levels alone, so that trees are
finite. A replaced non-terminal also leaves a terminal, its head, beside what it is replaced by.

Source: Arora et al., "Mechanistic evaluation of Transformers and state space models" (2025), section 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.settings import Range, setting

NONE = -1
SHORTEST = 3  # terminals of a sentence, at least


@dataclass(frozen=True)
class GrammarSettings:
    """What a grammar is drawn from."""

    terminals: int = setting(Range(2, 2**14), "different terminals", default=20)
    nonterminals: int = setting(Range(1, 2**10), "different non-terminals", default=40)
    levels: int = setting(Range(1, 100), "levels of non-terminals, and so the greatest depth", default=10)
    rules: int = setting(Range(1, 100), "rules of a non-terminal, at most", default=5)
    children: int = setting(Range(1, 100), "symbols that a non-terminal is replaced by, at most", default=4)
    terminal_factor: float | None = setting(
        Range(0, 2**20, whole=False, open_low=True),
        "a symbol of a rule is a terminal with this weight, against 1 for each non-terminal that could stand there "
        "(default: `terminals`)",
        default=None,
    )
    transparent: bool = setting(bool, "every non-terminal has one head, its own", default=False)


class Trees(NamedTuple):
    """K sentences of M terminals in all, each a node of a tree; the children of a node stand one behind the other.

    The head of a phrase is the parent of all other terminals of its rule, and of the heads of the phrases in it; that
    of the whole sentence has no parent.
    """

    symbol: Tensor  # [M] int64, the terminal, from 0
    document: Tensor  # [M] int64, its sentence
    position: Tensor  # [M] int64, its place in the sentence, from 0
    parent: Tensor  # [M] int64, the number of its head, or NONE
    order: Tensor  # [M] int64, its place among its siblings, from 0
    depth: Tensor  # [M] int64, steps to the head of the sentence
    nonterminal: Tensor  # [M] int64, whose head it is, or NONE
    rule: Tensor  # [M] int64, by which that is replaced, or NONE
    lengths: Tensor  # [K] int64, terminals of each sentence


@dataclass(frozen=True)
class Grammar:
    """N non-terminals with at most R rules of at most C symbols, over T terminals."""

    levels: Tensor  # [N] int64, from 1
    rules: Tensor  # [N, R, C] int64: terminals from 0, non-terminals from T, NONE behind the end
    rule_probabilities: Tensor  # [N, R] float64, 0 where there is no rule
    head_probabilities: Tensor  # [N, T] float64

    @staticmethod
    def drawn(settings: GrammarSettings, rng: torch.Generator) -> "Grammar":
        """A random grammar: sizes, levels and symbols are uniform, probabilities Dirichlet(1)."""
        number, terminals = settings.nonterminals, settings.terminals
        shape = (number, settings.rules, settings.children)
        levels = torch.randint(1, settings.levels + 1, (number,), generator=rng)
        counts = torch.randint(1, settings.rules + 1, (number, 1), generator=rng)
        sizes = torch.randint(1, settings.children + 1, (*shape[:2], 1), generator=rng)
        higher = (levels > levels.unsqueeze(1)).sum(1).view(-1, 1, 1)  # how many non-terminals may stand in a rule
        factor = terminals if settings.terminal_factor is None else settings.terminal_factor
        is_terminal = torch.rand(shape, generator=rng, dtype=torch.float64) < factor / (factor + higher)
        rank = (torch.rand(shape, generator=rng, dtype=torch.float64) * higher).long()
        nonterminal = terminals + levels.argsort()[(number - higher + rank).clamp(max=number - 1)]
        rules = torch.where(is_terminal, torch.randint(terminals, shape, generator=rng), nonterminal)
        there = torch.arange(settings.rules) < counts
        rules[~(there.unsqueeze(-1) & (torch.arange(settings.children) < sizes))] = NONE
        if settings.transparent:
            heads = torch.zeros(number, terminals, dtype=torch.float64)
            heads[torch.arange(number), torch.randperm(terminals, generator=rng)[:number]] = 1
        else:
            heads = _dirichlet(torch.ones(number, terminals, dtype=torch.bool), rng)
        return Grammar(levels, rules, _dirichlet(there, rng), heads)

    @staticmethod
    def rebuilt(arrays: Mapping[str, Tensor]) -> "Grammar":
        """The grammar with these `arrays`."""
        return Grammar(**{field.name: arrays[field.name] for field in fields(Grammar)})

    def arrays(self) -> dict[str, Tensor]:
        """All that the grammar consists of, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def facts(self) -> dict[str, Any]:
        """What people want to know of the grammar, as JSON can hold it."""
        return {
            "terminals": self.terminals,
            "nonterminals": len(self.levels),
            "levels": int(self.levels.max()),
            "mean length of all sentences": float(self.mean_lengths().mean()),
            "rules": self._described(),
        }

    def to(self, device: torch.device) -> "Grammar":
        """The grammar on a device."""
        return Grammar(**{name: values.to(device) for name, values in self.arrays().items()})

    @property
    def terminals(self) -> int:
        """The number T of terminals."""
        return self.head_probabilities.shape[1]

    @cached_property
    def sizes(self) -> Tensor:
        """Symbols of each rule, [N, R]."""
        return (self.rules != NONE).sum(-1)

    @cached_property
    def _rule_table(self) -> Tensor:
        return _table(self.rule_probabilities)

    @cached_property
    def _head_table(self) -> Tensor:
        return _table(self.head_probabilities)

    def mean_lengths(self) -> Tensor:
        """The mean number of terminals that each non-terminal becomes, [N] float64."""
        lengths = torch.zeros(len(self.levels), dtype=torch.float64, device=self.levels.device)
        for _ in range(int(self.levels.max())):  # each round is right for one level more, from the highest on
            known = torch.cat([lengths.new_ones(self.terminals), lengths, lengths.new_zeros(1)])  # the last is NONE's
            lengths = 1 + (self.rule_probabilities * known[self.rules].sum(-1)).sum(-1)
        return lengths

    def trees(self, count: int, longest: int, head: str, rng: torch.Generator) -> Trees:
        """Of `count` random sentences, on the device of the generator, those of SHORTEST to `longest` terminals.

        All non-terminals are equally likely to begin; `head` is "left" or "right", where heads stand.
        """
        levels, lengths = self._expanded(count, longest, rng)
        parts = [torch.cat(column) for column in zip(*levels, strict=True)]
        parent, order = parts[2:4]
        position = _positions(parent, order, [len(level[0]) for level in levels], head == "left")
        fits = (lengths >= SHORTEST) & (lengths <= longest)
        kept = fits[parts[1]]
        symbol, document, parent, order, depth, nonterminal, rule = (values[kept] for values in parts)
        node, sentence = kept.cumsum(0) - 1, fits.cumsum(0) - 1
        parent = node[parent.clamp(min=0)].where(parent >= 0, NONE)
        return Trees(symbol, sentence[document], position[kept], parent, order, depth, nonterminal, rule, lengths[fits])

    def _expanded(self, count: int, longest: int, rng: torch.Generator) -> tuple[list[list[Tensor]], Tensor]:
        """All nodes of `count` sentences, those of one depth after another, and the lengths of the sentences [count].

        Of each depth: symbol, document, parent, order, depth, non-terminal and rule. Sentences that become too long are
        not expanded further; their lengths are above `longest`.
        """
        lengths = torch.ones(count, dtype=torch.int64, device=rng.device)
        document = torch.arange(count, device=rng.device)
        symbol = self.terminals + torch.randint(len(self.levels), (count,), generator=rng, device=rng.device)
        parent, order = torch.full_like(document, NONE), torch.zeros_like(document)
        levels, first = list[list[Tensor]](), 0
        while len(symbol):
            node = (symbol >= self.terminals).nonzero().squeeze(1)
            left = symbol[node] - self.terminals
            chosen, heads = _chosen(self._rule_table, left, rng), _chosen(self._head_table, left, rng)
            nonterminal, rule = (torch.full_like(symbol, NONE).index_copy(0, node, new) for new in (left, chosen))
            depth = torch.full_like(symbol, len(levels))
            levels.append([symbol.index_copy(0, node, heads), document, parent, order, depth, nonterminal, rule])
            lengths.index_add_(0, document[node], self.sizes[left, chosen])
            going = lengths[document[node]] <= longest
            node, right = node[going], self.rules[left[going], chosen[going]]
            owner, order = spread(self.sizes[left[going], chosen[going]])
            first, parent, document = first + len(symbol), first + node[owner], document[node[owner]]
            symbol = right[owner, order]
        return levels, lengths

    def _described(self) -> list[str]:
        """The rules in words, such as "N0 -> 3 N7 (0.25)"."""
        names = [*map(str, range(self.terminals)), *(f"N{n}" for n in range(len(self.levels))), ""]
        rules, shares = self.rules.flatten(0, 1).tolist(), self.rule_probabilities.flatten().tolist()
        most, lines = self.rules.shape[1], []
        for place, (right, share) in enumerate(zip(rules, shares, strict=True)):
            if right[0] != NONE:
                words = " ".join(names[symbol] for symbol in right if symbol != NONE)
                lines.append(f"N{place // most} -> {words} ({share:.3f})")
        return lines


def spread(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of different sizes [K] one behind the other: of each entry its row and its place in the row."""
    owner = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    return owner, torch.arange(len(owner), device=sizes.device) - (sizes.cumsum(0) - sizes)[owner]


def _positions(parent: Tensor, order: Tensor, counts: list[int], left: bool) -> Tensor:
    """Where nodes stand in their sentences, [M], from parents and orders [M]; `counts`: the nodes of each depth."""
    ends = torch.tensor(counts).cumsum(0).tolist()
    depths = [slice(end - count, end) for count, end in zip(counts, ends, strict=True)]
    size = torch.ones_like(parent)  # terminals of the phrase
    for depth in reversed(depths[1:]):
        size.index_add_(0, parent[depth], size[depth].clone())
    start = torch.zeros_like(parent)
    for depth in depths[1:]:
        before = size[depth].cumsum(0) - size[depth]
        eldest = torch.arange(len(before), device=before.device) - order[depth]
        start[depth] = start[parent[depth]] + left + before - before[eldest]
    return start if left else start + size - 1


def _dirichlet(there: Tensor, rng: torch.Generator) -> Tensor:
    """Rows of probabilities, uniform among all such rows; 0 where nothing is `there`."""
    values = torch.empty(there.shape, dtype=torch.float64).exponential_(generator=rng) * there
    return values / values.sum(1, keepdim=True)


def _table(probabilities: Tensor) -> Tensor:
    """The cumulative probabilities of all rows one behind the other; row r runs from r to r + 1."""
    sums = probabilities.cumsum(1)
    sums /= sums[:, -1:].clone()  # behind the last possible entry it is exactly 1
    return (sums + torch.arange(len(sums), device=sums.device).unsqueeze(1)).contiguous()


def _chosen(table: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
    """A random entry of each row [K] of a table of cumulative probabilities."""
    # A float32 number plus a row is exact in float64, so it stays within its row.
    luck = torch.rand(len(rows), generator=rng, device=rng.device)
    return torch.searchsorted(table.flatten(), rows + luck.double(), right=True) - rows * table.shape[1]
