"""Circuits against plain Python, and recall of vectors."""

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.objectives import Tokens, TokenVectors
from tests.recalling import chi_square, expected, first, made, questions
from utils.errors import UserError
from utils.seeding import generator

BITS = ("parity", "majority", "cumulative_parity", "cumulative_majority")


@pytest.mark.parametrize("length", [2, 3, 8, 15])
@pytest.mark.parametrize("task", [*BITS, "vocabulary_majority"])
def test_circuits(task, length):
    stream, made_task = first(task, length=length, vocabulary=3)
    asked = length if "cumulative" in task else 1
    assert (stream.spec.input_shape, stream.spec.asked) == ((length + asked,), asked)
    for tokens, found in questions(stream, made_task.test):
        assert found == expected(task, tokens)
        bits = tokens if "cumulative" in task else tokens[:-1]
        assert set(bits) <= ({1, 2} if task == "vocabulary_majority" else {0, 1})
        if "cumulative" not in task:
            assert tokens[-1] == (0 if task == "vocabulary_majority" else 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(3, 40))
def test_the_most_frequent_token_is_alone(length, vocabulary):
    stream, task = first("vocabulary_majority", length=length, vocabulary=vocabulary)
    for tokens, found in questions(stream, task.test):
        assert found == expected("vocabulary_majority", tokens)
        assert all(1 <= token < vocabulary for token in tokens[:-1])


def test_of_equally_frequent_tokens_the_smallest_wins():
    """Two of {1, 2, 3}: unlike ones, 6 of 9 pairs, become two of the smaller one; so 1, 2, 3 win 5, 3, 1 times of 9."""
    stream, task = first("vocabulary_majority", length=3, vocabulary=4, test_examples=9000)
    seen = Counter(answer for _, ((_, answer),) in questions(stream, task.test))
    assert chi_square(seen, {1: 5 / 9, 2: 3 / 9, 3: 1 / 9}) < 2 + 5 * math.sqrt(4)


@pytest.mark.parametrize("task", BITS)
def test_bits_are_fair(task):
    stream, made_task = first(task, length=4, vocabulary=3, test_examples=8000)
    number = 4 if "cumulative" in task else 3
    seen = Counter(tuple(tokens[:number]) for tokens, _ in questions(stream, made_task.test))
    shares = dict.fromkeys(itertools.product((0, 1), repeat=number), 2**-number)
    assert chi_square(seen, shares) < len(shares) + 5 * math.sqrt(2 * len(shares))


# Skip-trigrams


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 30), st.integers(1, 8))
def test_the_answer_to_a_skip_trigram_is_told_two_places_behind_the_mark(length, half):
    stream, task = first("skip_trigram", length=length, vocabulary=2 * half + 1)
    assert (stream.spec.input_shape, stream.spec.asked, task.num_outputs) == ((length + 1,), 1, 2 * half + 1)
    for number, (tokens, ((place, answer),)) in enumerate(questions(stream, task.test)):
        assert (tokens.count(0), tokens[place], tokens[place + 2]) == (1, 0, answer - half)
        assert all(0 <= token <= 2 * half for token in tokens)
        assert {tokens[place + 1], tokens[place + 2]} <= set(range(1, half + 1))
        assert [name for name, rows in task.test.slices.items() if number in rows] == [f"answer {answer}"]


def test_skip_trigrams_stand_anywhere_among_random_tokens():
    stream, task = first("skip_trigram", length=6, vocabulary=5, test_examples=9000)
    found = [(place, tokens[place + 1], answer, tokens[place - 1] if place else None)
             for tokens, ((place, answer),) in questions(stream, task.test)]  # fmt: skip
    triples = dict.fromkeys(itertools.product(range(4), (1, 2), (3, 4)), 1 / 16)
    assert chi_square(Counter(case[:3] for case in found), triples) < 16 + 5 * math.sqrt(32)
    before = Counter(case[3] for case in found if case[3])
    assert chi_square(before, dict.fromkeys((1, 2, 3, 4), 1 / 4)) < 4 + 5 * math.sqrt(8)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"vocabulary": 10}, "is 10; it must be odd"), ({"vocabulary": 2}, "at least 3"), ({"length": 2}, "length is 2")],
)
def test_skip_trigrams_that_there_are_not(change, why):
    with pytest.raises(UserError, match=why):
        first("skip_trigram", **{"length": 8, "vocabulary": 11, **change})


# Vectors


@pytest.mark.parametrize(("pairs", "passes", "vocabulary"), [(1, 1, 2), (4, 1, 16), (3, 3, 7)])
def test_continuous_mqar(pairs, passes, vocabulary):
    """Each pass shows every pair; then every key is asked for, with the value whose vector stood beside it."""
    stream, task = first("continuous_mqar", pairs=pairs, passes=passes, vocabulary=vocabulary, dimension=5)
    assert stream.spec.input_shape == ((passes + 1) * pairs, 10)
    assert (stream.spec.asked, task.num_outputs) == (pairs, 5)
    table = stream.spec.objective.table
    assert table.shape == (vocabulary - vocabulary // 2, 5)
    assert torch.allclose(table.norm(dim=-1), torch.ones(len(table)))
    vectors = task.test.store[task.test.rows]
    assert vectors.dtype == torch.float32
    orders = set()
    for shown, answers in zip(vectors, task.test.targets.tolist(), strict=True):
        keys, values = ([tuple(part.tolist()) for part in half] for half in shown.split(5, -1))
        context = list(zip(keys, values, strict=True))[: passes * pairs]
        every = [set(context[place : place + pairs]) for place in range(0, passes * pairs, pairs)]
        assert all(part == every[0] and len(part) == pairs for part in every)
        assert set(values[passes * pairs :]) == {(0.0,) * 5}
        beside = dict(context)
        assert [beside[key] for key in keys[passes * pairs :]] == [tuple(table[answer].tolist()) for answer in answers]
        assert len(set(keys)) == len(set(answers)) == pairs
        orders.add(tuple(keys.index(key) for key in keys))
    assert pairs == 1 or len(orders) > 5


def test_shorter_sequences_of_vectors_have_zeros_in_front():
    stream = made([{"task": "continuous_mqar", "pairs": pairs} for pairs in (2, 3)], vocabulary=8, dimension=4)
    assert stream.spec.input_shape == (6, 8)
    assert stream.spec.asked == 3
    short = stream.tasks[0].test
    vectors = short.store[short.rows]
    assert (vectors[:, :2] == 0).all()
    assert (vectors[:, 2:, :4].norm(dim=-1) - 1).abs().max() < 1e-6
    assert (short.targets[:, 0] == -1).all()
    assert (short.targets[:, 1:] >= 0).all()
    assert (stream.tasks[1].test.targets >= 0).all()


def test_the_table_of_vectors_is_that_of_every_run():
    tables = [made(["continuous_mqar"], seed).spec.objective.table for seed in (0, 1)]
    assert torch.equal(*tables)
    objective = made(["continuous_mqar"]).spec.objective
    (task,) = made(["continuous_mqar"], seed=3).tasks
    right = objective.table[task.test.targets]
    assert objective.evaluate(objective.predict(50 * right), task.test.targets)["accuracy"].value == 1


def test_vectors_are_scored_as_the_logits_that_their_dot_products_are():
    """Against Tokens on logits that are computed by hand, ignored targets among them; and the gradient is theirs."""
    rng = generator(0, "vectors")
    table, outputs = torch.randn(7, 3, generator=rng), torch.randn(5, 4, 3, generator=rng, requires_grad=True)
    targets = torch.randint(-1, 7, (5, 4), generator=rng)
    logits = torch.einsum("ntd,vd->ntv", outputs, table)
    vectors, tokens = TokenVectors(table), Tokens()
    torch.testing.assert_close(vectors.loss(outputs, targets), tokens.loss(logits, targets))
    torch.testing.assert_close(vectors.predict(outputs), logits.softmax(-1))
    assert vectors.evaluate(vectors.predict(outputs), targets) == tokens.evaluate(vectors.predict(outputs), targets)
    chances = F.one_hot(targets.clamp_min(0), 7) - logits.softmax(-1)
    by_hand = -(chances * (targets >= 0).unsqueeze(-1)) @ table / (targets >= 0).sum()
    vectors.loss(outputs, targets).backward()
    torch.testing.assert_close(outputs.grad, by_hand)
    assert vectors.uninformed((5, 4), 3).shape == (5, 4, 7)
    assert vectors.uninformed_loss(3, targets) == pytest.approx(math.log(7))
