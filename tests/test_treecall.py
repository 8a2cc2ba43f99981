"""Associative treecall: questions, answers and what documents are like, against plain Python on the same trees."""

from collections import Counter

import pytest
import torch

from datasets import build_stream
from datasets.synthetic.associative_recall import AssociativeRecall
from datasets.synthetic.grammar import NONE, Trees
from datasets.synthetic.language import FIRST_SYMBOL
from records.invocation import configure
from tests.recalling import CONFIGS, SMALL
from tests.treecalling import answers, fits, questions, read, sentences, treecall
from utils.errors import UserError
from utils.seeding import generator

ALL = ("parent", "child", "sibling")
ASKED = [
    {}, {"head": "left"}, {"first": "query"}, {"relations": ("sibling",)}, {"relations": ("child",)},
    {"relations": ALL}, {"relations": ALL, "first": "query", "head": "left"}, {"relations": ALL, "withheld": 0.5},
    {"relations": ALL, "unambiguous": False, "withheld": 0.3},
    {"relations": ("parent", "sibling"), "unambiguous": False, "first": "query"},
]  # fmt: skip


@pytest.mark.parametrize("changes", ASKED)
@pytest.mark.parametrize("withheld", [False, True])
def test_questions_and_the_chances_of_their_answers(changes, withheld):
    """Every sentence with a question is in a document, which asks one of them; answers are those of all like it."""
    language = treecall(terminals=8, **changes)
    if withheld and not language.settings.withheld:
        return
    trees = language.trees(300, generator(5))
    documents = language.ask(trees, generator(6), withheld)
    row, several = 0, 0
    for sentence in sentences(trees, language.settings.head):
        chances = questions(sentence, language, withheld)
        if not chances:
            continue
        words, asked = read(language, documents, row)
        assert words == [node.symbol for node in sentence]
        assert asked in chances
        known = {symbol - FIRST_SYMBOL: chance for symbol, chance in zip(
            documents.answers[row].tolist(), documents.probabilities[row].tolist(), strict=True) if chance}  # fmt: skip
        assert known == pytest.approx(answers(sentence, chances, asked))
        several += len(known) > 1
        facts = {name: float(values[row]) for name, values in documents.known.items()}
        heads = [node for node in sentence if node.head]
        assert facts["pairs to ask for"] == len(chances)
        assert facts["possible queries"] == len({query for query, _, _ in chances})
        assert facts["possible targets"] == len({target for _, target, _ in chances})
        assert facts["branching factor"] == pytest.approx(sum(len(node.children) for node in heads) / len(heads))
        row += 1
    assert row == len(documents.tokens) > 50
    assert (several > 0) != language.settings.unambiguous


@pytest.mark.parametrize("changes", ASKED)
def test_questions_are_as_frequent_as_their_chances(changes):
    """One sentence, many times."""
    language, often = treecall(terminals=8, **changes), 4000
    trees = language.trees(30, generator(0))
    numbers = [len(questions(sentence, language, False)) for sentence in sentences(trees, language.settings.head)]
    one = only(trees, numbers.index(max(numbers)))
    (sentence,) = sentences(one, language.settings.head)
    total = len(one.symbol)
    copies = torch.arange(often).repeat_interleave(total)
    many = Trees(*(values.repeat(often) for values in one))
    parent = torch.where(many.parent == NONE, NONE, many.parent + copies * total)
    documents = language.ask(many._replace(document=copies, parent=parent), generator(0), False)
    chances = questions(sentence, language, False)
    assert len(chances) >= 3
    assert fits(Counter(read(language, documents, row)[1] for row in range(often)), chances)


def only(trees, document):
    """One of the sentences."""
    chosen = trees.document == document
    number = chosen.cumsum(0) - 1
    parts = Trees(*(values[chosen] for values in trees[:-1]), trees.lengths[document : document + 1])
    parent = torch.where(parts.parent == NONE, NONE, number[parts.parent.clamp(min=0)])
    return parts._replace(document=torch.zeros_like(parts.document), parent=parent)


@pytest.mark.parametrize("head", ["left", "right"])
def test_an_unambiguous_query_is_the_right_most_of_its_kind_and_never_its_own_sibling(head):
    language = treecall(head=head, relations=ALL)
    documents = language.draw(300, generator(0), False)
    for row in range(300):
        words, (query, target, relation) = read(language, documents, row)
        assert words[query] not in words[query + 1 :]
        if relation == "sibling":
            assert target > query
            assert words[target] not in words[target + 1 :]
    assert set(documents.probabilities.flatten().tolist()) == {1.0}


@pytest.mark.parametrize("relations", [("parent",), ALL])
def test_documents_are_the_same_for_the_same_seed(relations):
    language, again = treecall(relations=relations), treecall(relations=relations)
    first, second, other = (kind.draw(50, generator(seed), False) for kind, seed in (
        (language, 0), (again, 0), (language, 1)))  # fmt: skip
    assert torch.equal(first.tokens, second.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert first.tokens.shape == (50, language.longest)


def test_sentences_are_neither_short_nor_long_and_have_a_question():
    language = treecall(longest=6, relations=("sibling",))
    documents = language.draw(500, generator(0), False)
    assert set((documents.positions["divider"] - 1).tolist()) == {3, 4, 5, 6}
    assert len(documents.tokens) == 500
    assert int(documents.known["pairs to ask for"].min()) >= 1


def test_test_documents_ask_for_withheld_pairs_and_no_others_do():
    changes = {f"data.{key}": value for key, value in {**SMALL, "test_examples": 1000, "dev_examples": 1000}.items()}
    config = configure(data_config=str(CONFIGS / "treecall_withheld.yaml"), seed=0, set=changes).config
    (task,) = build_stream(config.data, 0, torch.device("cpu")).tasks

    def pairs(examples):
        store = examples.store[examples.rows]
        return set(zip(examples.targets[:, 0].tolist(), store.gather(1, store[:, -1:])[:, 0].tolist(), strict=True))

    fresh = task.train.draw(2000, generator(0))
    test, others = pairs(task.test), pairs(fresh) | pairs(task.splits["dev"])
    assert len(test) > 40
    assert not test & others
    language = config.data.language(0)
    matrix = language.arrays()["withheld"]
    assert float(matrix.float().mean()) == pytest.approx(0.2, abs=0.06)
    assert all(matrix[target - FIRST_SYMBOL, query - FIRST_SYMBOL] for target, query in test)


@pytest.mark.parametrize("terminals", [4, 20])
def test_replacements_are_all_terminals_that_are_missing_or_all_others(terminals):
    language = treecall(terminals=terminals)
    drawn = language.draw(40, generator(0), False)
    seen_full = 0
    for row in range(0, 40, 4):
        documents = drawn.kept(torch.full((2000,), row))
        words, asked = read(language, documents, 0)
        found = language.replacements(documents, generator(1))
        for item, place in (("original_query", asked[0]), ("target", asked[1])):
            missing = set(range(terminals)) - set(words)
            seen_full += not missing
            choices = missing or set(range(terminals)) - {words[place]}
            assert fits(Counter((found[item] - FIRST_SYMBOL).tolist()), dict.fromkeys(choices, 1 / len(choices)))
    assert seen_full or terminals == 20


def test_many_terminals():
    language = treecall(terminals=8192, terminal_factor=20.0, withheld=0.5)
    for withheld in (False, True):
        documents = language.draw(200, generator(0), withheld)
        found = language.replacements(documents, generator(1))
        for row in range(200):
            words, (query, target, _) = read(language, documents, row)
            assert bool(language.withheld[words[target], words[query]]) == withheld
            for item in ("original_query", "target"):
                assert 0 <= int(found[item][row]) - FIRST_SYMBOL < 8192
                assert int(found[item][row]) - FIRST_SYMBOL not in words
    assert int(documents.tokens.max()) > 7000


# Statistics and bad input.


@pytest.mark.parametrize("language", [treecall(), AssociativeRecall(AssociativeRecall.Settings(fewest_pairs=3))])
def test_statistics(language):
    documents = language.draw(300, generator(0), False)
    found, rows = language.statistics(documents), []
    for tokens, query, target, end in zip(
        documents.tokens.tolist(),
        *(documents.positions[item].tolist() for item in ("original_query", "target", "divider")),
        strict=True,
    ):
        words = tokens[1:end]
        rows.append((len(words), abs(query - target), abs(query - target) == 1, 1 - len(set(words)) / len(words)))
    lengths, away, near, repeated = zip(*rows, strict=True)
    assert found["length"] == pytest.approx(sum(lengths) / 300)
    assert (found["shortest length"], found["longest length"]) == (min(lengths), max(lengths))
    assert found["distance of query and target"] == pytest.approx(sum(away) / 300)
    assert found["share of neighbours"] == pytest.approx(sum(near) / 300)
    assert found["share of repeated symbols"] == pytest.approx(sum(repeated) / 300)
    if isinstance(language, AssociativeRecall):
        assert found["pairs"] == pytest.approx(sum(lengths) / 600)
    else:
        assert found["depth"] == pytest.approx(2.9, abs=0.3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transparent": True}, "terminals is 20, nonterminals 40"),
        ({"children": 1, "relations": ("sibling",)}, "children is 1"),
        ({"terminals": 2**14, "withheld": 0.1}, "at most 8192"),
    ],
)
def test_settings_that_do_not_go_together(changes, words):
    with pytest.raises(UserError, match=words):
        treecall(**changes)


def test_a_grammar_without_sentences_that_fit():
    """A symbol and its head are two terminals."""
    with pytest.raises(UserError, match="too few sentences of 3 to 64 terminals"):
        treecall(nonterminals=1, children=1).draw(10, generator(0), False)


@pytest.mark.parametrize(("given", "words"), [("[]", "list of relations"), ("[uncle]", "uncle"), ("3", "list of")])
def test_relations_that_there_are_not(tmp_path, given, words):
    path = tmp_path / "d.yaml"
    path.write_text(f"dataset: languages\ntasks: [{{language: treecall, relations: {given}}}]\n")
    with pytest.raises(UserError, match=words):
        configure(data_config=str(path))
