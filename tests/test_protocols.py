"""Heads that tasks share and settings of the field's protocols, against plain loops; every method in every scenario."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets.mixture import Mixture
from datasets.scenarios import SCENARIOS, in_scenario
from datasets.task import Table
from methods import METHODS, build_method, check_method
from methods.base import Context, new_network
from methods.single import SingleNet
from tests.toys import CPU, Fresh, number_stream, run_toy, toy_config, toy_stream
from training.batches import Batch, batches
from utils.errors import UserError
from utils.seeding import generator, seeded

NAMES = (("a", "b"), ("c", "d"), ("b", "e"))  # the third task has a class of the first one


def named_stream(tasks=3, fresh=False):
    """Tasks of two classes each, some of them of the same name."""
    stream = toy_stream(tasks, count=24)
    made = []
    for task, names in zip(stream.tasks, NAMES, strict=False):
        splits = {name: replace(part, targets=part.targets % 2) for name, part in task.splits.items()}
        source = Fresh(task.id, 2, 24) if fresh else Table(splits["train"])
        made.append(replace(task, num_outputs=2, classes=names, train=source, splits=splits))
    return replace(stream, tasks=tuple(made))


def of_scenario(scenario, **options):
    config = toy_config(**options)
    return replace(config, data=replace(config.data, scenario=scenario))


# What tasks become


def test_classes_are_numbered_as_they_are_first_seen():
    stream, seen = named_stream(), []
    for task, before in zip(in_scenario(stream, "class").tasks, stream.tasks, strict=True):
        seen += [name for name in before.classes if name not in seen]
        assert task.num_outputs == len(seen)
        assert task.classes == ("a", "b", "c", "d", "e")
        for name in ("train", "test"):
            expected = [seen.index(before.classes[target]) for target in before.splits[name].targets.tolist()]
            assert task.splits[name].targets.tolist() == expected
            assert torch.equal(task.splits[name].rows, before.splits[name].rows)
        assert torch.equal(task.train.examples.targets, task.train_eval.targets)


@pytest.mark.parametrize("names", [("first", "second", "third"), ("same", "same", "other")])
def test_where_all_tasks_have_the_same_classes_each_has_its_own(names):
    stream = named_stream()
    stream = replace(stream, tasks=tuple(
        replace(task, name=name, classes=("a", "b")) for task, name in zip(stream.tasks, names, strict=True)
    ))  # fmt: skip
    tasks = in_scenario(stream, "class").tasks
    assert [task.num_outputs for task in tasks] == [2, 4, 6]
    assert len(set(tasks[0].classes)) == 6
    assert [sorted(set(task.test.targets.tolist())) for task in tasks] == [[0, 1], [2, 3], [4, 5]]


def test_the_task_told_and_a_shared_head_leave_targets_as_they_are():
    stream = named_stream()
    assert in_scenario(stream, "task") is stream
    shared = in_scenario(stream, "domain")
    assert (shared.spec.heads, shared.tasks) == ("shared", stream.tasks)


@pytest.mark.parametrize(
    ("scenario", "stream", "words"),
    [
        ("domain", toy_stream(2), r"needs tasks with as many outputs; these have \[2, 3\]"),
        ("class", named_stream(fresh=True), "needs tables of examples"),
        ("class", number_stream(frozen=True), "needs tasks of classes"),
        ("class", in_scenario(named_stream(), "domain"), "needs tasks of classes, with a head for each task otherwise"),
    ],
)
def test_tasks_that_do_not_fit_a_scenario_are_refused(scenario, stream, words):
    with pytest.raises(UserError, match=f"--scenario {scenario} {words}"):
        in_scenario(stream, scenario)


# Against a plain loop


class Twin:
    """A trunk and an nn.Linear of all classes of the stream; outputs that do not compete are masked out."""

    def __init__(self, config, stream, outputs="seen"):
        self.config, self.spec, self.outputs = config, stream.spec, outputs
        first = stream.tasks[0]
        width = len(first.classes) if outputs == "all" else first.num_outputs
        with seeded(config.seed, "member", 0):
            start = new_network(config, stream.spec, {1: width})
        self.trunk, self.known = start.trunk, width
        self.head = nn.Linear(start.weight.shape[1], len(first.classes) if stream.spec.heads == "growing" else width)
        with torch.no_grad():
            self.head.weight[:width], self.head.bias[:width] = start.weight, start.bias
        self.optimizer, self.loss, self.steps = None, math.nan, 0

    def grow(self, task):
        """New outputs begin as those of a layer of PyTorch, at numbers of the task's own random stream."""
        bound = 1 / math.sqrt(self.head.in_features)
        drawn = torch.empty(task.num_outputs, self.head.in_features)
        drawn.uniform_(-bound, bound, generator=generator(self.config.seed, "head", task.id))
        if self.spec.heads == "task" and task.id > 1:
            self.known, self.head = 0, nn.Linear(self.head.in_features, task.num_outputs)
            if self.optimizer is not None:
                self.optimizer.add_param_group({"params": list(self.head.parameters())})
        with torch.no_grad():
            self.head.weight[self.known : task.num_outputs] = drawn[self.known :]
            self.head.bias[self.known : task.num_outputs] = 0
        self.known = max(self.known, task.num_outputs)

    def learn(self, task, repeat=1):
        hp = self.config.hp
        if self.outputs != "all":
            self.grow(task)
        mask = torch.full((self.head.out_features,), -torch.inf)
        mask[task.train_eval.targets.unique() if self.outputs == "new" else slice(0, self.known)] = 0
        if self.optimizer is None or hp.reset_optimizer:
            parameters = [*self.trunk.parameters(), *self.head.parameters()]
            sgd = {"momentum": hp.momentum, "nesterov": hp.nesterov}
            kind, more = (torch.optim.Adam, {}) if hp.optimizer == "adam" else (torch.optim.SGD, sgd)
            self.optimizer = kind(parameters, hp.lr, weight_decay=hp.l2_reg, **more)
        rng = generator(self.config.seed, "member", task.id - 1, "data")
        data = Mixture([(task.id, task.train_eval)])
        self.trunk.train()
        for _ in range(hp.epochs):
            losses = []
            for batch in batches(data, self.spec, hp.batch, rng, augment=False):
                for _ in range(repeat):
                    loss = F.cross_entropy(self.head(self.trunk(batch.inputs)) + mask, batch.targets)
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
                    losses += [loss.item()] * len(batch)
            self.loss = sum(losses) / len(losses)


PLAIN = {"augment": False, "schedule": "constant", "lr": 0.05, "l2_reg": 1e-3}


def assert_same_network(learner, twin):
    net = learner.network(learner.seen)
    for (name, found), value in zip(net.trunk.named_parameters(), twin.trunk.parameters(), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=2e-4, msg=name)
    rows = net.rows(learner.seen[-1])
    torch.testing.assert_close(net.weight[rows], twin.head.weight, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(net.bias[rows], twin.head.bias, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("scenario", "outputs"), [("class", "seen"), ("class", "new"), ("class", "all"), ("domain", "seen")]
)
def test_a_head_that_tasks_share_is_that_of_a_plain_loop(scenario, outputs):
    stream = in_scenario(named_stream(), scenario)
    config = of_scenario(scenario, method="finetune", hp=PLAIN, settings={"outputs": outputs})
    twin = Twin(config, stream, outputs)
    for task in stream.tasks:
        twin.learn(task)
    learner, history, answers = run_toy(config, stream)
    assert_same_network(learner, twin)
    assert history[-1].stats.loss == pytest.approx(twin.loss, rel=1e-3)
    inputs = stream.spec.preprocess(stream.tasks[0].test.store)
    with torch.no_grad():
        expected = twin.head(twin.trunk.eval()(inputs)).softmax(1)
    torch.testing.assert_close(answers[-1][1], expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    "optimizer", [{"nesterov": False}, {"nesterov": True}, {"optimizer": "adam", "lr": 1e-3}], ids=str
)
def test_an_optimizer_that_goes_on_is_one_optimizer_for_all_tasks(optimizer, scenario):
    """Without weight decay, which would move outputs of the plain loop before their classes come."""
    stream = in_scenario(named_stream(), scenario)
    hp = {**PLAIN, "l2_reg": 0.0, "reset_optimizer": False, **optimizer}
    config = of_scenario(scenario, method="finetune", hp=hp)
    twin = Twin(config, stream)
    for task in stream.tasks:
        twin.learn(task)
    learner, _, _ = run_toy(config, stream)
    assert_same_network(learner, twin)
    anew, _, _ = run_toy(replace(config, hp=replace(config.hp, reset_optimizer=True)), stream)
    with pytest.raises(AssertionError):
        assert_same_network(anew, twin)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if issubclass(method, SingleNet)])
def test_every_method_with_one_network_can_go_on_with_its_optimizer(method):
    config = of_scenario("task", method=method, hp={"reset_optimizer": False, "epochs": 1})
    _, _, answers = run_toy(config, named_stream())
    assert all(found.isfinite().all() for found in answers[-1].values())


def test_several_steps_on_each_batch_are_taken_and_counted():
    stream = in_scenario(named_stream(), "domain")
    config = of_scenario("domain", method="finetune", hp={**PLAIN, "steps_per_batch": 3})
    twin = Twin(config, stream)
    for task in stream.tasks:
        twin.learn(task, repeat=3)
    learner, history, _ = run_toy(config, stream)
    assert_same_network(learner, twin)
    for stats in [learned.stats for learned in history]:  # two epochs of 24 images in batches of 8
        assert (stats.steps, stats.images, stats.gradients, stats.examples) == (18, 144, 144, 24)
    assert history[-1].stats.loss == pytest.approx(twin.loss, rel=1e-3)
    replaying = of_scenario("domain", method="er", hp={"steps_per_batch": 3}, settings={"replay_batch": 5})
    _, history, _ = run_toy(replaying, stream)
    assert [learned.stats.gradients for learned in history] == [144, 144 + 18 * 5, 144 + 18 * 5]


# Methods on a head that grows


@pytest.mark.parametrize("method", ["ewc", "ewc_online", "si"])
def test_springs_hold_old_outputs_and_leave_new_ones_free(method):
    stream = in_scenario(named_stream(), "class")
    config = of_scenario("class", method=method, hp={**PLAIN, "lr": 0.01}, settings={"strength": 1e12})
    first, _, _ = run_toy(config, stream, 1)
    learner, _, _ = run_toy(config, stream, 2)
    before, after = first.network([1]), learner.network([2])
    held = first.importance["weight"] > 1e-6
    assert held.any()
    torch.testing.assert_close(after.weight[:2][held], before.weight[held], rtol=1e-3, atol=1e-4)
    begun = build_method(Context(config, stream.spec, CPU))
    begun.load_state_dict(first.state_dict(), list(stream.continual())[:1])
    start = begun.network([], {2: 4}).weight[2:]
    assert (after.weight[2:] - start).abs().max() > 1e-3
    assert first.importance["weight"].shape[0] == 2
    assert learner.importance["weight"].shape[0] == 4


def grown_network(method, **settings):
    """A method after two tasks of a growing head, a network for the third one, and a batch with its outputs."""
    stream = in_scenario(named_stream(), "class")
    learner, _, _ = run_toy(of_scenario("class", method=method, settings=settings), stream, 2)
    old = learner.network([2]).eval()
    with torch.no_grad():
        net = learner.network([], {3: 5}).eval()
        net.weight += 0.1 * torch.randn(net.weight.shape, generator=generator(0, "moved"))
    return learner, old, net, stream.spec.preprocess(stream.tasks[2].train_eval.store)


def test_distillation_is_over_the_old_outputs_of_a_growing_head():
    learner, old, net, inputs = grown_network("lwf", strength=0.7, temperature=2.0)
    targets = torch.arange(24) % 5
    batch = Batch(inputs, targets, torch.full((24,), 3))
    rule = learner.rule()
    with torch.no_grad():
        outputs = F.linear(net.trunk(inputs), net.weight, net.bias)
        before = F.linear(old.trunk(inputs), old.weight[:4], old.bias[:4])
        p, q = (before / 2).softmax(1), (outputs[:, :4] / 2).softmax(1)
        expected = F.cross_entropy(outputs, targets) + 0.7 * 4 * (p * (p / q).log()).sum(1).mean()
        assert float(rule.loss(net, batch, toy_stream(1).spec.objective)) == pytest.approx(float(expected), rel=1e-4)


def test_der_compares_only_outputs_that_were_recorded():
    learner, _, net, inputs = grown_network("der", alpha=0.5)
    recorded = torch.randn(10, 5, generator=generator(0, "recorded"))
    recorded[:6, 2:] = -math.inf  # of the first task
    recorded[6:, 4] = -math.inf
    targets = torch.arange(24) % 5
    batch = Batch(inputs, targets, torch.full((24,), 3), 10, recorded)
    with torch.no_grad():
        outputs = F.linear(net.trunk(inputs), net.weight, net.bias)
        past = outputs[14:]
        gaps = torch.cat([(past[:6, :2] - recorded[:6, :2]).flatten(), (past[6:, :4] - recorded[6:, :4]).flatten()])
        expected = F.cross_entropy(outputs[:14], targets[:14]) + 0.5 * gaps.square().mean()
        found = learner.rule().loss(net, batch, toy_stream(1).spec.objective)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


# Every method


@pytest.mark.parametrize("source", ["table", "generator"])
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_or_refuses_every_scenario(method, scenario, source):
    continual = "continual" in METHODS[method].modes
    config = of_scenario(
        scenario, method=method, continual=continual, rounds=None if continual else 1, hp={"epochs": 1}
    )
    if scenario not in METHODS[method].scenarios:
        with pytest.raises(UserError, match=f"--scenario {scenario}: --method {method} has a head for each task"):
            check_method(config, ())
        return
    check_method(config, ())
    stream = named_stream(fresh=source == "generator")
    if (scenario, source) == ("class", "generator"):
        with pytest.raises(UserError, match="needs tables"):
            in_scenario(stream, scenario)
        return
    stream = in_scenario(stream, scenario)
    _, _, answers = run_toy(config, stream)
    widths = {"class": (2, 4, 5) if continual else (5,)}.get(scenario, (2,) * len(answers))
    for number, by_task in enumerate(answers):
        for task, found in by_task.items():
            own = 2 if scenario == "task" else widths[number]
            assert found.shape == (len(stream.task(task).test), own)
            torch.testing.assert_close(found.sum(1), torch.ones(len(found)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("scenario", ["domain", "class"])
def test_statistics_of_each_task_are_refused_where_the_task_is_not_told(scenario):
    config = of_scenario(scenario, method="finetune", settings={"bn": "per_task"})
    with pytest.raises(UserError, match="finetune with bn: per_task would have to be told the task"):
        check_method(config, ())
    check_method(of_scenario("task", method="finetune", settings={"bn": "per_task"}), ())
