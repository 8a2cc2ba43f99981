"""What must never break: no leak from the future or from test labels, and the limits in which methods coincide."""

import dataclasses

import pytest
import torch

from datasets.task import Examples, Table, TaskStream
from methods import METHODS, build_method
from methods.base import Setting
from tests.toys import CPU, run_toy, toy_config, toy_stream
from utils.monitor import Monitor
from utils.seeding import generator

SETTINGS = [(method, fresh, fraction) for method in METHODS for fresh in (False, True) for fraction in (1.0, 0.25, 0.0)]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[task], other[task]) for task in one)


@pytest.mark.parametrize(("method", "fresh", "fraction"), SETTINGS)
def test_every_method_learns_tables_and_generators_reproducibly(method, fresh, fraction):
    config = toy_config(method=method, replay_frac=fraction, tasks_per_round=2)
    first, _, once = run_toy(config, toy_stream(3, fresh=fresh))
    _, _, twice = run_toy(config, toy_stream(3, fresh=fresh))
    assert all(same(a, b) for a, b in zip(once, twice, strict=True))
    _, _, other_seed = run_toy(dataclasses.replace(config, seed=1), toy_stream(3, fresh=fresh))
    assert not same(once[-1], other_seed[-1])
    for task, probabilities in once[-1].items():
        assert probabilities.shape == (40, 3 if task % 2 else 2)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(40))
    # What is stored stays within the budget: of 24 examples a task.
    share = {1.0: 24, 0.25: 6, 0.0: 0}[fraction] if method == "zoo" else 0
    assert first.storage().examples <= 3 * share


def with_other_future(stream, known):
    """Tasks after the first `known` replaced by others, and every test label of all tasks wrong."""
    other = toy_stream(len(stream.tasks), classes=4, count=50, seed=9)
    tasks = []
    for task, stranger in zip(stream.tasks, other.tasks, strict=True):
        chosen = task if task.id <= known else stranger
        wrong = dataclasses.replace(chosen.test, targets=(chosen.test.targets + 1) % chosen.num_outputs)
        tasks.append(dataclasses.replace(chosen, test=wrong))
    return TaskStream(stream.spec, tuple(tasks))


@pytest.mark.parametrize(("method", "fresh", "fraction"), SETTINGS)
def test_future_tasks_and_test_labels_change_nothing(method, fresh, fraction):
    config = toy_config(method=method, replay_frac=fraction, tasks_per_round=2)
    stream = toy_stream(4, fresh=fresh)
    _, _, expected = run_toy(config, stream)
    for known in (1, 2, 3):
        _, _, found = run_toy(config, with_other_future(stream, known))
        assert all(same(a, b) for a, b in zip(expected[:known], found[:known], strict=True))


@pytest.mark.parametrize(
    "limit", [{"tasks_per_round": 1}, {"replay_frac": 0.0}, {"tasks_per_round": 1, "replay_frac": 0.3}]
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_zoo_without_replay_is_isolated_to_the_bit(limit, fresh):
    _, _, zoo = run_toy(toy_config(**limit), toy_stream(4, fresh=fresh))
    _, _, isolated = run_toy(toy_config(method="isolated"), toy_stream(4, fresh=fresh))
    assert all(same(a, b) for a, b in zip(zoo, isolated, strict=True))


def test_a_limited_zoo_never_reads_what_it_did_not_keep():
    """Rows of past tasks outside the replay memory are destroyed once their episode is over."""
    config = toy_config(replay_frac=0.25, tasks_per_round=3)
    _, _, expected = run_toy(config, toy_stream(3, count=32))

    stream = toy_stream(3, count=32)
    method = build_method(Setting(config, stream.spec, CPU))
    for episode, answers in zip(stream.continual(), expected, strict=True):
        method.learn(episode, Monitor())
        for task in stream.tasks[: episode.number]:
            assert torch.equal(method.predict(task), answers[task.id])
        spent = episode.new[0].train_eval
        kept = set(method.memory.examples(episode.number).rows.tolist())
        for row in set(spent.rows.tolist()) - kept:
            spent.store[row] = 255


def test_members_do_not_share_their_initialisation():
    stream = toy_stream(1)
    twins = TaskStream(stream.spec, tuple(dataclasses.replace(stream.tasks[0], id=number) for number in (1, 2)))
    _, _, predictions = run_toy(toy_config(method="isolated"), twins)
    assert not torch.equal(predictions[-1][1], predictions[-1][2])


def test_a_member_does_not_depend_on_what_ran_before():
    """Evaluating, drawing and training other members in between changes no bit of a member."""
    stream = toy_stream(3)
    _, _, expected = run_toy(toy_config(method="isolated"), stream)
    torch.rand(1000)
    last_only = TaskStream(stream.spec, stream.tasks)
    _, _, found = run_toy(toy_config(method="isolated"), last_only)
    assert same(expected[-1], found[-1])


def test_noise_in_training_labels_reaches_the_method():
    """Labels are as noisy in the replay memory as in training: the method never sees the true ones."""
    task = toy_stream(1).tasks[0]
    noisy = torch.randint(0, task.num_outputs, (len(task.train_eval),), generator=generator(0, "noise"))
    examples = Examples(task.train_eval.store, task.train_eval.rows, noisy)
    stream = TaskStream(toy_stream(1).spec, (dataclasses.replace(task, train=Table(examples), train_eval=examples),))
    method, _, _ = run_toy(toy_config(), stream)
    assert torch.equal(method.memory.examples(1).targets, noisy)
