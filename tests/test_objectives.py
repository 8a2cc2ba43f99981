"""Scores against closed forms, plain loops and scikit-learn."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_squared_error, root_mean_squared_error

from datasets.objectives import (
    CrossEntropy,
    RealNumbers,
    Reconstruction,
    Tokens,
    scores,
)


def calibration_error(confidence, hits):
    """The calibration error of a single group."""
    (found,) = scores(torch.zeros(len(hits), dtype=torch.int64), 1, confidence, confidence, hits)
    return found["ece"].value


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
        error = calibration_error(torch.tensor(confidence, dtype=torch.float64), torch.tensor(hits))
        assert error == pytest.approx(plain_calibration_error(confidence, hits), abs=1e-12)
        assert 0 <= error <= 1
        order.shuffle(pairs)


def test_a_bin_holds_a_fifteenth_of_the_examples():
    """Thirty examples: bins of two, each with one hit and one miss at nearly the same confidence."""
    confidence = torch.arange(30, dtype=torch.float64) / 60 + 0.5
    hits = torch.arange(30) % 2 == 0
    gaps = [abs(0.5 - (confidence[2 * b] + confidence[2 * b + 1]).item() / 2) for b in range(15)]
    assert calibration_error(confidence, hits) == pytest.approx(sum(gaps) / 15)


def test_who_is_right_as_often_as_he_says_has_no_calibration_error():
    confidence = torch.cat([torch.full((1000,), k / 10, dtype=torch.float64) for k in range(1, 11)])
    hits = torch.cat([torch.arange(1000) < 100 * k for k in range(1, 11)])
    assert calibration_error(confidence, hits) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 7])
def test_who_is_always_sure_and_always_wrong_has_calibration_error_one(classes):
    targets = torch.arange(40) % classes
    sure = torch.nn.functional.one_hot(targets, classes).float()
    assert CrossEntropy().evaluate(sure, (targets + 1) % classes)["ece"].value == 1
    assert CrossEntropy().evaluate(sure, targets)["ece"].value == 0


def test_predictions_that_are_no_numbers_have_no_scores():
    found = CrossEntropy().evaluate(torch.full((20, 3), math.nan), torch.arange(20) % 3)
    assert math.isnan(found["loss"].value)
    assert math.isnan(found["ece"].value)


def test_guessing_balanced_classes_is_calibrated():
    objective = CrossEntropy()
    found = objective.evaluate(objective.uninformed((40,), 4), torch.arange(40) % 4)
    assert found["ece"].value == pytest.approx(0, abs=1e-7)
    assert found["accuracy"].value == 0.25
    assert found["loss"].value == pytest.approx(math.log(4))


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
        losses, share, n = -right[mine].log().double(), hits[mine].double().mean().item(), int(mine.sum())
        error = losses.std().item() / n**0.5 if n > 1 else None
        ece = plain_calibration_error(confidence[mine].tolist(), hits[mine].tolist())
        expected = {"accuracy": (share, (share * (1 - share) / n) ** 0.5, n), "loss": (losses.mean().item(), error, n),
                    "ece": (ece, None, n)}  # fmt: skip
        assert {name: astuple(scored) for name, scored in found.items()} == {
            name: pytest.approx(values, abs=1e-9) for name, values in expected.items()
        }


def test_standard_errors_are_those_of_a_share_and_of_a_mean():
    p = torch.softmax(torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    targets = torch.arange(50) % 3
    found = CrossEntropy().evaluate(p, targets)
    losses, hits = -np.log(p.numpy()[np.arange(50), targets]), (p.argmax(-1) == targets).numpy()
    assert found["loss"].stderr == pytest.approx(losses.std(ddof=1) / 50**0.5)
    assert found["accuracy"].stderr == pytest.approx((hits.mean() * (1 - hits.mean()) / 50) ** 0.5)
    assert found["ece"].stderr is None
    assert CrossEntropy().evaluate(p[:1], targets[:1])["loss"].stderr is None  # one example has no spread


def some(kind, rng):
    """Outputs, targets and width of a problem of that kind."""
    if kind is CrossEntropy:
        return CrossEntropy(), torch.randn(20, 4, generator=rng), torch.randint(4, (20,), generator=rng), 4
    if kind is Tokens:
        return Tokens(), torch.randn(20, 6, 5, generator=rng), torch.randint(-1, 5, (20, 6), generator=rng), 5
    outputs, values = torch.randn(2, 20, 3, generator=rng)
    if kind is RealNumbers:
        return RealNumbers(), outputs, values + 1, 3
    return Reconstruction(), outputs, torch.stack([values + 1, torch.rand(20, 3, generator=rng)], 1), 3


@pytest.mark.parametrize("kind", [CrossEntropy, Tokens, RealNumbers, Reconstruction])
def test_an_objective_agrees_with_itself(kind):
    """The training loss is the score of the predictions; the uninformed loss that of the uninformed prediction."""
    objective, outputs, targets, width = some(kind, torch.Generator().manual_seed(1))
    found = objective.evaluate(objective.predict(outputs), targets)
    assert list(found) == list(objective.metrics)
    assert found["loss"].value == pytest.approx(objective.loss(outputs, targets).item(), rel=1e-5)
    for name, scored in found.items():
        assert 0 <= scored.value <= (1 if name in ("accuracy", "exact_match", "ece") else math.inf)
    guess = objective.uninformed(targets.shape, width, targets)
    assert guess.shape == outputs.shape
    expected = objective.evaluate(guess, targets)["loss"].value
    assert objective.uninformed_loss(width, targets) == pytest.approx(expected, rel=1e-5)
    assert (objective.energy(outputs) is None) == (kind is not CrossEntropy)


def test_the_uninformed_prediction_of_real_numbers_is_the_mean_of_the_training_targets_or_zero():
    training = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert RealNumbers().uninformed((3, 2), 2, training).tolist() == [[2.0, 4.0]] * 3
    assert RealNumbers().uninformed((3, 2), 2).tolist() == [[0.0, 0.0]] * 3
    assert RealNumbers().uninformed_loss(2, training) == pytest.approx((1 + 1 + 4 + 4) / 4)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_tokens_are_scored_as_by_a_loop_over_sequences(seed):
    rng = torch.Generator().manual_seed(seed)
    targets = torch.randint(-1, 2, (9, 4), generator=rng)
    targets[0] = torch.tensor([1, -1, 0, 1])
    p = torch.randint(1, 4, (9, 4, 2), generator=rng).double()
    p /= p.sum(-1, keepdim=True)
    hits, losses, whole = [], [], []
    for sequence, right in zip(p.tolist(), targets.tolist(), strict=True):
        mine = [(said, t) for said, t in zip(sequence, right, strict=True) if t >= 0]
        hit = [said.index(max(said)) == t for said, t in mine]
        hits += hit
        losses += [-math.log(said[t]) for said, t in mine]
        whole += [all(hit)] if mine else []
    found = Tokens().evaluate(p, targets)
    assert found["accuracy"].value == pytest.approx(np.mean(hits))
    assert found["loss"].value == pytest.approx(np.mean(losses))
    assert found["exact_match"].value == pytest.approx(np.mean(whole))
    assert (found["loss"].n, found["exact_match"].n) == (len(hits), len(whole))


def test_tokens_that_say_the_same_as_others_of_their_sequence_do_not_make_an_error_smaller():
    rng = torch.Generator().manual_seed(3)
    p, targets = torch.softmax(torch.randn(30, 1, 4, generator=rng), -1), torch.randint(4, (30, 1), generator=rng)
    one, five = Tokens().evaluate(p, targets), Tokens().evaluate(p.repeat(1, 5, 1), targets.repeat(1, 5))
    plain = CrossEntropy().evaluate(p[:, 0], targets[:, 0])
    assert one["loss"].stderr == pytest.approx(plain["loss"].stderr, rel=1e-5)
    assert five["loss"].stderr == pytest.approx(plain["loss"].stderr, rel=1e-5)


def test_squared_errors_are_those_of_scikit_learn():
    _, outputs, targets, _ = some(RealNumbers, torch.Generator().manual_seed(2))
    found = RealNumbers().evaluate(outputs, targets)
    assert found["loss"].value == pytest.approx(mean_squared_error(targets, outputs))
    assert found["rmse"].value == pytest.approx(root_mean_squared_error(targets.flatten(), outputs.flatten()))
    # A change of the loss by its standard error changes the root by that of the root, to first order.
    small = 1e-4 * found["loss"].stderr
    slope = (math.sqrt(found["loss"].value + small) - found["rmse"].value) / small
    assert found["rmse"].stderr == pytest.approx(slope * found["loss"].stderr, rel=1e-3)
    weights = torch.tensor([1.0, 0.5, 0.0])
    expected = 1.5 * mean_squared_error(targets, outputs, multioutput=weights.numpy())  # it divides by their sum
    weighted = torch.stack([targets, weights.expand_as(targets)], 1)
    assert Reconstruction().evaluate(outputs, weighted)["loss"].value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [RealNumbers, Reconstruction])
def test_losses_of_networks_that_compute_together_are_those_of_each(kind):
    objective, outputs, targets, _ = some(kind, torch.Generator().manual_seed(4))
    several = torch.stack([outputs, 2 * outputs, outputs - 1])
    found = objective.losses(several.transpose(1, 2), targets.expand(3, *targets.shape))
    assert found.tolist() == pytest.approx([objective.loss(one, targets).item() for one in several], rel=1e-6)


@pytest.mark.parametrize("objective", [CrossEntropy(), Tokens()])
def test_predictions_in_parts_are_scored_as_a_whole(objective):
    rng = torch.Generator().manual_seed(0)
    shape = (50,) if isinstance(objective, CrossEntropy) else (50, 4)
    predictions = torch.rand(*shape, 5, generator=rng).softmax(-1)
    targets = torch.randint(5, shape, generator=rng)
    if isinstance(objective, Tokens):
        targets[torch.rand(shape, generator=rng) < 0.3] = -1
    slices = {"some": torch.arange(0, 50, 3), "others": torch.arange(10)}
    found = objective.evaluate_parts(iter(predictions.split([20, 25, 5])), targets, slices)
    assert found[""] == objective.evaluate(predictions, targets)
    for name, part in slices.items():
        alone = objective.evaluate(predictions[part], targets[part])
        for metric, scored in found[name].items():
            assert scored.value == pytest.approx(alone[metric].value, rel=1e-12)
            assert scored.n == alone[metric].n
    assert found.keys() == {"", *slices}
