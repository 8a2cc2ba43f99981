"""What must never break: no leak from the future or from test labels, and the limits in which methods coincide."""

import dataclasses
import functools

import pytest
import torch

from datasets.task import Examples, Table, TaskStream
from methods import METHODS, build_method
from methods.base import Context
from net import build_net
from tests.toys import CPU, SHAPE, run_toy, toy_config, toy_stream
from training.monitor import Monitor
from training.prediction import predict_examples
from utils.seeding import generator, seeded

CONTINUAL = [name for name, method in METHODS.items() if "continual" in method.modes]


def limits(name):
    """How much a method keeps of a task of 24 examples: everything, a part, nothing; where it can be told."""
    fractions = [{"replay_frac": share} for share in (1.0, 0.25, 0.0)] if "replay_frac" in METHODS[name].options else []
    counts = [{"memory_per_class": 12}, {"memory_per_class": 2}, {"memory": 7}, {"memory": 1}]
    return fractions + [limit for limit in counts if METHODS[name].options.issuperset(limit)] or [{}]


SETTINGS = [
    (name, fresh, tuple(limit.items())) for name in CONTINUAL for fresh in (False, True) for limit in limits(name)
]


def allowed(learner, limit, tasks):
    """How many examples may be kept of so many tasks of 24; by itself a method keeps all or nothing."""
    limit = dict(limit) or {"replay_frac": learner.budget().fraction}
    if "replay_frac" in limit:
        return {1.0: 24, 0.25: 6, 0.0: 0}[limit["replay_frac"]] * tasks
    return limit["memory"] if "memory" in limit else 3 * limit["memory_per_class"] * tasks


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[task], other[task]) for task in one)


def config_of(method, limit):
    return toy_config(method=method, tasks_per_round=3, **dict(limit))


@functools.cache
def learned(method, fresh, limit):
    """The method that has learned three tasks, and its predictions after each; for several tests."""
    learner, _, predictions = run_toy(config_of(method, limit), toy_stream(3, fresh=fresh))
    return learner, predictions


@pytest.mark.parametrize(("method", "fresh", "limit"), SETTINGS)
def test_every_method_learns_tables_and_generators_reproducibly(method, fresh, limit):
    config = config_of(method, limit)
    first, once = learned(method, fresh, limit)
    _, _, twice = run_toy(config, toy_stream(2, fresh=fresh))
    assert all(same(a, b) for a, b in zip(once[:2], twice, strict=True))
    _, _, other_seed = run_toy(dataclasses.replace(config, seed=1), toy_stream(1, fresh=fresh))
    assert not same(once[0], other_seed[0])
    for task, probabilities in once[-1].items():
        assert probabilities.shape == (40, 3 if task % 2 else 2)
        torch.testing.assert_close(probabilities.sum(1), torch.ones(40))
    assert first.storage().examples <= allowed(first, limit, 3)


def with_other_future(stream, known):
    """Tasks after the first `known` replaced by others, and every test label of all tasks wrong."""
    other = toy_stream(len(stream.tasks), classes=4, count=50, seed=9)
    tasks = []
    for task, stranger in zip(stream.tasks, other.tasks, strict=True):
        chosen = task if task.id <= known else stranger
        wrong = dataclasses.replace(chosen.test, targets=(chosen.test.targets + 1) % chosen.num_outputs)
        tasks.append(chosen.with_splits(test=wrong))
    return TaskStream(stream.spec, tuple(tasks))


@pytest.mark.parametrize(("method", "fresh", "limit"), SETTINGS)
def test_future_tasks_and_test_labels_change_nothing(method, fresh, limit):
    _, expected = learned(method, fresh, limit)
    for known in (1, 2):
        other = with_other_future(toy_stream(3, fresh=fresh), known)
        _, _, found = run_toy(config_of(method, limit), other, episodes=known)
        assert all(same(a, b) for a, b in zip(expected[:known], found, strict=True))


@pytest.mark.parametrize(
    "limit", [{"tasks_per_round": 1}, {"replay_frac": 0.0}, {"tasks_per_round": 1, "replay_frac": 0.3}]
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_zoo_without_replay_is_isolated_to_the_bit(limit, fresh):
    _, _, zoo = run_toy(toy_config(**limit), toy_stream(4, fresh=fresh))
    _, _, isolated = run_toy(toy_config(method="isolated"), toy_stream(4, fresh=fresh))
    assert all(same(a, b) for a, b in zip(zoo, isolated, strict=True))


def kept_rows(method, task):
    """Rows of a task's training examples that a method has declared to keep."""
    return set(method.memory.examples(task).rows.tolist()) if task in method.memory.tasks else set()


@pytest.mark.parametrize(
    ("method", "limit"),
    [(name, limit) for name, fresh, limit in SETTINGS if not fresh and limit != (("replay_frac", 0.0),)],
)
def test_no_method_reads_what_it_did_not_keep(method, limit):
    """Training examples of past tasks outside the memory are destroyed once their episode is over."""
    _, expected = learned(method, False, limit)
    stream = toy_stream(3)
    learner = build_method(Context(config_of(method, limit), stream.spec, CPU))
    for episode, answers in zip(stream.continual(), expected, strict=True):
        learner.learn(episode, Monitor())
        for task in stream.tasks[: episode.number]:
            assert torch.equal(learner.predict(task), answers[task.id])
        for past in stream.tasks[: episode.number]:
            for row in set(past.train_eval.rows.tolist()) - kept_rows(learner, past.id):
                past.train_eval.store[row] = 255
                past.train_eval.targets[row] = 0


def test_the_first_task_is_learned_the_same_by_every_method_with_one_network():
    """Before there is a past, there is nothing to be done about it."""
    _, _, expected = run_toy(toy_config(method="isolated"), toy_stream(1))
    # These train otherwise from the start: another rate, pruned, with masks, or without gradients.
    for name in set(CONTINUAL) - {"stable_sgd", "packnet", "wsn", "closed_form"}:
        _, _, found = run_toy(toy_config(method=name), toy_stream(1))
        assert same(found[0], expected[0]), name


@pytest.mark.parametrize("method", CONTINUAL)
def test_what_the_untrained_network_says_is_recorded(method):
    """The network of the first episode as it is initialised, before any step."""
    stream = toy_stream(2)
    config = toy_config(method=method)
    learner, _, _ = run_toy(config, stream)
    with seeded(0, "member", 0):
        net = build_net("conv", SHAPE, config.net.settings, {1: 3})
    assert learner.untrained.keys() == {1}
    assert torch.equal(learner.untrained[1], predict_examples(net, 1, stream.tasks[0].test, stream.spec, CPU))


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
    noisy_task = dataclasses.replace(task, train=Table(examples)).with_splits(train=examples)
    stream = TaskStream(toy_stream(1).spec, (noisy_task,))
    method, _, _ = run_toy(toy_config(), stream)
    assert torch.equal(method.memory.examples(1).targets, noisy)
