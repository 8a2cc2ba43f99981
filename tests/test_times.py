"""At which steps checkpoints are kept and networks are evaluated."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.times import Times, times
from utils.errors import UserError

LENGTHS = st.integers(1, 5000)
POLICIES = st.sampled_from(["powers_of_two", "none"]) | st.builds(
    "{}:{}".format, st.sampled_from(["every", "log"]), st.integers(1, 6000)
)


def due(policy, step, length):
    """Whether something is done after `step` of `length` steps, asked of each step alone."""
    kind, _, number = policy.partition(":")
    if step in (0, length):
        return True
    if kind == "powers_of_two":
        return step & (step - 1) == 0
    if kind == "every":
        return step % int(number) == 0
    if kind == "log":  # the nearest step to one of N places, evenly in the logarithm
        place = round(math.log(step) / math.log(length) * int(number))
        near = (length ** (p / int(number)) for p in range(max(0, place - 2000), place + 2000) if p < int(number))
        return any(round(value) == step for value in near)
    return False


@given(POLICIES, LENGTHS)
def test_times_are_sorted_and_begin_and_end_with_the_training(policy, length):
    found = times(policy, length)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, length)


@given(POLICIES.filter(lambda policy: "log" not in policy), LENGTHS)
def test_a_step_is_due_by_its_own_number(policy, length):
    assert times(policy, length) == [step for step in range(length + 1) if due(policy, step, length)]


@given(st.integers(1, 40), st.integers(1, 300))
def test_logarithmic_times_are_those_nearest_to_even_places(count, length):
    policy = f"log:{count}"
    assert times(policy, length) == [step for step in range(length + 1) if due(policy, step, length)]


@given(st.integers(2, 30), st.integers(10**6, 10**9))
def test_logarithmic_times_are_evenly_spaced(count, length):
    found = times(f"log:{count}", length)[1:]
    factor = length ** (1 / count)
    for before, after in pairwise(found):
        assert abs(after - factor * before) <= factor / 2 + 1  # both were rounded
    assert found[0] == 1
    assert len(found) <= count + 1


def test_a_policy_as_people_know_it():
    assert times("powers_of_two", 20) == [0, 1, 2, 4, 8, 16, 20]
    assert times("powers_of_two", 16) == [0, 1, 2, 4, 8, 16]
    assert times("every:8", 20) == [0, 8, 16, 20]
    assert times("log:4", 10_000) == [0, 1, 10, 100, 1000, 10_000]
    assert times("none", 20) == [0, 20]


def test_a_power_is_understood():
    assert Times.read("--checkpoints", "every:2^4") == "every:16"
    assert Times.read("--checkpoints", "log:12") == "log:12"


@pytest.mark.parametrize(
    "wrong",
    ["", "sometimes", "every", "every:", "every:0", "every:-1", "every:1.5", "log:0", "log:2^99", "none:1", 7, None,
     "Every:1", "every:1 ", "powers_of_2", ["none"]],
)  # fmt: skip
def test_other_policies_are_refused_in_one_line(wrong):
    with pytest.raises(UserError, match=r"^--checkpoints is .*; it must be powers_of_two .*every:N.*log:N") as caught:
        Times.read("--checkpoints", wrong)
    assert "\n" not in str(caught.value)


def test_too_many_times_are_refused():
    with pytest.raises(UserError, match=re.escape("every:2 is more than 1,000,000 times in 1,073,741,824 steps")):
        times("every:2", 2**30)
    assert len(times("every:2", 2**10)) == 2**9 + 1
