"""Methods that protect what a network has learned: parts of it for each task, and steps at right angles to the past."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from datasets.objectives import CrossEntropy
from methods import build_method
from methods.base import Context
from methods.gpm import columns, extended, projectable
from methods.packnet import pruning_step
from methods.subnets import layer_weights
from methods.wsn import Winning, largest
from tests.test_baselines import trunk_of
from tests.test_training import new_net
from tests.toys import CPU, configured, run_toy, toy_config, toy_stream
from training.batches import Batch
from training.monitor import Monitor
from training.prediction import outputs_on
from training.recipe import Recipe
from utils.errors import UserError

OBJECTIVE = CrossEntropy()


def outputs(method, task):
    """Of the network that answers a task, on its test inputs."""
    net = method.network([task.id])
    with net.for_task(method.task_weights(task.id)):
        return torch.cat(list(outputs_on(net, task.id, task.test, method.spec, CPU)))


def with_model(config, model, dropout=0.0, **hp):
    return replace(config, net=configured(model, dropout=dropout), hp=replace(config.hp, **hp))


@pytest.mark.parametrize("model", ["conv", "wrn16_4", "timm/test_resnet"])
@pytest.mark.parametrize("bn", ["per_task", "freeze_after_first"])
@pytest.mark.parametrize("method", ["packnet", "wsn"])
def test_outputs_for_an_old_task_are_the_same_bits_after_every_later_episode(method, bn, model):
    """With momentum, weight decay and dropout; a timm network has biases and norms of its own."""
    tasks = 4 if model == "conv" else 2
    config = toy_config(method=method, settings={"bn": bn})
    config = with_model(config, model, lr=0.05, l2_reg=0.01, dropout=0.2, epochs=2 if model == "conv" else 1)
    stream = toy_stream(tasks, count=24)
    learner = build_method(Context(config, stream.spec, CPU))
    right_after = {}
    for episode in stream.continual():
        before = {name: value.clone() for name, value in trunk_of(learner).state_dict().items()} if right_after else {}
        learner.learn(episode, Monitor())
        if before:  # the network has gone on learning
            assert any(not torch.equal(before[name], value) for name, value in trunk_of(learner).state_dict().items())
        for task in stream.tasks[: episode.number]:
            said = outputs(learner, task)
            assert torch.equal(said, right_after.setdefault(task.id, said))
            assert torch.equal(learner.predict(task), said.softmax(1))


# PackNet


def test_packnet_gives_every_task_the_same_share_of_each_layer():
    config = toy_config(method="packnet", settings={"tasks": 4})
    method, _, _ = run_toy(config, toy_stream(4))
    for name, weight in layer_weights(trunk_of(method)).items():
        before = torch.zeros_like(weight, dtype=torch.bool)
        for task in (1, 2, 3, 4):
            mask = method.masks[task][name]
            assert (mask | before).equal(mask)
            assert int((mask & ~before).sum()) == pytest.approx(weight.numel() / 4, abs=2)
            before = mask
        assert before.all()


def test_packnet_keeps_the_largest_of_the_free_weights_and_frees_the_rest():
    stream = toy_stream(2)
    method, _, _ = run_toy(toy_config(method="packnet", settings={"tasks": 3}), toy_stream(1))
    rule, net = method.rule(), method.new_network({task.id: task.num_outputs for task in stream.tasks})
    rule.begin(net)
    before = {name: weight.detach().clone() for name, weight in layer_weights(net.trunk).items()}
    for step in range(9):
        rule.before(step, 9)
        assert bool(rule.kept) == (step >= 6 == pruning_step(9))
    for name, weight in layer_weights(net.trunk).items():
        taken, kept = method.masks[1][name], rule.masks()[name]
        free = before[name][~taken].abs().sort(descending=True).values
        count = round(len(free) / 2)
        assert int((kept & ~taken).sum()) == count
        assert before[name][kept & ~taken].abs().min() >= free[count:].max()
        assert torch.equal(weight, torch.where(kept, before[name], 0.0))


def test_packnet_without_room_for_all_tasks_is_refused():
    config = toy_config(method="packnet", settings={"tasks": 1})
    tasks = config.data.tasks * 2
    with pytest.raises(UserError, match="its setting tasks is 1; the stream has 2"):
        build_method(Context(replace(config, data=replace(config.data, tasks=tasks)), toy_stream(1).spec, CPU))


def test_packnets_two_phases_have_a_cosine_each():
    rule = run_toy(toy_config(method="packnet"), toy_stream(1))[0].rule()
    rates = [rule.rates(Recipe(lr=1.0), 12)(step) for step in range(12)]
    expected = [0.5 * (1 + math.cos(math.pi * step / phase)) for phase in (8, 4) for step in range(phase)]
    assert rates == pytest.approx(expected)


# WSN


def test_wsns_gradients_are_those_of_autograd_through_a_straight_through_mask():
    """W (m + |s| - |s|'), the prime for no gradient, has the value W m and the gradients of the paper."""
    stream = toy_stream(2)
    net = new_net(stream).train()
    images = stream.spec.preprocess(stream.tasks[0].train_eval.store[:8])
    targets, ids = stream.tasks[0].train_eval.targets[:8] % 2, torch.tensor([1, 2] * 4)
    used = {name: torch.rand_like(weight) < 0.3 for name, weight in layer_weights(net.trunk).items()}
    rule = Winning(used, 0.4, 3.0)
    rule.begin(net)
    whole = {name: weight.detach().clone() for name, weight in layer_weights(net.trunk).items()}
    scores = dict(zip(rule.names, [s.detach().clone() for s in rule.scores], strict=True))
    batch = Batch(images, targets, ids)
    twin = new_net(stream).train()

    through = {}
    for name, weight in whole.items():
        size = scores[name].requires_grad_().abs()
        mask = largest(scores[name], 0.4).float() + size - size.detach()
        through[f"trunk.{name}"] = weight.requires_grad_() * mask
    expected = OBJECTIVE.loss(functional_call(twin, through, (images, ids)), targets)
    expected.backward()
    found = rule.loss(net, batch, OBJECTIVE)
    torch.testing.assert_close(found.detach(), expected.detach())
    found.backward()
    rule.adjust(net, batch, OBJECTIVE)
    for name, weight, trained in zip(rule.names, rule.weights, rule.scores, strict=True):
        assert torch.equal(weight, whole[name])
        torch.testing.assert_close(weight.grad, whole[name].grad * ~used[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(trained.grad, 3 * scores[name].grad, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 200), st.floats(0.01, 1.0), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_winning_share_are_the_largest_scores(count, share, seed):
    scores = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    mask = largest(scores, share)
    assert int(mask.sum()) == max(1, round(share * count))
    if not mask.all():
        assert scores[mask].abs().min() > scores[~mask].abs().max()


# GPM


def energy(basis, R):
    return float((basis.T @ R).square().sum() / R.square().sum())


@given(st.integers(0, 1000), st.floats(0.5, 0.999))
@settings(max_examples=40, deadline=None)
def test_the_basis_is_that_of_the_singular_vectors(seed, threshold):
    """The paper's procedure on the inputs themselves, numpy's singular values, for two tasks."""
    rng = np.random.default_rng(seed)
    first, second = (rng.standard_normal((8, 30)) * rng.uniform(0.01, 2, (8, 1)) for _ in range(2))
    vectors, values, _ = np.linalg.svd(first)
    size = int((np.cumsum(values**2) < threshold * (values**2).sum()).sum()) + 1
    basis = extended(torch.zeros(len(first), 0, dtype=torch.float64), torch.tensor(first @ first.T), threshold)
    assert basis.shape == (8, size)
    expected = vectors[:, :size] @ vectors[:, :size].T
    np.testing.assert_allclose((basis @ basis.T).numpy(), expected, atol=1e-6)

    rest = second - expected @ second
    vectors, values, _ = np.linalg.svd(rest)
    explained = (second**2).sum() - (rest**2).sum()
    more = 0
    while explained + (values[:more] ** 2).sum() < (threshold - 1e-9) * (second**2).sum():
        more += 1
    both = extended(basis, torch.tensor(second @ second.T), threshold)
    assert both.shape == (8, size + more)
    np.testing.assert_allclose((both.T @ both).numpy(), np.eye(size + more), atol=1e-9)
    assert energy(both, torch.tensor(second)) >= threshold - 1e-6
    assert energy(both, torch.tensor(first)) >= threshold - 1e-6


@pytest.mark.parametrize("stride", [1, 2])
def test_the_columns_of_a_convolution_are_what_its_matrix_is_applied_to(stride):
    layer = torch.nn.Conv2d(3, 5, 3, stride=stride, padding=1, bias=False)
    x = torch.randn(2, 3, 9, 9)
    found = layer.weight.flatten(1) @ columns(layer, x)
    torch.testing.assert_close(found, layer(x).transpose(0, 1).flatten(1), rtol=1e-4, atol=1e-5)
    linear = torch.nn.Linear(4, 3, bias=False)
    x = torch.randn(2, 6, 4)
    torch.testing.assert_close(linear.weight @ columns(linear, x), linear(x).flatten(0, 1).T)


def test_gpm_leaves_what_it_has_seen_and_changes_the_rest():
    """threshold 1, all training examples of task 1 in the basis, momentum and weight decay on: their features stay."""
    stream = toy_stream(2, count=6)
    config = toy_config(method="gpm", settings={"threshold": 1.0, "threshold_step": 0.0, "basis_examples": 6})
    config = with_model(config, "conv", lr=0.05, l2_reg=0.1, epochs=6)
    learner = build_method(Context(config, stream.spec, CPU))
    inputs = [stream.spec.preprocess(task.train_eval.store) for task in stream.tasks]
    first, second = stream.continual()
    learner.learn(first, Monitor())
    before = [trunk_of(learner).eval()(x).detach() for x in inputs]
    learner.learn(second, Monitor())
    after = [trunk_of(learner).eval()(x).detach() for x in inputs]
    torch.testing.assert_close(after[0], before[0], rtol=1e-3, atol=1e-4)
    assert (after[1] - before[1]).abs().max() > 0.05
    finetuned, _, _ = run_toy(with_model(toy_config(method="finetune"), "conv", lr=0.05, l2_reg=0.1, epochs=6), stream)
    assert (trunk_of(finetuned).eval()(inputs[0]) - before[0]).abs().max() > 0.05


# No bfloat16 with the timm network: torch's CPU gradient of a 3x3 convolution over a single pixel, which these images
# shrink to, is then uninitialised memory (torch 2.13.0).
@pytest.mark.parametrize(("model", "bf16"), [("conv", False), ("conv", True), ("timm/test_resnet", False)])
def test_gpms_step_has_no_part_in_its_basis(model, bf16):
    """Steps of SGD with momentum and weight decay: the sum of all updates is at right angles to the basis."""
    stream = toy_stream(2)
    config = toy_config(method="gpm", settings={"bn": "freeze_after_first" if model == "conv" else "per_task"})
    config = with_model(config, model, l2_reg=0.1, lr=0.1 if model == "conv" else 0.01)
    learner = build_method(Context(config, stream.spec, replace(CPU, bf16=bf16)))
    learner.learn(next(iter(stream.continual())), Monitor())
    before = {name: layer.weight.detach().clone() for name, layer in projectable(trunk_of(learner)).items()}
    bases = {name: basis.clone() for name, basis in learner.bases.items()}
    _, second = stream.continual()
    learner.learn(second, Monitor())
    assert set(bases) == set(before)
    distances = []
    for name, layer in projectable(trunk_of(learner)).items():
        moved = (layer.weight.detach() - before[name]).flatten(1)
        distances.append(float(moved.norm()))
        assert float((moved @ bases[name]).norm()) < 1e-4 * max(1.0, distances[-1])
    assert max(distances) > 0.03
