"""Associative treecall in plain Python: sentences by walking through trees, questions, and the chances of both."""

from collections import Counter, defaultdict
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import pytest
import torch
from scipy.stats import chi2

from datasets.synthetic.grammar import NONE
from datasets.synthetic.language import BEGIN, END, FIRST_SYMBOL, RELATIONS
from datasets.synthetic.treecall import Treecall
from tests.recalling import chi_square


def treecall(**changes):
    return Treecall(Treecall.Settings(**changes))


def fits(seen, shares):
    """Whether frequencies are those of random draws with these shares; rare ones are counted together."""
    total = sum(seen.values())
    assert set(seen) <= set(shares)
    assert sum(shares.values()) == pytest.approx(1)
    pooled = {key: key if share * total >= 5 else "rare" for key, share in shares.items()}
    counts, expected = Counter(), defaultdict(float)
    for key, share in shares.items():
        counts[pooled[key]] += seen.get(key, 0)
        expected[pooled[key]] += float(share)
    return chi_square(counts, expected) < chi2.isf(1e-4, max(1, len(expected) - 1)) if len(expected) > 1 else True


class Node(NamedTuple):
    """A terminal of a sentence, and where it and its parent stand."""

    symbol: int
    place: int
    parent: int | None
    head: bool
    children: list[int]  # from left to right


def sentences(trees, head):
    """The terminals of each sentence from left to right, in an order that is found by walking through the tree."""
    family, roots = defaultdict(dict), {}
    for node, (document, parent, order) in enumerate(zip(*(part.tolist() for part in (
            trees.document, trees.parent, trees.order)), strict=True)):  # fmt: skip
        if parent == NONE:
            assert document not in roots
            roots[document] = node
        else:
            assert trees.document[parent] == document
            assert order not in family[parent]
            family[parent][order] = node

    def walk(node):
        below = family.get(node, {})
        inside = [inner for order in range(len(below)) for inner in walk(below[order])]
        return [node, *inside] if head == "left" else [*inside, node]

    found = []
    for document in range(len(trees.lengths)):
        nodes = walk(roots[document])
        places = {node: place for place, node in enumerate(nodes)}
        found.append([
            Node(int(trees.symbol[node]), place, places.get(int(trees.parent[node])),
                 int(trees.nonterminal[node]) != NONE, sorted(places[child] for child in family.get(node, {}).values()))
            for node, place in places.items()
        ])  # fmt: skip
        assert trees.position[torch.tensor(nodes)].tolist() == list(range(len(nodes)))
    assert sum(map(len, found)) == len(trees.symbol)
    return found


def questions(sentence, language, withheld):
    """All questions for a sentence, (query, target, relation), each with its chance."""
    own = language.settings

    def last(node):
        return all(other.symbol != node.symbol for other in sentence[node.place + 1 :])

    possible, matrix = [], language.withheld.tolist()
    for query, target, relation in product(sentence, sentence, own.relations):
        siblings = sentence[query.parent].children if query.parent is not None else []
        related = {"parent": query.parent == target.place, "child": target.parent == query.place,
                   "sibling": target.place in siblings and target != query}[relation]  # fmt: skip
        if own.unambiguous and relation == "child":
            related = related and target.place == query.children[-1]
        if own.unambiguous and relation == "sibling":
            related = related and target.place == siblings[-1] and last(target)
        allowed = not own.withheld or matrix[target.symbol][query.symbol] == withheld
        if related and allowed and (last(query) or not own.unambiguous):
            possible.append((query.place, target.place, relation))
    which = 1 if own.first == "target" else 0
    often = Counter(question[which] for question in possible)
    return {question: Fraction(1, len(often) * often[question[which]]) for question in possible}


def answers(sentence, chances, asked):
    """The chances of the symbols that answer a question, if only its query's symbol and its relation are known."""
    alike = defaultdict(Fraction)
    for (query, target, relation), chance in chances.items():
        if sentence[query].symbol == sentence[asked[0]].symbol and relation == asked[2]:
            alike[sentence[target].symbol] += chance
    return {symbol: float(chance / sum(alike.values())) for symbol, chance in alike.items()}


def read(language, documents, row):
    """The sentence of a document and its question, from its tokens; everything in it stands where it should."""
    tokens = documents.tokens[row].tolist()
    places = {item: int(found[row]) for item, found in documents.positions.items()}
    end, typed = places["divider"], len(language.settings.relations) > 1
    assert (tokens[0], tokens[end], places["query"], places["answer"]) == (BEGIN, END, end + 1, end + 2 + typed)
    assert places["relation"] == (end + 2 if typed else -1)
    assert tokens[end + 3 + typed] == END
    assert not any(tokens[end + 4 + typed :])
    assert tokens[places["original_query"]] == tokens[end + 1]
    assert tokens[places["target"]] == tokens[places["answer"]] == int(documents.right[row])
    relation = RELATIONS[tokens[end + 2] - 3] if typed else language.settings.relations[0]
    asked = places["original_query"] - 1, places["target"] - 1, relation
    return [token - FIRST_SYMBOL for token in tokens[1:end]], asked


def strings(grammar, head, short=3, longest=64):
    """The chances of all sentences of a small grammar, by multiplying out its rules."""
    terminals, made = grammar.terminals, {}

    def of(nonterminal):
        if nonterminal not in made:
            made[nonterminal] = defaultdict(float)
            for right, chance in zip(grammar.rules[nonterminal].tolist(),
                                     grammar.rule_probabilities[nonterminal].tolist(), strict=True):  # fmt: skip
                if chance == 0:
                    continue
                options = [{(s,): 1.0} if s < terminals else of(s - terminals) for s in right if s != NONE]
                for parts in product(*(option.items() for option in options)):
                    inside = sum((words for words, _ in parts), ())
                    share = chance * torch.tensor([p for _, p in parts], dtype=torch.float64).prod().item()
                    for top, often in enumerate(grammar.head_probabilities[nonterminal].tolist()):
                        made[nonterminal][(top, *inside) if head == "left" else (*inside, top)] += share * often
        return made[nonterminal]

    chances = defaultdict(float)
    for nonterminal in range(len(grammar.levels)):
        for words, chance in of(nonterminal).items():
            chances[words] += chance / len(grammar.levels)
    mean = sum(len(words) * chance for words, chance in chances.items())
    kept = {words: chance for words, chance in chances.items() if short <= len(words) <= longest}
    return {words: chance / sum(kept.values()) for words, chance in kept.items()}, mean
