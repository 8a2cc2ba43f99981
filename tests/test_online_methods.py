"""Methods for streams that are seen once, MIR, GDumb and CLS-ER, against independent truths."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from datasets.objectives import CrossEntropy
from datasets.scenarios import SCENARIOS, in_scenario
from datasets.task import TaskStream
from methods.cls_er import Averaging
from methods.er import ER
from methods.mir import MostInterfered
from methods.single import NormRule
from tests.test_resume import options, same_as, start, stop_after, write_configs
from tests.test_training import new_net
from tests.toys import number_stream, run_toy, toy_config, toy_stream
from training.batches import Batch
from training.recipe import Recipe
from utils.errors import UserError
from utils.seeding import generator

OBJECTIVE = CrossEntropy()
NAMES = ("mir", "gdumb", "cls_er")
DURING = {"fill": "during", "buffer": "reservoir"}


def stream_of(scenario, fresh=False):
    """Two tasks of three classes each, whose rows shine at different places, in a scenario."""
    tasks = [replace(task, id=id) for id, task in enumerate(toy_stream(6, fresh, classes=3).tasks[1::4], 1)]
    return in_scenario(TaskStream(toy_stream(1).spec, tuple(tasks)), scenario)


def batch_of(stream, new, replayed):
    """The first examples of the second task, followed by some of the first one."""
    parts = [(stream.tasks[1], new), (stream.tasks[0], replayed)]
    images = [stream.spec.preprocess(task.train_eval.store[:count]) for task, count in parts]
    ids = [torch.full((count,), task.id) for task, count in parts]
    targets = [task.train_eval.targets[:count] for task, count in parts]
    return Batch(torch.cat(images), torch.cat(targets), torch.cat(ids), replayed)


def gradients(loss, net):
    return torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad])


# MIR


@pytest.mark.parametrize("form", ["mean", "sum"])
def test_mir_replays_what_a_plain_step_on_the_new_batch_harms_most(form):
    """Against a copy of the network that takes that step with torch's SGD, and a loop over the candidates."""
    stream = stream_of("task")
    batch, net = batch_of(stream, 8, 20), new_net(stream, dropout=0.2)
    virtual, twin = copy.deepcopy(net).eval(), copy.deepcopy(net)
    rate = 0.4 * 0.5 * (1 + math.cos(math.pi * 3 / 10))  # the fourth step of ten
    optimizer = torch.optim.SGD(virtual.parameters(), rate)
    F.cross_entropy(virtual(batch.inputs[:8], batch.task_ids[:8]), batch.targets[:8]).backward()
    optimizer.step()
    net.eval()
    rise = []
    for n in range(8, 28):
        losses = [
            F.cross_entropy(asked(batch.inputs[n : n + 1], batch.task_ids[n : n + 1]), batch.targets[n : n + 1])
            for asked in (virtual, net)
        ]
        rise.append(float((losses[0] - losses[1]).detach()))
    chosen = sorted(range(20), key=lambda n: -rise[n])[:5]
    assert rise[chosen[0]] > 0.01
    rows = torch.tensor([*range(8), *(8 + n for n in chosen)])
    inputs, targets, ids = batch.inputs[rows], batch.targets[rows], batch.task_ids[rows]

    learner, _, _ = run_toy(
        toy_config(method="mir", settings={"replay_batch": 5, "candidates": 20, "replay_loss": form}), toy_stream(1)
    )
    rule = learner.rule()
    rule.recipe = Recipe(epochs=1, lr=0.4, schedule="cosine")
    rule.begin(net.train())
    rule.before(3, 10)
    torch.manual_seed(0)  # for dropout, which scoring must not draw from
    found = rule.loss(net, batch, OBJECTIVE)
    torch.manual_seed(0)
    outputs = twin.train()(inputs, ids)
    each = F.cross_entropy(outputs, targets, reduction="none")
    expected = each.mean() if form == "mean" else each[:8].mean() + each[8:].mean()
    torch.testing.assert_close(found, expected)
    for one, other in zip(gradients(found, net), gradients(expected, twin), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    # One training step's worth of statistics, and all modules train again.
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], msg=name)
    assert all(module.training for module in net.modules())


def test_mir_takes_all_candidates_if_they_are_few():
    stream = stream_of("task")
    batch, net = batch_of(stream, 8, 6), new_net(stream)
    rule = MostInterfered(NormRule(), 6)
    rule.begin(net)
    expected = F.cross_entropy(copy.deepcopy(net)(batch.inputs, batch.task_ids), batch.targets)
    torch.testing.assert_close(rule.loss(net, batch, OBJECTIVE), expected)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_mir_with_no_choice_is_experience_replay_to_the_bit(scenario):
    def learned(method, **settings):
        given = {**DURING, "replay_batch": 8, "replay_loss": "mean", **settings}
        return run_toy(toy_config(method=method, memory=12, settings=given), stream_of(scenario))[2][-1]

    found, expected, chosen = learned("mir", candidates=8), learned("er"), learned("mir", candidates=12)
    for task in (1, 2):
        assert torch.equal(found[task], expected[task])
        assert not torch.equal(chosen[task], expected[task])


@pytest.mark.parametrize(("kept", "candidates", "size"), [(2, 50, 6), (8, 20, 20), (8, 3, 16)])
def test_mirs_candidates_are_different_examples(kept, candidates, size):
    """As many as are asked for, at least replay_batch, or all that are kept."""
    stream = stream_of("task")
    config = toy_config(
        method="mir", memory_per_class=kept, hp={"augment": False},
        settings={"candidates": candidates, "replay_batch": 16 if size == 16 else 2},
    )  # fmt: skip
    learner, _, _ = run_toy(config, stream, episodes=1)
    (replays,) = learner.past(stream.tasks[1])
    for _ in range(100):
        batch = next(replays)
        assert len(batch) == len(batch.inputs.flatten(1).unique(dim=0)) == size


@pytest.mark.parametrize("heads", ["task", "shared"])
def test_mir_scores_examples_of_any_objective(heads):
    def learned(method, **settings):
        config = toy_config(method=method, model="mlp", settings={"replay_batch": 10, "replay_loss": "sum", **settings})
        return run_toy(config, number_stream(2, heads=heads))[2]

    found, plain = learned("mir", candidates=30), learned("er")
    assert torch.equal(found[0][1], plain[0][1])
    assert found[1][1].isfinite().all()
    assert not torch.equal(found[1][1], plain[1][1])


# GDumb


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_gdumb_with_a_memory_of_everything_is_cumulative_to_the_bit(scenario):
    _, _, found = run_toy(toy_config(method="gdumb", memory_per_class=100), stream_of(scenario))
    _, _, expected = run_toy(toy_config(method="cumulative"), stream_of(scenario))
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[task], other[task]) for task in one)


@pytest.mark.parametrize("buffer", ["balanced", "class_reservoir"])
def test_gdumb_trains_a_new_network_on_a_balanced_memory_for_as_long_as_a_task(buffer):
    stream = toy_stream(4, count=60)
    learner, history, _ = run_toy(toy_config(method="gdumb", memory=15, settings={"buffer": buffer}), stream)
    assert learner.storage().examples == 15
    assert learner.storage().members_per_prediction == 1
    for learned in history:  # two epochs of the memory, of 15 examples, four times
        assert learned.stats.images == 2 * 4 * 15
    counts = [learner.memory.examples(task.id).targets.bincount(minlength=task.num_outputs) for task in stream.tasks]
    spread = torch.cat(counts) if buffer == "class_reservoir" else counts[0]
    assert spread.max() - spread.min() <= 1
    assert learner.new_members[0].tasks == (1, 2, 3, 4)


def test_gdumb_knows_nothing_of_a_task_that_it_has_nothing_of():
    _, _, found = run_toy(toy_config(method="gdumb", memory=1), toy_stream(2))
    assert torch.equal(found[1][2], torch.full((40, 2), 0.5))
    assert not torch.equal(found[1][1], torch.full((40, 3), 1 / 3))


# CLS-ER


def averaging(net, strength=1.0, speeds=((1.0, 0.999), (1.0, 0.999)), taken=0, seed=0):
    """The rule of a step, begun."""
    rule = Averaging(
        strength, speeds, lambda first: [copy.deepcopy(first).eval() for _ in range(2)], taken, generator(seed, "a")
    )
    rule.begin(net)
    return rule


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_cls_ers_loss_is_its_equation(scenario):
    """With averages of other weights than the network's, whose norms take the statistics of the replayed examples."""
    torch.manual_seed(0)
    stream = stream_of(scenario)
    batch = batch_of(stream, 8, 24)
    learner, _, _ = run_toy(toy_config(method="finetune"), stream)
    net = learner.network([1, 2]).eval()
    rule = averaging(net, strength=0.7)
    net.eval()
    with torch.no_grad():
        for average in rule.averages:
            for parameter in average.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    asked = (net, *(copy.deepcopy(average).train() for average in rule.averages))
    said = [each(batch.inputs[8:], batch.task_ids[8:]).detach() for each in asked]
    squares, sides = [], set()
    for working, plastic, stable, label in zip(*said, batch.targets[8:], strict=True):
        surer = bool(stable.softmax(0)[label] > plastic.softmax(0)[label])
        sides.add(surer)
        squares += (working - (stable if surer else plastic)).square().tolist()
    assert sides == {True, False}
    expected = F.cross_entropy(net(batch.inputs, batch.task_ids), batch.targets) + 0.7 * sum(squares) / len(squares)
    found = rule.loss(net, batch, OBJECTIVE)
    torch.testing.assert_close(found, expected)
    assert len(gradients(found, net)) == len(list(net.parameters()))


def test_averages_begin_as_plain_means_of_all_weights_so_far():
    """With d = 1 - 1 / (n + 1):  a_n = (a_0 + theta_1 + ... + theta_n) / (n + 1)."""
    torch.manual_seed(0)
    net = new_net(toy_stream(1))
    rule = averaging(net)
    sums = {name: value.detach().double() for name, value in net.named_parameters()}
    for _ in range(20):
        with torch.no_grad():
            for name in sums:
                net.state_dict()[name].add_(torch.randn_like(net.state_dict()[name]))
                sums[name] += net.state_dict()[name]
        rule.finish(net, 0.1)
    for average in rule.averages:
        for name, total in sums.items():
            torch.testing.assert_close(average.state_dict()[name].double(), total / 21, rtol=1e-3, atol=1e-4)


def test_later_an_update_leaves_the_decay_of_an_average():
    net = new_net(toy_stream(1))
    rule = averaging(net, speeds=((1.0, 0.5), (1.0, 0.9)), taken=1000)
    before = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.add_(1)
    rule.finish(net, 0.1)
    for average, decay in zip(rule.averages, (0.5, 0.9), strict=True):
        torch.testing.assert_close(average.weight, before + 1 - decay)


def test_averages_are_updated_with_the_probability_of_their_rates():
    """With the decay 0 an update makes an average what the network is."""
    net, steps = new_net(toy_stream(1)), 1000
    rule, updates = averaging(net, speeds=((0.8, 0.0), (0.3, 0.0))), [0, 0]
    for _ in range(steps):
        with torch.no_grad():
            net.bias.add_(1)
        rule.finish(net, 0.1)
        for which, average in enumerate(rule.averages):
            updates[which] += torch.equal(average.bias, net.bias)
    for count, rate in zip(updates, (0.8, 0.3), strict=True):
        assert abs(count - steps * rate) < 4 * math.sqrt(steps * rate * (1 - rate))


class Recorded(NormRule):
    """Plain steps; notes the network's weights before the first and after every step."""

    def __init__(self, weights):
        self.weights = weights

    def begin(self, net):
        super().begin(net)
        self.weights.append([])
        self.note(net)

    def note(self, net):
        self.weights[-1].append({name: value.detach().clone() for name, value in net.named_parameters()})

    def finish(self, net, rate):
        self.note(net)


@pytest.mark.parametrize("fill", ["after", "during"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_cls_ers_stable_average_answers(scenario, fill, monkeypatch):
    """Without strength the network is that of experience replay, whose weights are averaged here by hand."""
    stream, weights = stream_of(scenario), []
    given = {"fill": fill, "buffer": "reservoir", "replay_batch": 8}
    monkeypatch.setattr(ER, "rule", lambda self: Recorded(weights))
    twin, _, _ = run_toy(toy_config(method="er", memory=12, settings={**given, "replay_loss": "mean"}), stream)
    speeds = {"strength": 0.0, "plastic_rate": 0.5, "stable_rate": 1.0, "stable_decay": 0.8}
    learner, _, answers = run_toy(toy_config(method="cls_er", memory=12, settings={**given, **speeds}), stream)
    working, expected = (method.network([1, 2]).state_dict() for method in (learner, twin))
    assert all(torch.equal(working[name], expected[name]) for name in working)

    taken, average = 0, {}
    for task, iterates in enumerate(weights, 1):
        for name, value in iterates[0].items():  # rows of a head that are new begin as in the network
            old = average.get(name, value[:0] if name in ("weight", "bias") else value)
            average[name] = torch.cat([old, value[len(old) :]])
        for step in iterates[1:]:
            taken += 1
            decay = min(1 - 1 / (taken + 1), 0.8)
            for name, value in step.items():
                average[name] = decay * average[name] + (1 - decay) * value
        if fill == "after" and task == 1:
            average = dict(iterates[-1])
    answering = learner.new_members[-1].net
    for name, value in answering.named_parameters():
        torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-5, msg=name)
    assert not torch.equal(answering.trunk.conv1.weight, learner.network([1, 2]).trunk.conv1.weight)
    for task in stream.tasks:
        inputs = stream.spec.preprocess(task.test.store[task.test.rows])
        said = answering.eval()(inputs, torch.full((len(inputs),), task.id)).softmax(1)
        torch.testing.assert_close(answers[-1][task.id], said.detach(), rtol=1e-4, atol=1e-5)


def test_cls_er_counts_its_averages():
    parameters = {}
    for method in ("er", "cls_er"):
        learner, _, _ = run_toy(toy_config(method=method, model="mlp"), toy_stream(3))
        parameters[method] = learner.storage().parameters
    assert parameters["cls_er"] == 3 * parameters["er"]


def test_cls_er_needs_classes():
    with pytest.raises(UserError, match="method CLSER needs targets that are classes; RealNumbers has none"):
        run_toy(toy_config(method="cls_er", model="mlp"), number_stream(1))


# All three


CASES = [(scenario, fresh) for scenario in SCENARIOS for fresh in (False, True) if not (fresh and scenario == "class")]


@pytest.mark.parametrize(("scenario", "fresh"), CASES)  # streams drawn without end have no classes of their own
@pytest.mark.parametrize("method", NAMES)
def test_every_scenario_is_learned_from_tables_and_generators(method, scenario, fresh):
    stream = stream_of(scenario, fresh)
    slow = {"strength": 0.1, "plastic_decay": 0.9, "stable_decay": 0.9}  # for tasks of sixty steps
    config = toy_config(
        method=method, memory_per_class=6, hp={"epochs": 20, "augment": False},
        settings=slow if method == "cls_er" else {},
    )  # fmt: skip
    learner, _, answers = run_toy(config, stream)
    for task in stream.tasks:
        found = answers[-1][task.id]
        assert found.shape == (40, 6 if scenario == "class" else 3)
        assert (found.argmax(1) == task.test.targets).float().mean() > 0.6
    assert learner.memory.size()[0] == 36


@pytest.mark.parametrize("method", ["er", "mir", "cls_er"])
def test_a_memory_that_is_filled_while_examples_arrive_is_resumed_to_the_bit(method, tmp_path, monkeypatch):
    """Stopped in every second to fourth step, with augmentation, and a head that grows."""
    monkeypatch.chdir(tmp_path)
    write_configs()
    given = options(method)
    given[given.index("--memory_per_class") :] = ["--memory", "9", "--scenario", "class"]
    for setting in ("fill=during", "buffer=class_reservoir", "replay_batch=3"):
        given += ["--set", f"settings.{setting}"]
    assert start("whole", *given) == 0
    stops = 0
    for _ in range(30):
        with monkeypatch.context() as patch:
            stop_after(patch, 2 + stops % 3)
            code = start("run", *(["--resume"] if stops else []), *given)
        if code == 0:
            break
        assert code == 143
        stops += 1
    assert stops >= 3
    same_as("run", "whole")
