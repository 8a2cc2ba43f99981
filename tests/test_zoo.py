"""The zoo's own arithmetic: sampling weights, draws, replay memory, averages."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.members import PredictionCache
from methods import build_method
from methods.base import Context
from methods.memory.audit import Budget
from methods.memory.replay import balanced_subset
from methods.selection import boosting_weights
from methods.zoo import draw_tasks
from tests.toys import CPU, filled, run_toy, toy_config, toy_stream
from training.monitor import Monitor
from training.prediction import predict_examples
from utils.seeding import generator

losses = st.lists(st.floats(0, 50, allow_subnormal=False), min_size=1, max_size=8).map(
    lambda x: torch.tensor(x, dtype=torch.float64)
)


def test_weights_by_hand():
    # mean 0.4: (0.2 - 0.4) / 0.4 = -0.5, (0.6 - 0.4) / 0.4 = 0.5
    expected = torch.tensor([math.exp(-0.5), math.exp(0.5)], dtype=torch.float64)
    torch.testing.assert_close(boosting_weights(torch.tensor([0.2, 0.6])), expected / expected.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", [0.0, 1e-300, 0.7, 100.0])
def test_equal_losses_give_equal_weights(loss):
    weights = boosting_weights(torch.full((4,), loss, dtype=torch.float64))
    torch.testing.assert_close(weights, torch.full((4,), 0.25, dtype=torch.float64))


def test_weights_are_clipped():
    weights = boosting_weights(torch.tensor([0.0] * 20 + [1.0]))
    # (1 - 1/21) / (1/21) = 20, exp(20) is clipped to 1000; exp(-1) is not clipped
    assert (weights[-1] / weights[0]).item() == pytest.approx(1000 / math.exp(-1))


@given(losses)
def test_weights_are_probabilities_ordered_like_the_losses(values):
    weights = boosting_weights(values)
    assert weights.sum().item() == pytest.approx(1)
    assert bool((weights[values.argsort()].diff() >= 0).all())


@given(losses, st.floats(0.01, 100))
def test_weights_do_not_depend_on_the_unit_of_the_loss(values, scale):
    torch.testing.assert_close(boosting_weights(values), boosting_weights(values * scale), rtol=1e-6, atol=1e-12)


def test_draws_follow_the_weights_without_replacement():
    weights = {3: 0.5, 4: 0.3, 9: 0.2}
    rng = generator(0, "draws")
    pairs = [tuple(draw_tasks(weights, 2, rng)) for _ in range(8000)]
    assert all(len(set(pair)) == 2 for pair in pairs)
    # one after the other: P(3 then 4) = 0.5 * 0.3 / (1 - 0.5)
    for (a, b), expected in {(3, 4): 0.3, (3, 9): 0.2, (9, 3): 0.2 * 0.5 / 0.8}.items():
        assert pairs.count((a, b)) / len(pairs) == pytest.approx(expected, abs=0.02)


def test_no_draw_from_nothing():
    assert draw_tasks({}, 0, generator(0, "x")) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_the_kept_share_is_balanced(targets, fraction):
    classes = torch.tensor(targets)
    kept = balanced_subset(classes, fraction, generator(0, "k"))
    assert kept.tolist() == sorted(set(kept.tolist()))
    for value in set(targets):
        assert (classes[kept] == value).sum() == max(1, math.floor(fraction * targets.count(value) + 1e-9))


def test_the_kept_share_is_random_not_the_first():
    classes = torch.zeros(1000, dtype=torch.long)
    kept = [balanced_subset(classes, 0.1, generator(seed, "k")) for seed in (0, 1)]
    assert not torch.equal(kept[0], kept[1])
    assert kept[0].float().mean().item() == pytest.approx(500, abs=100)


@pytest.mark.parametrize(("fraction", "members", "repeats"), [(0.1, 5, 2), (0.5, 5, 1), (0.5, 2, 2)])
def test_kept_examples_are_repeated_to_weigh_as_much_as_the_new_task(fraction, members, repeats):
    task = toy_stream(1, count=200).tasks[0]
    memory = filled(Budget(fraction=fraction), [task])
    epoch = memory.source(task.id, members).epoch(generator(0, "e"))
    assert len(epoch) == repeats * memory.size()[0]
    kept = set(memory.examples(task.id).rows.tolist())
    assert set(epoch.rows.tolist()) == kept
    assert len(kept) <= max(3, fraction * 200)


@pytest.mark.parametrize("fraction", [0.001, 1e-9, 1e-300])
def test_a_share_that_rounds_up_to_one_of_each_class_is_repeated_as_what_was_kept(fraction):
    """Of 15 examples of three classes one of each is kept, a fifth: five passes are as many as the new task has."""
    stream = toy_stream(2, count=15)
    memory = filled(Budget(fraction=fraction), stream.tasks[:1])
    assert memory.size()[0] == 3
    assert len(memory.source(1, 2).epoch(generator(0, "e"))) == 15
    method, (_, second), _ = run_toy(toy_config(replay_frac=fraction, hp={"epochs": 1}), stream)
    assert second.stats.images == 15 + 15
    assert method.new_members[0].weights == pytest.approx([3 / 15, 1])  # tasks 1 and 2 in the mean over members


def test_the_running_average_equals_the_mean_over_members():
    cache = PredictionCache()
    members = [torch.rand(7, 3) for _ in range(5)]
    weights = [10.0, 1.0, 1.0, 1.0, 1.0]
    for member, weight in zip(members, weights, strict=True):
        cache.add(2, "test", member, weight)
    expected = sum(m * w for m, w in zip(members, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(cache.average(2, "test"), expected)
    torch.testing.assert_close(cache.average(2, "test").argmax(1), expected.argmax(1))


def test_each_member_has_the_new_task_and_the_right_number_of_past_ones():
    _, history, _ = run_toy(toy_config(tasks_per_round=3), toy_stream(5))
    for episode, learned in enumerate(history, 1):
        assert episode in learned.tasks
        assert len(learned.tasks) == len(set(learned.tasks)) == min(3, episode)
        assert set(learned.weights) == set(range(1, episode))
        assert sum(learned.weights.values()) == pytest.approx(1 if episode > 1 else 0)


def test_uniform_selection_has_equal_weights():
    _, history, _ = run_toy(toy_config(tasks_per_round=2, selection="uniform"), toy_stream(4))
    assert history[-1].weights == dict.fromkeys((1, 2, 3), 1 / 3)


def test_boosting_weights_are_those_of_the_fit_on_the_kept_examples():
    config, stream = toy_config(tasks_per_round=2), toy_stream(3)
    method, history, _ = run_toy(config, stream)
    # Recompute the loss of the last draw from the saved probabilities of the first two members.
    again, _, _ = run_toy(config, toy_stream(2))
    losses = torch.tensor([again.train_scores[task]["loss"].value for task in (1, 2)])
    assert list(history[-1].weights.values()) == pytest.approx(boosting_weights(losses).tolist())
    assert method.train_scores[3]["loss"].n == len(stream.tasks[2].train_eval)


def test_multitask_rounds_draw_from_all_tasks_and_unseen_ones_count_as_guessed():
    stream = toy_stream(4)
    method, history, predictions = run_toy(toy_config(continual=False, tasks_per_round=2, rounds=3), stream)
    guesses = torch.tensor([math.log(task.num_outputs) for task in stream.tasks])
    assert list(history[0].weights.values()) == pytest.approx(boosting_weights(guesses).tolist())
    assert all(len(learned.tasks) == 2 for learned in history)
    unseen = set(range(1, 5)) - set(history[0].tasks)
    for task in unseen:
        width = stream.tasks[task - 1].num_outputs
        assert torch.equal(predictions[0][task], torch.full((40, width), 1 / width))
    assert method.storage().members_per_prediction == pytest.approx(6 / 4)


def test_warm_start_trains_on_everything_first():
    _, history, _ = run_toy(toy_config(continual=False, warm_start=True, tasks_per_round=2, rounds=2), toy_stream(4))
    assert sorted(history[0].tasks) == [1, 2, 3, 4]
    assert len(history[1].tasks) == 2


def test_the_member_that_saw_all_of_a_task_weighs_more():
    """Of 40 examples of three classes 9 are kept: 3 of each, a quarter rounded down."""
    stream = toy_stream(2, count=40)
    method, _, _ = run_toy(toy_config(replay_frac=0.25), stream)
    both = method.new_members[0].predictions[1, "test"]
    first, _, _ = run_toy(toy_config(replay_frac=0.25), toy_stream(1, count=40))
    alone = first.new_members[0].predictions[1, "test"]
    torch.testing.assert_close(method.predict(stream.tasks[0]), (40 * alone + 9 * both) / 49)


@pytest.mark.parametrize("name", ["zoo", "isolated", "cumulative", "er", "packnet"])
def test_predicting_changes_nothing(name):
    """Asked never or often, a method learns and answers the same."""
    stream, config = toy_stream(3), toy_config(method=name)
    silent, asked = (build_method(Context(config, stream.spec, CPU)) for _ in range(2))
    for episode in stream.continual():
        silent.learn(episode, Monitor())
        asked.learn(episode, Monitor())
        for task in stream.tasks[: episode.number] * 2:
            asked.predict(task)
    for task in stream.tasks:
        assert torch.equal(silent.predict(task), asked.predict(task))
    assert str(silent.state_dict()) == str(asked.state_dict())


@pytest.mark.parametrize("limit", [{"memory": 20}, {"memory": 3}, {"memory_per_class": 3}, {"replay_frac": 0.25}])
def test_the_fit_on_a_memory_is_that_of_all_members_on_what_is_still_kept(limit):
    """Examples that make room leave the running means; the rest is as if it had been measured from the start."""
    config, stream = toy_config(tasks_per_round=3, **limit), toy_stream(5)
    method, members = build_method(Context(config, stream.spec, CPU)), []
    for episode in stream.continual():
        shares = {task: method.memory.share(task) for task in method.memory.tasks}
        method.learn(episode, Monitor())
        (member,) = method.new_members
        members.append((member, shares | {episode.number: 1.0}))
        assert set(method.train_scores) == set(method.memory.tasks)
        for task, scores in method.train_scores.items():
            kept = method.memory.examples(task)
            seen = [(made.net, weights[task]) for made, weights in members if task in made.tasks]
            total = sum(predict_examples(net, task, kept, stream.spec, CPU) * weight for net, weight in seen)
            expected = stream.spec.objective.evaluate(total / sum(weight for _, weight in seen), kept.targets)
            assert {scored.n for scored in scores.values()} == {len(kept)}
            for name in ("loss", "accuracy"):
                assert scores[name].value == pytest.approx(expected[name].value, rel=1e-5)
