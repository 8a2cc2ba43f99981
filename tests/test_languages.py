"""Associative recall as a language, and streams of languages: every document, what the seed draws, wrong files."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from datasets import build_stream
from datasets.mixture import Mixture
from datasets.objectives import Tokens
from datasets.synthetic.language import ITEMS
from datasets.synthetic.languages import LANGUAGES
from datasets.task import Generator, Table
from records.invocation import configure
from tests.recalling import CONFIGS, SMALL, chi_square
from utils.errors import UserError
from utils.seeding import generator

BEGIN, END, FIRST = 1, 2, 6
CPU = torch.device("cpu")


def made(tasks=("recall",), seed=0, device=CPU, **data):
    changes = {f"data.{key}": value for key, value in {**SMALL, **data}.items()}
    path = str(CONFIGS / "associative_recall.yaml")
    config = configure(data_config=path, seed=seed, set={"data.tasks": list(tasks), **changes}).config
    return build_stream(config.data, config.seed, device)


def first(task="recall", **data):
    return made([task], **data).tasks[0]


def read(row):
    """A document by plain Python: its pairs, the query, the answer, and where content and question begin and end."""
    *tokens, asked = row
    end = tokens.index(END)
    content, (query, answer, last) = tokens[1:end], tokens[end + 1 : end + 4]
    assert (tokens[0], last) == (BEGIN, END)
    assert set(tokens[end + 4 :]) <= {0}
    assert asked == end + 1
    return list(zip(content[::2], content[1::2], strict=True)), query, answer, end


def pair_asked(row):
    """Key and value of the pair that a document asks for."""
    pairs, query, _, _ = read(row)
    return next(pair for pair in pairs if query in pair)


def places(examples):
    """By item, where it stands in each example."""
    schema = examples.schema.rows(examples.rows)
    return {item: values.tolist() for item, values in schema.positions.items()}


# Documents


@pytest.mark.parametrize("ask", ["key", "value"])
@pytest.mark.parametrize("fewest", [None, 2])
def test_every_document_and_its_schema(ask, fewest):
    task = first(symbols=20, pairs=5, ask=ask, fewest_pairs=fewest)
    keys, values = range(FIRST, FIRST + 10), range(FIRST + 10, FIRST + 20)
    sizes = set()
    for examples in (*task.splits.values(), task.train.epoch(generator(0, "fresh"))):
        where = places(examples) if examples.schema else {}
        for number, (row, target) in enumerate(zip(examples.store.tolist(), examples.targets.tolist(), strict=True)):
            pairs, query, answer, end = read(row)
            sizes.add(len(pairs))
            shown, theirs = zip(*pairs, strict=True)
            assert set(shown) <= set(keys)
            assert set(theirs) <= set(values)
            assert len(set(shown)) == len(set(theirs)) == len(pairs)
            wanted = dict(pairs) if ask == "key" else {value: key for key, value in pairs}
            assert target == [answer] == [wanted[query]]
            if not where:
                continue
            at = {item: where[item][number] for item in ITEMS}
            assert at == {"original_query": row.index(query), "target": row.index(answer), "divider": end,
                          "query": end + 1, "relation": -1, "answer": end + 2}  # fmt: skip
            others = {item: other[number].item() for item, other in examples.schema.replacements.items()}
            assert others.keys() == {"original_query", "target"}
            assert not set(others.values()) & set(row[:-1])
            half = {"key": (keys, values), "value": (values, keys)}[ask]
            assert others["original_query"] in half[0]
            assert others["target"] in half[1]
            assert examples.schema.answers[number].tolist() == [answer]
            assert examples.schema.probabilities[number].tolist() == [1]
    assert sizes == set(range(fewest or 5, 6))


def test_pairs_and_replacements_are_drawn_evenly():
    """Chi-square at one in a thousand: 9 pairs; the 20 - 9 keys and values that are left, by their rank."""
    task = first(symbols=40, pairs=9, test_examples=4000)
    rows, asked = task.test.store, Counter()
    left = {"original_query": Counter(), "target": Counter()}
    for number, row in enumerate(rows.tolist()):
        pairs, query, _, _ = read(row)
        asked[[key for key, _ in pairs].index(query)] += 1
        for item, start, shown in (("original_query", 6, 0), ("target", 26, 1)):
            others = sorted(set(range(start, start + 20)) - {pair[shown] for pair in pairs})
            left[item][others.index(task.test.schema.replacements[item][number])] += 1
    assert chi_square(asked, dict.fromkeys(range(9), 1 / 9)) < 26.1
    for seen in left.values():
        assert chi_square(seen, dict.fromkeys(range(11), 1 / 11)) < 29.6


def test_a_document_may_have_all_symbols_but_one_pair():
    """The replacements are the ones that are left out."""
    task = first(symbols=12, pairs=5)
    for number, row in enumerate(task.test.store.tolist()):
        (key,), (value,) = set(range(6, 12)) - set(row[:-1]), set(range(12, 18)) - set(row[:-1])
        others = {item: int(values[number]) for item, values in task.test.schema.replacements.items()}
        assert others == {"original_query": key, "target": value}


@pytest.mark.parametrize("ask", ["key", "value"])
def test_pairs_that_are_withheld_are_asked_for_in_test_documents_alone(ask):
    sizes = {"train_examples": 1000, "dev_examples": 500, "test_examples": 1000, "epoch_examples": 1000}
    task = first(symbols=16, pairs=3, withheld=0.3, ask=ask, **sizes)
    fresh = task.train.epoch(generator(0, "fresh"))
    parts = [task.train_eval, task.splits["dev"], fresh, task.test]
    assert [len(part) for part in parts] == [1000, 500, 1000, 1000]
    train, dev, drawn, test = ({pair_asked(row) for row in part.store.tolist()} for part in parts)
    assert not test & (train | dev | drawn)
    assert len(test | train | drawn) == 64  # so many documents ask for every pair
    assert len(test) / 64 == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 64) ** 0.5)
    shown = {pair for row in fresh.store.tolist() for pair in read(row)[0]}
    assert test & shown  # they stand in training documents


def test_what_is_withheld_depends_on_the_seed_of_the_language_not_of_the_run():
    def asked(seed, **data):
        stream = made(["recall"], seed, symbols=12, pairs=3, withheld=0.4, test_examples=800, **data)
        return {pair_asked(row) for row in stream.tasks[0].test.store.tolist()}

    other = {"language": "recall", "seed": 1}
    assert asked(0) == asked(5)
    (task,) = made([other], symbols=12, pairs=3, withheld=0.4, test_examples=800).tasks
    assert asked(0) != {pair_asked(row) for row in task.test.store.tolist()}


def test_a_random_value_of_the_document_is_right_as_often_as_is_said():
    """Long test documents have a withheld pair more often, so they are more than their share."""
    data = {"symbols": 40, "pairs": 6, "fewest_pairs": 1, "withheld": 0.2, "test_examples": 6000}
    task = first(**data)
    config = configure(data_config=str(CONFIGS / "associative_recall.yaml"),
                       set={f"data.{key}": value for key, value in data.items()}).config  # fmt: skip
    ((name, said),) = config.data.baselines(0).items()
    assert name == "a value of the document"
    right = torch.tensor([1 / len(read(row)[0]) for row in task.test.store.tolist()])
    assert right.mean() == pytest.approx(said, abs=float(5 * right.std() / len(right) ** 0.5))
    plain = first(symbols=40, pairs=6).test.store.tolist()
    assert {len(read(row)[0]) for row in plain} == {6}


# Streams


def tensors(examples):
    schema = examples.schema
    parts = (*schema.positions.values(), *schema.replacements.values(), schema.answers, schema.probabilities)
    return [examples.store, examples.targets, *parts]


def same(one, other):
    return all(map(torch.equal, tensors(one), tensors(other)))


def test_what_the_seed_of_a_run_draws():
    tasks = [made(seed=seed).tasks[0] for seed in (0, 0, 1)]
    for split, size in (("train", 64), ("dev", 96), ("test", 128)):
        parts = [task.splits[split] for task in tasks]
        assert len(parts[0]) == size
        assert same(parts[0], parts[1])
        assert same(parts[0], parts[2]) == (split != "train")
    rows = torch.cat([*(part.store for part in tasks[0].splits.values()), tasks[2].train_eval.store])
    assert len(rows.unique(dim=0)) == len(rows)  # splits have no document in common


def test_fresh_documents_have_no_schema_and_frozen_ones_keep_theirs():
    task, frozen = first(), first(fresh=False)
    assert isinstance(task.train, Generator)
    rng = generator(0, "epochs")
    one, other = task.train.epoch(rng), task.train.draw(50, rng)
    assert (len(one), len(other), one.schema, other.schema) == (256, 50, None, None)
    assert not torch.equal(one.store[:50], other.store)
    assert torch.equal(one.store, task.train.epoch(generator(0, "epochs")).store)
    assert isinstance(frozen.train, Table)
    assert same(frozen.train.examples, task.train_eval)
    # The schema is of the rows of the store, whichever of them are left and in whatever order.
    some = task.test.subset(torch.tensor([5, 2, 5])).to(CPU)
    where = places(some)
    for number, place in enumerate((5, 2, 5)):
        row = task.test.store[place].tolist()
        assert where["original_query"][number] == row.index(read(row)[1])
    assert places(replace(task.test, slices={"all": torch.arange(128)})) == places(task.test)


def test_tasks_share_their_tokens_and_are_filled_up():
    tasks = [{"language": "recall", "pairs": 2}, {"language": "recall", "pairs": 6, "symbols": 32},
             {"language": "recall", "ask": "value", "name": "mine"}]  # fmt: skip
    stream = made(tasks, symbols=64, pairs=4)
    assert (stream.spec.input_shape, stream.spec.asked, stream.spec.heads) == ((2 * 6 + 5 + 1,), 1, "identity")
    assert isinstance(stream.spec.objective, Tokens)
    assert {task.num_outputs for task in stream.tasks} == {64 + FIRST}
    assert [task.name for task in stream.tasks] == ["recall (pairs 2)", "recall (symbols 32, pairs 6)", "mine"]
    for task, pairs, keys in zip(stream.tasks, (2, 6, 4), (32, 16, 32), strict=True):
        for row in task.test.store.tolist():
            found, *_ = read(row)
            assert len(found) == pairs
            assert all(FIRST <= key < FIRST + keys <= value < FIRST + 2 * keys for key, value in found)
    for number, own in enumerate(({"pairs": 2}, {"pairs": 6, "symbols": 32}, {"ask": "value", "pairs": 4})):
        alone, task = first(**{"symbols": 64, **own}), stream.tasks[number]
        length = alone.test.store.shape[1] - 1
        assert torch.equal(task.test.store[:, :length], alone.test.store[:, :-1])  # padding alone differs
        assert not task.test.store[:, length:-1].any()
    mixed = Mixture([(task.id, task.test) for task in stream.tasks])
    everything = mixed.inputs(slice(0, len(mixed)))
    assert torch.equal(everything, torch.cat([task.test.store for task in stream.tasks]))
    assert mixed.task_ids.tolist() == [1] * 128 + [2] * 128 + [3] * 128


def test_a_forgotten_task_leaves_the_others_as_they_are():
    changes = {"data.tasks": ["recall", {"language": "recall", "pairs": 3}, {"language": "recall", "pairs": 9}]}
    changes |= {f"data.{key}": value for key, value in SMALL.items()}
    data = configure(data_config=str(CONFIGS / "associative_recall.yaml"), set=changes).config.data
    whole, less = (build_stream(one, 0, CPU) for one in (data, replace(data, forgotten=(3,))))
    assert [task.id for task in less.tasks] == [1, 2]
    assert less.spec.input_shape == whole.spec.input_shape
    assert less.fingerprints() == {number: whole.fingerprints()[number] for number in (1, 2)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_draws_by_the_same_rule_and_has_the_same_frozen_documents():
    device = torch.device("cuda")
    stream, twin = (made(device=kind, withheld=0.2, fewest_pairs=2) for kind in (device, CPU))
    assert stream.fingerprints() == twin.fingerprints()
    (task,), (other,) = stream.tasks, twin.tasks
    assert all(values.is_cuda for values in tensors(task.test))
    assert all(torch.equal(one.cpu(), two) for one, two in zip(tensors(task.test), tensors(other.test), strict=True))
    drawn = task.train.epoch(generator(0, "gpu"))
    assert drawn.store.is_cuda
    withheld = {pair_asked(row) for row in task.test.store.tolist()}
    assert not withheld & {pair_asked(row) for row in drawn.store.tolist()}


# YAML files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"tasks": ["recal"]},
         "d.yaml: task 1: unknown language 'recal'; did you mean 'recall'?"),
        ({"tasks": [["recall"]]}, "d.yaml: task 1: unknown language \"['recall']\""),
        ({"tasks": [7]}, "d.yaml: task 1: unknown language '7'"),
        ({"tasks": [{"language": ["recall"]}]}, "d.yaml: task 1: unknown language \"['recall']\""),
        ({"tasks": [{"pairs": 4}]}, "d.yaml: task 1: key 'language' is missing"),
        ({"tasks": []}, "d.yaml: tasks must be a list with at least one language, such as [recall]"),
        ({"tasks": "recall"}, "d.yaml: tasks must be a list with at least one language, such as [recall]"),
        ({"tasks": ["recall", {"language": "recall", "pars": 4}]},
         "d.yaml: task 2: unknown key 'pars'; did you mean 'pairs'?"),
        ({"pars": 4}, "d.yaml: unknown key 'pars'; did you mean 'pairs'?"),
        ({"pairs": 64}, "d.yaml: task 1: pairs is 64; 128 symbols have room for 63, as one key and one value are left "
         "out of a document"),
        ({"tasks": ["recall", {"language": "recall", "symbols": 8}]}, "d.yaml: task 2: pairs is 8; 8 symbols have"),
        ({"symbols": 33}, "d.yaml: task 1: symbols is 33; it must be even, half keys and half values"),
        ({"symbols": 2}, "d.yaml: symbols is 2; it must be a whole number at least 4 and at most 1.04858e+06"),
        ({"fewest_pairs": 9}, "d.yaml: task 1: fewest_pairs is 9; it must be at most the pairs, 8"),
        ({"pairs": 0}, "d.yaml: pairs is 0; it must be a whole number at least 1"),
        ({"pairs": True}, "d.yaml: pairs is True; it must be a whole number at least 1"),
        ({"tasks": [{"language": "recall", "ask": "both"}]},
         "d.yaml: task 1: ask: unknown ask 'both' (known: key, value)"),
        ({"withheld": 1}, "d.yaml: withheld is 1; it must be a number at least 0 and below 1"),
        ({"withheld": 0.999999, "symbols": 20},
         "d.yaml: task 1: withheld is 0.999999; that is all of the 100 pairs of symbols"),
        ({"withheld": 1e-6, "symbols": 20},
         "d.yaml: task 1: withheld is 1e-06; that is none of the 100 pairs of symbols"),
        ({"withheld": 0.1, "symbols": 2**15},
         "d.yaml: task 1: symbols is 32768; with withheld pairs there can be at most 16384"),
        ({"withheld": 0.001, "terminals": 4, "tasks": ["treecall"]},
         "d.yaml: task 1: withheld is 0.001; that is none of the 16 pairs of symbols"),
        ({"terminals": 4}, "d.yaml: terminals means nothing to recall; leave it out"),
        ({"tasks": ["treecall"], "pairs": 3}, "d.yaml: pairs means nothing to treecall; leave it out"),
        ({"seed": -1}, "d.yaml: seed is -1; it must be a whole number at least 0"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_line(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    Path("d.yaml").write_text(yaml.safe_dump({"dataset": "languages", "tasks": ["recall"], **SMALL, **content}))
    with pytest.raises(UserError) as told:
        build_stream(configure(data_config="d.yaml").config.data, 0, CPU)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_pairs_that_hardly_ever_come_together_are_one_line(monkeypatch):
    """One pair of 640,000 is withheld."""
    monkeypatch.setattr("datasets.synthetic.language._IN_VAIN", 1)
    with pytest.raises(
        UserError, match=r"yaml: task 1: there are too few documents with pairs that are withheld: \d+ of 128"
    ):
        first(symbols=1600, pairs=1, withheld=2e-6)


SHIPPED = [path for path in sorted(CONFIGS.glob("*.yaml")) if "dataset: languages" in path.read_text()]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_the_stream_that_it_says(path):
    if "treecall" in path.read_text() and "treecall" not in LANGUAGES:
        pytest.skip("needs the language treecall")
    config = configure(data_config=str(path), set={f"data.{key}": 8 for key in SMALL}).config
    stream, written = build_stream(config.data, 0, CPU), yaml.safe_load(path.read_text())
    assert len(stream.tasks) == len(written["tasks"])
    assert all(len(part) == 8 for task in stream.tasks for part in task.splits.values())
    if path.stem == "associative_recall_paper":
        assert stream.spec.input_shape == (37 + 1,)
        assert stream.tasks[0].num_outputs == 8192 + FIRST
        assert isinstance(stream.tasks[0].train, Table)
