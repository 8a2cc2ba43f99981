"""The calibration error against closed forms and a plain loop over bins."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.objectives import CrossEntropy, calibration_error, score, scores


def plain_calibration_error(confidence, hits, bins=15):
    """Bin by bin; equal confidences stay together."""
    ordered = sorted(confidence)
    members = [[] for _ in range(bins)]
    for c, hit in zip(confidence, hits, strict=True):
        members[ordered.index(c) * bins // len(ordered)].append((c, hit))
    error = 0.0
    for inside in filter(None, members):
        accuracy, mean = np.mean([hit for _, hit in inside]), np.mean([c for c, _ in inside])
        error += len(inside) / len(ordered) * abs(accuracy - mean)
    return error


examples = st.lists(st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.7, 0.99, 1.0]) | st.floats(0, 1), st.booleans()),
                    min_size=1, max_size=60)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(examples, st.randoms(use_true_random=False))
def test_calibration_error_is_that_of_a_plain_loop_whatever_the_order(pairs, order):
    for _ in range(2):
        confidence, hits = map(list, zip(*pairs, strict=True))
        error = calibration_error(torch.tensor(confidence, dtype=torch.float64), torch.tensor(hits)).item()
        assert error == pytest.approx(plain_calibration_error(confidence, hits), abs=1e-12)
        assert 0 <= error <= 1
        order.shuffle(pairs)


def test_a_bin_holds_a_fifteenth_of_the_examples():
    """Thirty examples: bins of two, each with one hit and one miss at nearly the same confidence."""
    confidence = torch.arange(30, dtype=torch.float64) / 60 + 0.5
    hits = torch.arange(30) % 2 == 0
    gaps = [abs(0.5 - (confidence[2 * b] + confidence[2 * b + 1]).item() / 2) for b in range(15)]
    assert calibration_error(confidence, hits).item() == pytest.approx(sum(gaps) / 15)


def test_who_is_right_as_often_as_he_says_has_no_calibration_error():
    confidence = torch.cat([torch.full((1000,), k / 10, dtype=torch.float64) for k in range(1, 11)])
    hits = torch.cat([torch.arange(1000) < 100 * k for k in range(1, 11)])
    assert calibration_error(confidence, hits).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 7])
def test_who_is_always_sure_and_always_wrong_has_calibration_error_one(classes):
    targets = torch.arange(40) % classes
    sure = torch.nn.functional.one_hot(targets, classes).float()
    assert CrossEntropy().evaluate(sure, (targets + 1) % classes).ece == 1
    assert CrossEntropy().evaluate(sure, targets).ece == 0


def test_guessing_balanced_classes_is_calibrated():
    objective = CrossEntropy()
    score = objective.evaluate(objective.guess(40, 4), torch.arange(40) % 4)
    assert score.ece == pytest.approx(0, abs=1e-7)
    assert score.accuracy == 0.25
    assert score.loss == pytest.approx(math.log(4))


@given(st.integers(0, 10**6), st.integers(1, 120))
@settings(max_examples=60, deadline=None)
def test_scores_of_groups_are_those_of_each(seed, count):
    """With many equal confidences, and groups that are empty."""
    rng = torch.Generator().manual_seed(seed)
    groups = torch.randint(5, (count,), generator=rng)
    right, confidence = torch.rand(count, generator=rng), torch.randint(1, 20, (count,), generator=rng) / 20
    hits = torch.rand(count, generator=rng) < 0.5
    for group, found in enumerate(scores(groups, 6, right, confidence, hits)):
        mine = groups == group
        if not mine.any():
            assert found is None
            continue
        expected = score(right[mine], confidence[mine], hits[mine])
        assert astuple(found) == pytest.approx(astuple(expected), abs=1e-9)
