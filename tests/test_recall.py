"""Recall: labels against plain Python, and what is drawn with which chance."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datasets.synthetic.recall import distinct, slots
from tests.recalling import checked, chi_square, first, questions
from utils.seeding import generator


@pytest.mark.parametrize("noise", [False, True])
def test_mqar(noise):
    """Keys and values are different and of their halves; without noise all else is 0."""
    stream, task = first("mqar", noise=noise, test_examples=1000)
    checked(stream, task.test, 4, 64)
    for tokens, asked in questions(stream, task.test):
        keys, values = tokens[0:8:2], tokens[1:8:2]
        assert len(set(keys)) == len(set(values)) == 4
        assert all(1 <= key < 128 for key in keys)
        assert all(128 <= value < 256 for value in values)
        blanks = [token for place, token in enumerate(tokens[8:], 8) if place not in dict(asked)]
        assert len(blanks) == 52
        assert noise or set(blanks) == {0}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 8), st.integers(1, 70), st.sampled_from([0.01, 0.5, 1.0]), st.booleans())
def test_mqar_of_any_size(pairs, more, extra, power, noise):
    length = 4 * pairs + 2 * more
    stream, task = first("mqar", pairs=pairs, length=length, vocabulary=length + extra, power=power, noise=noise)
    assert (stream.spec.input_shape, stream.spec.asked) == ((length + pairs,), pairs)
    checked(stream, task.test, pairs, length)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(0, 7), st.integers(0, 9), st.integers(0, 9))
def test_the_last_value_counts_and_an_update_always_changes_it(pairs, updates, more, extra):
    """With the smallest vocabulary there is one value for each key, and one more."""
    assume(updates <= pairs)
    length, vocabulary = 4 * pairs + 2 * updates + more, 2 * pairs + 2 + extra
    stream, task = first("forgetting", pairs=pairs, updates=updates, length=length, vocabulary=vocabulary)
    checked(stream, task.test, pairs, length, updates)
    for tokens, _ in questions(stream, task.test):
        before = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        shown = tokens[2 * pairs : 2 * (pairs + updates)]
        assert len(set(shown[::2])) == updates
        assert all(before[key] != value >= vocabulary // 2 for key, value in zip(shown[::2], shown[1::2], strict=True))
        assert len(set(before.values())) == pairs


def test_new_values_are_all_others_equally_often():
    """One key of a vocabulary with the values 4, 5, 6, 7."""
    stream, task = first("forgetting", pairs=1, updates=1, length=6, vocabulary=8, test_examples=12_000)
    seen = Counter((tokens[1], tokens[3]) for tokens, _ in questions(stream, task.test))
    assert set(seen) == set(itertools.permutations(range(4, 8), 2))
    assert chi_square(seen, dict.fromkeys(seen, 1 / 12)) < 11 + 5 * math.sqrt(22)


@pytest.mark.parametrize(("side", "length", "vocabulary"), [(1, 6, 6), (2, 24, 12), (2, 40, 256), (3, 54, 29)])
def test_compositional_keys(side, length, vocabulary):
    """All combinations are shown, in no fixed order, so that each part alone is ambiguous; parts have thirds."""
    pairs, third = side**2, vocabulary // 3
    stream, task = first("compositional", pairs=pairs, length=length, vocabulary=vocabulary)
    checked(stream, task.test, pairs, length, key=2)
    orders = set()
    for tokens, _ in questions(stream, task.test):
        a, b, values = (tokens[part : 3 * pairs : 3] for part in range(3))
        assert (len(set(a)), len(set(b)), len(set(values))) == (side, side, pairs)
        assert all(Counter(part)[token] == side for part in (a, b) for token in part)
        assert all(1 <= token < third for token in a)
        assert all(third <= token < 2 * third for token in b)
        assert all(2 * third <= token < vocabulary for token in values)
        ranks = [(sorted(set(a)).index(x), sorted(set(b)).index(y)) for x, y in zip(a, b, strict=True)]
        orders.add(tuple(ranks))
    assert len(orders) == 1 if side == 1 else len(orders) > 20


def test_noise_adds_as_many_key_tokens_as_expected():
    """(L - 3K) K / V of them in an example, .8125 of 52 tokens that are each one of 4 keys with probability 1/64."""
    stream, task = first("mqar", test_examples=5000)
    extra = sum(sum(token in tokens[0:8:2] for token in tokens[8:]) - 4 for tokens, _ in questions(stream, task.test))
    assert extra / 5000 == pytest.approx((64 - 12) * 4 / 256, abs=5 * math.sqrt(52 * 1 / 64 / 5000))


# What is drawn


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_slots_are_drawn_one_after_the_other_by_the_power_law(power):
    """All orders of two of five slots against their exact probabilities: w_i / W * w_j / (W - w_i)."""
    weights = [power * j ** (power - 1) for j in range(1, 6)]
    whole = sum(weights)
    shares = {(i, j): weights[i] / whole * weights[j] / (whole - weights[i])
              for i, j in itertools.permutations(range(5), 2)}  # fmt: skip
    seen = Counter(map(tuple, slots(40_000, 2, 5, power, generator(1, "slots", power)).tolist()))
    assert chi_square(seen, shares) < 19 + 5 * math.sqrt(38)


def test_the_first_key_gets_the_first_slot():
    """28 slots with weights j^-.99: the first key stands in slot j with probability w_j / W."""
    stream, task = first("mqar", noise=False, test_examples=20_000)
    weights = [j**-0.99 for j in range(1, 29)]
    seen = Counter(tokens.index(tokens[0], 8) // 2 - 4 for tokens, _ in questions(stream, task.test))
    assert chi_square(seen, {j: weight / sum(weights) for j, weight in enumerate(weights)}) < 27 + 5 * math.sqrt(54)


@pytest.mark.parametrize(("k", "size"), [(2, 5), (3, 4), (3, 3), (1, 6)])
def test_distinct_numbers_have_all_orders_equally_often(k, size):
    shares = dict.fromkeys(itertools.permutations(range(size), k), 1 / math.perm(size, k))
    seen = Counter(map(tuple, distinct(20_000, k, size, generator(0, "distinct", k, size)).tolist()))
    freedom = len(shares) - 1
    assert chi_square(seen, shares) < freedom + 5 * math.sqrt(2 * freedom)
