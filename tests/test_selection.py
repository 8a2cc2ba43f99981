"""Which past tasks a new member is trained on: each selector against its definition, written a second time."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from datasets.config import DataConfig
from datasets.images.digits import split_digits
from methods import build_method
from methods.base import Context
from methods.selection import (
    SELECTORS,
    Fit,
    above_floor,
    boosting_weights,
    gain,
    largest_probabilities,
    progress,
    relative_entropy,
)
from records.monitor import EpisodeFacts
from records.summary import selection_entropy
from studies.differences import differences, differences_table
from studies.grid import load_grid
from studies.statistics import holm
from studies.tables import LEDGER, METRICS, ComparisonTable
from tests.toys import CPU, run_toy, toy_config, toy_stream
from training.monitor import Monitor
from training.prediction import predict_examples
from utils.errors import UserError
from utils.settings import read
from utils.trees import from_bytes, to_bytes


def softmax_of_relative(scores):
    """exp((s - m) / m), clipped, over their sum."""
    mean = max(np.mean(scores), 1e-300)
    weights = np.clip(np.exp((np.array(scores) - mean) / mean), 1e-4, 1e3)
    return weights / weights.sum()


# Twins: from the losses of a task with its first 0, 1, 2, ... members, of each member alone, and the members' weights.


def twin_progress(tasks):
    scores = []
    for together, _, _ in tasks:
        falls = [a - b for a, b in pairwise(together)]
        q = falls[0]
        for fall in falls[1:]:
            q = (q + fall) / 2
        scores.append(max(q, 0))
    return softmax_of_relative(scores)


def twin_gain(tasks):
    falls = [[a - b for a, b in pairwise(together[1:])] for together, _, _ in tasks]
    every = [fall for own in falls for fall in own]
    if len(every) < 2:
        return np.full(len(tasks), 1 / len(tasks))
    m, s = np.mean(every), np.std(every)
    beliefs = [stats.norm((m + sum(own)) / (1 + len(own)), s / math.sqrt(1 + len(own))) for own in falls]
    low, high = (f(b.mean() + sign * 9 * b.std() for b in beliefs) for f, sign in ((min, -1), (max, 1)))
    chances = []
    for i, belief in enumerate(beliefs):
        others = [b for j, b in enumerate(beliefs) if j != i]
        chance = integrate.quad(
            lambda x, own=belief, rest=others: own.pdf(x) * math.prod(b.cdf(x) for b in rest), low, high, limit=200
        )[0]
        chances.append(max(chance, 1e-4))
    return np.array(chances) / sum(chances)


def twin_above_floor(tasks):
    """v from two equations: loss of the mean = floor + v / n, mean loss alone = floor + v."""
    spread, means = {}, {}
    for i, (together, alone, weights) in enumerate(tasks):
        if len(alone) > 1:
            n = sum(weights) ** 2 / sum(w * w for w in weights)
            means[i] = np.average(alone, weights=weights)
            spread[i] = max(0.0, (means[i] - together[-1]) / (1 - 1 / n)), n
    share = sum(v for v, _ in spread.values()) / sum(means.values()) if means else 1.0
    return softmax_of_relative([
        spread[i][0] / spread[i][1] if i in spread else share * together[-1]
        for i, (together, _, _) in enumerate(tasks)
    ])  # fmt: skip


TWINS = {"progress": twin_progress, "gain": twin_gain, "above_floor": twin_above_floor}


def measured_again(members, memory, stream, task):
    """For a twin: the losses of all members of a task from their networks."""
    kept, objective = memory.examples(task), stream.spec.objective
    own = [(net, weights[task]) for net, weights in members if task in weights]
    predictions = [predict_examples(net, task, kept, stream.spec, CPU) for net, _ in own]
    weights = [weight for _, weight in own]
    together = [objective.uninformed_loss(stream.tasks[task - 1].num_outputs, kept.targets)]
    for n in range(1, len(own) + 1):
        mean = sum(p * w for p, w in zip(predictions[:n], weights[:n], strict=True)) / sum(weights[:n])
        together.append(objective.evaluate(mean, kept.targets)["loss"].value)
    alone = [objective.evaluate(p, kept.targets)["loss"].value for p in predictions]
    return together, alone, weights


@pytest.mark.parametrize("kept", [1.0, 0.5])
@pytest.mark.parametrize("name", TWINS)
def test_weights_are_those_of_all_members_measured_again(name, kept):
    config, stream = toy_config(tasks_per_round=3, selection=name, replay_frac=kept), toy_stream(6)
    method, members = build_method(Context(config, stream.spec, CPU)), []
    for episode in stream.continual():
        shares = {task: method.memory.share(task) for task in method.memory.tasks}
        losses = [measured_again(members, method.memory, stream, task) for task in shares]
        learned = method.learn(episode, Monitor())
        if losses:
            expected = TWINS[name](losses).tolist()
            assert list(learned.weights.values()) == pytest.approx(expected, rel=2e-3, abs=2e-6)
        (member,) = method.new_members
        members.append((member.net, {task: shares.get(task, 1.0) for task in member.tasks}))


def test_progress_by_hand():
    """Falls 0.6 and 0.2, and 0.4 and -1: moving means 0.4 and -0.3, the second counts as 0."""
    first = Fit(1.0).joined(1.0, 0.4, 0.4, 1.0).joined(0.4, 0.2, 0.3, 1.0)
    second = Fit(1.0).joined(1.0, 0.6, 0.6, 1.0).joined(0.6, 1.6, 2.0, 1.0)
    torch.testing.assert_close(progress([first, second]), boosting_weights(torch.tensor([0.4, 0.0])), rtol=1e-6, atol=0)


def test_without_members_a_task_counts_with_the_loss_of_the_uninformed_prediction():
    fits = [Fit(2.0), Fit(0.5)]
    for name in ("boosting", "progress", "above_floor"):
        expected = boosting_weights(torch.tensor([2.0, 0.5]))
        torch.testing.assert_close(SELECTORS[name](fits), expected, rtol=1e-6, atol=0)
    for name in ("uniform", "gain"):
        assert SELECTORS[name](fits).tolist() == [0.5, 0.5]


def test_a_task_that_was_never_replayed_is_expected_to_gain_as_the_others_do():
    """Of three tasks one gained 3, one 1, one was not replayed: mean 2, variance 1."""
    replayed = [Fit(9.0).joined(9, 8, 8, 1).joined(8, 8 - fall, 8, 1) for fall in (3.0, 1.0)]
    new = Fit(9.0).joined(9, 8, 8, 1)
    means, deviations = torch.tensor([2.5, 1.5, 2.0]).double(), torch.tensor([0.5, 0.5, 1.0]).double().sqrt()
    draws = means + deviations * torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0))
    expected = draws.argmax(1).bincount(minlength=3) / len(draws)
    torch.testing.assert_close(gain([*replayed, new]), expected.double(), rtol=0, atol=0.004)


def test_a_task_that_surely_gains_less_is_drawn_once_in_ten_thousand():
    """50 replays each, with a gain of 1 and of none: their beliefs are 14 standard deviations apart."""
    fits = [Fit(9.0, 51.0, 51.0, replays=50, gain=50 * fall, squared_gains=50 * fall) for fall in (1.0, 0.0)]
    assert gain(fits).tolist() == pytest.approx([1 / 1.0001, 1e-4 / 1.0001])


def test_the_noise_floor_is_found_where_errors_are_squared():
    """loss = floor + v / n for the mean, floor + v alone: the floor must not matter, v / n must."""
    fits = []
    for floor, v, n in ((5.0, 0.4, 2), (0.1, 0.9, 3), (1.0, 0.4, 4)):
        fits.append(Fit(floor + v / n, n, n, n * (floor + v), replays=n - 1))
    expected = boosting_weights(torch.tensor([0.2, 0.3, 0.1]))
    torch.testing.assert_close(above_floor(fits), expected, rtol=1e-5, atol=0)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0.05, 5), st.floats(0.05, 5))
def test_the_larger_of_two_normal_values(one, other, first, second):
    expected = stats.norm.cdf((one - other) / math.hypot(first, second))
    found = largest_probabilities(torch.tensor([one, other]).double(), torch.tensor([first, second]).double())
    assert found[0].item() == pytest.approx(expected, abs=1e-4)


numbers = st.floats(0, 20, allow_subnormal=False)
fits = st.lists(st.tuples(numbers, st.lists(st.tuples(numbers, numbers, st.floats(0.01, 1)), max_size=5)), min_size=1)


@given(st.sampled_from(sorted(SELECTORS)), fits)
def test_every_selector_gives_probabilities_and_leaves_no_task_out(name, tasks):
    made = []
    for uninformed, members in tasks:
        fit = Fit(uninformed)
        for loss, alone, weight in members:
            fit = fit.joined(fit.loss, loss, alone, weight)
        made.append(fit)
    weights = SELECTORS[name](made)
    assert weights.shape == (len(tasks),)
    assert weights.sum().item() == pytest.approx(1)
    assert weights.min() > 0


@pytest.mark.parametrize("name", SELECTORS)
def test_a_resumed_zoo_draws_the_same(name):
    """What a selector remembers goes through a file; weights and answers are the same to the bit."""
    config, stream = toy_config(tasks_per_round=2, selection=name, replay_frac=0.5, hp={"epochs": 1}), toy_stream(5)
    whole, history, _ = run_toy(config, stream)
    stopped, _, _ = run_toy(config, stream, episodes=3)
    state = {part: from_bytes(to_bytes(tree), CPU.device) for part, tree in stopped.state_dict().items()}
    again, episodes = build_method(Context(config, stream.spec, CPU)), list(stream.continual())
    again.load_state_dict(state, episodes[:3])
    for episode, learned in zip(episodes[3:], history[3:], strict=True):
        more = again.learn(episode, Monitor())
        assert (more.tasks, more.weights) == (learned.tasks, learned.weights)
    assert all(torch.equal(again.predict(task), whole.predict(task)) for task in stream.tasks)


# Entropy of the sampling weights.


@pytest.mark.parametrize(
    ("probabilities", "expected"), [([0.25] * 4, 1.0), ([1.0, 0.0], 0.0), ([0.5, 0.25, 0.25], 1.5 / math.log2(3))]
)
def test_entropy_by_hand(probabilities, expected):
    assert relative_entropy(probabilities) == pytest.approx(expected)


def episode(number, tasks, weights):
    return EpisodeFacts(number, tasks, weights, 1, 1, 1, 1, 1.0, 1.0, 1.0, 1.0, 1)


def test_the_entropy_counts_episodes_with_a_choice():
    """The second draws all past tasks; the first has none, and members of a single task draw none."""
    first, second = episode(1, [1], {}), episode(2, [1, 2], {1: 1.0})
    assert selection_entropy([episode(2, [2], {1: 1.0}), episode(3, [3], {1: 0.2, 2: 0.8})]) is None
    choice = episode(3, [2, 3], {1: 0.5, 2: 0.5}), episode(4, [1, 4], {1: 1.0, 2: 0.0, 3: 0.0})
    assert selection_entropy([first, second]) is None
    assert selection_entropy([first, second, *choice]) == pytest.approx(0.5)


# Corrected comparisons.


def test_holm_by_hand():
    """Sorted .005, .01, .03, .04 times 4, 3, 2, 1: .02, .03, .06, .04, and no less than those before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.01, math.nan, 0.02]) == pytest.approx([0.02, math.nan, 0.02], nan_ok=True)
    assert holm([]) == []


def compared_table(rows):
    """Final accuracies by label and seed."""
    rest = dict.fromkeys(column.key for column in (*METRICS, *LEDGER))
    facts = {"images_trained": 10, "selection_entropy": 0.5, "metric": "accuracy", "higher_is_better": True}
    return {
        label: {seed: {**rest, **facts, "avg_acc_final": value} for seed, value in enumerate(values)}
        for label, values in rows.items()
    }


def test_differences_are_paired_and_corrected_over_all_streams():
    rows = {"uniform": [0.5, 0.6, 0.7], "good": [0.61, 0.7, 0.8], "weak": [0.52, 0.63, 0.72]}
    easy, hard = (ComparisonTable(title, 3, compared_table(rows)) for title in ("easy", "hard"))
    for run in easy.rows["weak"].values():
        run["images_trained"] = 15
    hard = replace(hard, rows={**hard.rows, "good": dict(list(hard.rows["good"].items())[:2])})
    found = {(each.stream, each.label): each for each in differences([easy, hard], "uniform")}
    assert set(found) == {(title, label) for title in ("easy", "hard") for label in ("good", "weak")}
    good = found["easy", "good"]
    t = np.mean([0.11, 0.1, 0.1]) / (np.std([0.11, 0.1, 0.1], ddof=1) / math.sqrt(3))
    assert good.mean == pytest.approx(0.31 / 3)
    assert good.p == pytest.approx(2 * stats.t.sf(t, 2))
    assert good.corrected == pytest.approx(4 * good.p)  # the smallest of four
    assert (good.entropy, good.images, found["hard", "good"].seeds) == (0.5, 1.0, 2)
    weak = found["easy", "weak"]
    assert (weak.images, found["hard", "weak"].images) == (1.5, 1.0)
    assert weak.p == pytest.approx(2 * stats.t.sf(7, 2))  # 0.0198: the second and the third of four
    assert weak.corrected == found["hard", "weak"].corrected == pytest.approx(3 * weak.p)
    text = differences_table([easy, hard], "uniform")
    assert "**+0.1033 ± 0.0143**" in text
    assert "| +0.0233 ± 0.0143 " in text  # p is below 0.05, the corrected one is not


# Groups of classes.


def grouped(groups):
    content = {"dataset": "digits", "tasks": [{"classes": [3, 4, 5], "groups": groups}, [3, 4, 5]]}
    return split_digits(read(DataConfig, "g.yaml", content), 0, CPU.device)


def test_classes_of_a_group_have_one_output():
    alone, whole = grouped([1, 0, 1]).tasks
    assert (alone.num_outputs, alone.output_names, alone.name) == (2, ("4", "3+5"), "4/3+5")
    for split in ("train", "test"):
        written, own = whole.splits[split], alone.splits[split]
        assert torch.equal(written.rows, own.rows)
        assert torch.equal(own.targets, torch.tensor([1, 0, 1])[written.targets])


@pytest.mark.parametrize(
    ("groups", "words"),
    [([0, 1], "groups has 2 numbers"), ([0, 0, 0], "from 0 on"), ([0, 2, 0], "from 0 on"), ([0, -1, 1], "at least 0")],
)
def test_bad_groups_are_refused(groups, words):
    with pytest.raises(UserError, match=words):
        grouped(groups)


def test_a_study_knows_its_reference(tmp_path):
    (tmp_path / "g.yaml").write_text(
        "streams: [config/dataset/split_digits.yaml]\nhyperparams: [config/hyperparam/conv.yaml]\nseeds: 1\n"
        "methods: [zoo, {method: zoo, label: even, selection: uniform}]\nagainst: even\n"
    )
    assert load_grid(str(tmp_path / "g.yaml"), tmp_path).against == "even"
    (tmp_path / "g.yaml").write_text((tmp_path / "g.yaml").read_text().replace("against: even", "against: evn"))
    with pytest.raises(UserError, match=r"against: .*did you mean 'even'"):
        load_grid(str(tmp_path / "g.yaml"), tmp_path)
