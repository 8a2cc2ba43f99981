"""Every baseline's algorithm against an independent truth: closed forms, brute force, geometry, statistics."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import chisquare
from torch import nn

from datasets.objectives import CrossEntropy
from methods import build_method
from methods.agem import dot, project, rotate
from methods.base import Context
from methods.ewc import fisher
from methods.gem import Constrained, dual
from methods.lwf import distillation
from methods.memory.audit import Budget
from methods.memory.replay import BUFFERS, balanced_order
from methods.memory.slots import NONE, reservoir_slots
from methods.si import PathIntegral
from methods.stable_sgd import StableRate
from net.multihead import MultiHead
from records.invocation import configure, with_settings
from tests.test_training import new_net
from tests.toys import CPU, filled, run_toy, toy_config, toy_stream
from training.batches import Batch
from training.loop import Training
from training.recipe import Recipe
from utils.errors import TrainingError, UserError
from utils.seeding import generator

OBJECTIVE = CrossEntropy()
LONGER = Recipe(epochs=8, batch=8, augment=True)


def rule_of(method, **changed):
    """What a method does in a step of its second task."""
    learner, _, _ = run_toy(toy_config(method=method, settings=changed), toy_stream(1))
    return learner.rule()


def of_trunk(trunk):
    """The parameters of a trunk by their names in the network."""
    return list(trunk.named_parameters(prefix="trunk"))


def trunk_of(learner):
    """The trunk of a method with a single network, as the last task has left it."""
    return learner.network(learner.seen).trunk


class Linear(nn.Module):
    """A trunk without nonlinearity: with a head it is softmax regression."""

    def __init__(self, inputs, features):
        super().__init__()
        self.map = nn.Linear(inputs, features, bias=False)

    def forward(self, x):
        return self.map(x.flatten(1))


# Fisher information


def test_fisher_of_softmax_regression_has_a_closed_form():
    """Trunk = W, head = identity: d log p(y)/dW = (e_y - p) x', so E_y of its square is p (1 - p) x^2."""
    torch.manual_seed(0)
    net = MultiHead(Linear(6, 4), 4, {1: 4})
    with torch.no_grad():
        net.weight.copy_(torch.eye(4))
    x = torch.randn(50, 6)
    p = net(x, torch.ones(50, dtype=torch.long)).softmax(1).detach()
    expected = torch.einsum("nc,ni->ci", p * (1 - p), x**2) / 50
    found = fisher(net, x, torch.zeros(50, dtype=torch.long), 1, "exact", generator(0, "f"))
    torch.testing.assert_close(found["trunk.map.weight"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", ["exact", "sample", "empirical"])
def test_fisher_equals_a_loop_over_examples(form):
    stream = toy_stream(1, count=20)
    task = stream.tasks[0]
    net = new_net(stream).eval()
    inputs = stream.spec.preprocess(task.train_eval.store)
    found = fisher(net, inputs, task.train_eval.targets, 1, form, generator(0, "f"))
    rng, drawn = generator(0, "f"), []
    with torch.no_grad():
        p = net(inputs, torch.ones(len(inputs), dtype=torch.long)).softmax(1)
    for part in p.split(16):
        drawn += torch.multinomial(part, 1, generator=rng).flatten().tolist()
    total = {name: torch.zeros_like(value) for name, value in of_trunk(net.trunk)}
    for n, image in enumerate(inputs):
        labels = {"exact": range(3), "sample": [drawn[n]], "empirical": [int(task.train_eval.targets[n])]}[form]
        for label in labels:
            net.zero_grad()
            F.log_softmax(net(image[None], torch.ones(1, dtype=torch.long)), 1)[0, label].backward()
            weight = float(p[n, label]) if form == "exact" else 1.0
            for name, parameter in of_trunk(net.trunk):
                total[name] += weight * parameter.grad**2 / len(inputs)
    assert not any(value.requires_grad for value in found.values())  # or it would hold all those passes
    for name, value in total.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7, msg=name)


# Springs


RATE = 0.01


def pulled(rule, net):
    """Where a step leads the trunk's parameters that the loss has not moved."""
    rule.begin(net)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rule.adjust(net, Batch(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2)), OBJECTIVE)
    rule.finish(net, RATE)
    return {name: parameter.detach().clone() for name, parameter in of_trunk(net.trunk)}


def assert_stationary(energy, found, start):
    """`found` minimises  energy(theta) + |theta - start|^2 / (2 h),  h what momentum makes of the rate."""
    theta = found.clone().requires_grad_()
    total = energy(theta) + (theta - start).square().sum() / (2 * RATE / (1 - 0.9))
    assert float(energy(start)) > float(energy(found)) > 0
    torch.testing.assert_close(torch.autograd.grad(total, theta)[0], torch.zeros_like(found), rtol=0, atol=1e-4)


def softmax_regression_trunk(method, **settings):
    """A learner of that method without springs, and a network of one matrix for it."""
    learner = build_method(Context(toy_config(method=method, settings=settings), toy_stream(1).spec, CPU))
    return learner, MultiHead(Linear(3, 2), 2, {1: 2})


def test_ewcs_step_minimises_its_penalty_and_the_way_there():
    """Two past tasks: autograd through strength/2 sum_k sum_i F_ki (theta_i - theta*_ki)^2."""
    torch.manual_seed(0)
    learner, net = softmax_regression_trunk("ewc", strength=7.0)
    past = [(torch.rand(2, 3), torch.randn(2, 3)) for _ in range(2)]
    for stiffness, place in past:
        learner.consolidate({"trunk.map.weight": stiffness}, {"trunk.map.weight": place})
    start = net.trunk.map.weight.detach().clone()
    found = pulled(learner.rule(), net)["trunk.map.weight"]
    assert_stationary(lambda theta: 7 / 2 * sum((f * (theta - at) ** 2).sum() for f, at in past), found, start)


def test_online_ewc_keeps_one_spring_that_decays():
    torch.manual_seed(0)
    learner, net = softmax_regression_trunk("ewc_online", strength=3.0, decay=0.5)
    first, second, place = torch.rand(2, 3), torch.rand(2, 3), torch.randn(2, 3)
    learner.consolidate({"trunk.map.weight": first}, {"trunk.map.weight": torch.randn(2, 3)})
    learner.consolidate({"trunk.map.weight": second}, {"trunk.map.weight": place})
    start = net.trunk.map.weight.detach().clone()
    found = pulled(learner.rule(), net)["trunk.map.weight"]
    assert_stationary(lambda theta: 3 / 2 * ((0.5 * first + second) * (theta - place) ** 2).sum(), found, start)


def test_training_with_springs_ends_where_the_loss_and_its_penalty_are_stationary():
    """Full batches of softmax regression, SGD with momentum: the gradient of loss + penalty vanishes."""
    stream = toy_stream(1)
    learner, _ = softmax_regression_trunk("ewc", strength=2.0)
    net = MultiHead(Linear(64, 3), 3, {1: 3})
    stiffness, place = torch.rand(3, 64), 0.1 * torch.randn(3, 64)
    learner.consolidate({"trunk.map.weight": stiffness}, {"trunk.map.weight": place})
    net.weight.requires_grad_(False)
    net.bias.requires_grad_(False)
    rule = learner.rule()
    rule.begin(net)
    examples = stream.tasks[0].train_eval
    batch = Batch(stream.spec.preprocess(examples.store), examples.targets, torch.ones(24, dtype=torch.long))
    optimizer = rule.optimizer(net, Recipe(l2_reg=0.0), RATE)
    for _ in range(3000):
        optimizer.zero_grad()
        rule.loss(net, batch, OBJECTIVE).backward()
        rule.adjust(net, batch, OBJECTIVE)
        optimizer.step()
        rule.finish(net, RATE)
    theta = net.trunk.map.weight
    total = rule.loss(net, batch, OBJECTIVE) + (stiffness * (theta - place) ** 2).sum()
    (gradient,) = torch.autograd.grad(total, theta)
    assert gradient.abs().max() < 1e-4
    assert (theta - place).abs().max() > 1e-2  # the loss has pulled, too


@pytest.mark.parametrize("method", ["ewc", "ewc_online", "si"])
def test_springs_hold_at_any_strength(method):
    """A gradient step of so stiff a penalty would overshoot and diverge."""
    config = toy_config(method=method, settings={"strength": 1e12})
    first, _, _ = run_toy(config, toy_stream(1))
    learner, _, answers = run_toy(config, toy_stream(3))
    for name, parameter in of_trunk(trunk_of(learner)):
        before = dict(of_trunk(trunk_of(first)))[name]
        stiff = first.importance[name] > 1e-4
        torch.testing.assert_close(parameter[stiff], before[stiff], rtol=1e-3, atol=1e-4)
    assert all(probabilities.isfinite().all() for probabilities in answers[-1].values())


@pytest.mark.parametrize("method", ["ewc", "ewc_online", "si"])
def test_penalties_are_positive_after_a_perturbation_and_zero_where_the_task_ended(method):
    learner, _, _ = run_toy(toy_config(method=method), toy_stream(1))
    net = learner.network([1])
    rule = learner.rule()
    ended = {name: parameter.detach().clone() for name, parameter in of_trunk(net.trunk)}
    for name, value in pulled(rule, net).items():
        torch.testing.assert_close(value, ended[name], rtol=1e-4, atol=1e-6)
    moved = {name: 0.1 * torch.randn_like(value) for name, value in ended.items()}
    with torch.no_grad():
        for name, parameter in of_trunk(net.trunk):
            parameter.copy_(ended[name] + moved[name])
    back = pulled(rule, net)
    # The springs pull back towards where the task ended, which lowers their energy.
    assert sum(((ended[name] + moved[name] - back[name]) * moved[name]).sum() for name in back) > 0
    far, near = (
        sum((value * distance[name] ** 2).sum() for name, value in learner.importance.items())
        for distance in (moved, {name: back[name] - ended[name] for name in back})
    )
    assert far > near > 0


def test_springs_hold_the_trunk_where_it_was():
    stream, learners = toy_stream(2), []
    for strength in (0.0, 300.0):
        config = replace(toy_config(method="ewc", settings={"strength": strength}), hp=LONGER)
        learners.append(run_toy(config, stream)[0])
    first, _, _ = run_toy(config, toy_stream(1))
    start, free, held = (dict(of_trunk(trunk_of(learner))) for learner in (first, *learners))
    free, held = (
        sum(float((first.importance[name] * (end[name] - value) ** 2).detach().sum()) for name, value in start.items())
        for end in (free, held)
    )
    assert held < 0.5 * free


def test_ewc_of_no_strength_is_finetuning_to_the_bit():
    for name in ("ewc", "ewc_online", "si", "lwf"):
        _, _, loose = run_toy(toy_config(method=name, settings={"strength": 0.0}), toy_stream(2))
        _, _, free = run_toy(toy_config(method="finetune"), toy_stream(2))
        for task in (1, 2):
            if name == "lwf":  # its old heads are in the network: weight decay reaches them
                torch.testing.assert_close(loose[-1][task], free[-1][task], rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(loose[-1][task], free[-1][task]), name


# Synaptic intelligence


def test_the_path_integral_is_the_loss_drop_on_a_quadratic():
    """Small steps downhill on 1/2 sum a_i x_i^2: parameter i's work is its share of the drop."""
    torch.manual_seed(0)
    net = MultiHead(Linear(3, 2), 2, {1: 2})
    rule = PathIntegral(0.0, {}, {})
    rule.begin(net)
    stiffness = torch.rand(2, 3) + 0.5
    weight = net.trunk.map.weight
    before = 0.5 * stiffness * weight.detach() ** 2
    optimizer = torch.optim.SGD([weight], 0.001)
    batch = Batch(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2))
    for _ in range(500):
        optimizer.zero_grad()
        (0.5 * stiffness * weight**2).sum().backward()
        rule.adjust(net, batch, OBJECTIVE)
        optimizer.step()
        rule.finish(net, 0.001)
    drop = before - 0.5 * stiffness * weight.detach() ** 2
    torch.testing.assert_close(rule.work[0], drop, rtol=2e-3, atol=1e-6)
    distance = (weight.detach() - rule.start[0]) ** 2
    torch.testing.assert_close(rule.importance(0.1)["trunk.map.weight"], rule.work[0].clamp_min(0) / (distance + 0.1))


def test_the_path_integral_leaves_the_springs_out():
    """Where the loss is flat, springs move parameters without work done for the loss."""
    net = MultiHead(Linear(3, 2), 2, {1: 2})
    rule = PathIntegral(50.0, {"trunk.map.weight": torch.ones(2, 3)}, {"trunk.map.weight": torch.ones(2, 3)})
    start = net.trunk.map.weight.detach().clone()
    assert not torch.equal(pulled(rule, net)["trunk.map.weight"], start)
    assert torch.equal(rule.work[0], torch.zeros(2, 3))


# Distillation


def test_distillation_is_zero_for_the_same_outputs_and_kl_otherwise():
    torch.manual_seed(0)
    old, new = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    assert distillation(old, old, 2.0) == pytest.approx(0, abs=1e-6)
    kl = F.kl_div((new / 2).log_softmax(-1), (old / 2).softmax(-1), reduction="none").sum(-1).mean()
    assert distillation(new, old, 2.0) == pytest.approx(4 * float(kl), rel=1e-5)


def test_distillation_has_the_gradient_of_finite_differences_also_beside_narrow_heads():
    torch.manual_seed(1)
    old = torch.randn(4, 2, 3, dtype=torch.float64)
    new = torch.randn(4, 2, 3, dtype=torch.float64)
    for outputs in (old, new):
        outputs[:, 1, 2] = -torch.inf  # the second head has two outputs
    leaf = new.clone().requires_grad_()
    distillation(leaf, old, 2.0).backward()
    assert leaf.grad.isfinite().all()
    for index in [(0, 0, 0), (1, 0, 2), (2, 1, 1), (3, 1, 0)]:
        sides = []
        for sign in (1, -1):
            moved = new.clone()
            moved[index] += sign * 1e-2
            sides.append(float(distillation(moved, old, 2.0)))
        assert float(leaf.grad[index]) == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=2e-2, abs=2e-5)


# Dark experience


def test_what_der_records_is_what_the_network_said_and_follows_its_example():
    """Also when the buffer has to make room: 24 examples of task 1 shrink to 10 and then to 6 or 7."""
    for form in ("balanced", "reservoir"):
        stream = toy_stream(3)
        method, _, _ = run_toy(toy_config(method="der", memory=20, settings={"buffer": form}), toy_stream(1))
        inputs = stream.spec.preprocess(stream.tasks[0].train_eval.store)
        said = method.network([1]).eval()(inputs, torch.ones(24, dtype=torch.long))
        method, _, _ = run_toy(toy_config(method="der", memory=20, settings={"buffer": form}), stream)
        kept = method.memory.examples(1)
        assert 0 < len(kept) < 20
        torch.testing.assert_close(method.recorded[1], said[kept.rows].detach())


def test_ders_loss_is_its_equation():
    stream = toy_stream(2)
    net = new_net(stream).eval()
    images = stream.spec.preprocess(stream.tasks[0].train_eval.store[:20])
    targets, ids = stream.tasks[0].train_eval.targets[:20] % 2, torch.tensor([1] * 8 + [2, 1] * 6)
    recorded = torch.randn(12, 3)
    recorded[ids[8:] == 2, 2] = -math.inf
    batch = Batch(images, targets, ids, 12, recorded)
    outputs = net(images, ids).detach()
    cross_entropy = F.cross_entropy(outputs[:8], targets[:8])

    def distance(first, last):
        """Task 2 has two outputs, task 1 three."""
        pairs = [
            (outputs[8 + i, : 2 if ids[8 + i] == 2 else 3], recorded[i, : 2 if ids[8 + i] == 2 else 3])
            for i in range(first, last)
        ]
        return F.mse_loss(*(torch.cat(side) for side in zip(*pairs, strict=True)))

    der = float(rule_of("der").loss(net, batch, OBJECTIVE).detach())
    assert der == pytest.approx(float(cross_entropy + 0.3 * distance(0, 12)), rel=1e-5)
    derpp = float(rule_of("derpp").loss(net, batch, OBJECTIVE).detach())
    labels = F.cross_entropy(outputs[14:], targets[14:])
    assert derpp == pytest.approx(float(cross_entropy + 0.3 * distance(0, 6) + 0.5 * labels), rel=1e-5)


def test_stable_sgd_has_one_rate_a_task_that_falls_to_a_floor():
    rates = []
    for past in (0, 1, 2, 50):
        rule = StableRate(0.5, 1e-3, 0.8, past)
        recipe = rule.adapt(Recipe(lr=0.1, warmup=0.5))
        rate = rule.rates(recipe, 100)
        assert rate(0) == rate(99)
        rates.append(rate(0))
    assert rates == pytest.approx([0.1, 0.05, 0.025, 0.001])
    group = rule.optimizer(new_net(toy_stream(1)), recipe, 0.1).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.8, False)


# Gradients that do not harm

VECTORS = st.lists(st.floats(-5, 5).map(lambda x: round(x, 3)), min_size=4, max_size=4)


def combine(gradient, reference, factors):
    return float(factors[0]) * gradient + float(factors[1]) * reference


@given(VECTORS, VECTORS)
@settings(max_examples=200, deadline=None)
def test_agem_takes_the_nearest_gradient_that_does_not_raise_the_reference_loss(g, r):
    g, r = torch.tensor(g), torch.tensor(r)
    found = combine(g, r, project([g], [r]))
    if dot([g], [r]) >= 0:
        assert torch.equal(found, g)
        return
    assert float(found @ r) == pytest.approx(0, abs=1e-3)
    # Nearest: what was taken away is along the reference.
    taken = g - found
    assert float(taken @ r) ** 2 == pytest.approx(float(taken @ taken) * float(r @ r), rel=1e-3, abs=1e-5)


@given(VECTORS, VECTORS, st.floats(0, 5), st.floats(0, 5))
@settings(max_examples=200, deadline=None)
def test_mega_turns_without_stretching_to_the_best_angle(g, r, loss, reference_loss):
    g, r = torch.tensor(g), torch.tensor(r)
    if g.norm() < 0.1 or r.norm() < 0.1 or loss + reference_loss < 0.1:
        return
    cosine = float(g @ r / (g.norm() * r.norm()))
    if abs(cosine) > 0.999:
        return
    found = combine(g, r, rotate([g], [r], torch.tensor(loss), torch.tensor(reference_loss)))
    assert float(found.norm()) == pytest.approx(float(g.norm()), rel=1e-3)
    # The angle from g is the maximiser of  l cos(b) + l_ref cos(theta - b)  over a fine grid.
    theta = math.acos(cosine)
    grid = np.linspace(0, theta, 20_001)
    value = loss * np.cos(grid) + reference_loss * np.cos(theta - grid)
    angle = math.acos(max(-1.0, min(1.0, float(found @ g / (found.norm() * g.norm())))))
    reached = loss * math.cos(angle) + reference_loss * math.cos(theta - angle)
    assert reached == pytest.approx(value.max(), rel=1e-3, abs=1e-3)


def test_mega_without_a_loss_on_past_tasks_changes_nothing():
    g, r = torch.randn(9), torch.randn(9)
    found = combine(g, r, rotate([g], [r], torch.tensor(1.0), torch.tensor(0.0)))
    torch.testing.assert_close(found, g, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 6), st.floats(0, 1), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_gems_projection_equals_a_generic_solver_and_keeps_its_constraints(tasks, margin, seed):
    rng = torch.Generator().manual_seed(seed)
    G = torch.randn(tasks, 30, generator=rng, dtype=torch.float64)
    g = torch.randn(30, generator=rng, dtype=torch.float64)
    v = dual(G @ G.T, G @ g, margin)
    assert (v >= margin - 1e-12).all()
    P = (G @ G.T).numpy() + 1e-3 * float((G**2).sum(1).mean()) * np.eye(tasks)
    q = (G @ g).numpy()
    generic = minimize(
        lambda v: 0.5 * v @ P @ v + q @ v, np.full(tasks, margin + 1.0), jac=lambda v: P @ v + q,
        bounds=[(margin, None)] * tasks, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10},
    )  # fmt: skip
    np.testing.assert_allclose(v.numpy(), generic.x, atol=1e-4)
    projected = g + v @ G
    # Every past loss falls or stays, up to what the thousandth on the diagonal allows.
    slack = 1e-3 * float((G**2).sum(1).mean()) * float(v.max())
    assert ((G @ projected) >= -slack - 1e-9).all()


def test_gems_step_leaves_a_gradient_alone_that_harms_nobody():
    stream = toy_stream(2)
    net = new_net(stream).train()
    images = stream.spec.preprocess(stream.tasks[0].train_eval.store[:8])
    targets, ids = stream.tasks[0].train_eval.targets[:8], torch.ones(8, dtype=torch.long)
    rule = Constrained(1, 0.5)
    rule.begin(net)
    # The reference batch is the batch itself: their gradients agree.
    twice = Batch(torch.cat([images, images]), torch.cat([targets, targets]), torch.cat([ids, ids]), 8)
    rule.loss(net, twice, OBJECTIVE).backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    rule.adjust(net, twice, OBJECTIVE)
    assert all(torch.equal(a, p.grad) for a, p in zip(before, net.parameters(), strict=True))
    # Wrong labels: the references oppose it, and the projected gradient no longer raises their loss.
    wrong = Batch(twice.inputs, torch.cat([targets, (targets + 1) % 2]), twice.task_ids, 8)
    net.zero_grad()
    rule.loss(net, wrong, OBJECTIVE).backward()
    loss = OBJECTIVE.loss(net(images, ids), wrong.targets[8:])
    reference = torch.autograd.grad(loss, list(net.parameters()))
    gradients = [parameter.grad for parameter in net.parameters()]
    assert dot(gradients, reference) < 0
    rule.adjust(net, wrong, OBJECTIVE)
    assert dot([parameter.grad for parameter in net.parameters()], reference) > -1e-4


# What is kept


def test_a_reservoir_keeps_every_example_equally_likely():
    """Three tasks of 40, 25 and 35 into 10 slots, 4,000 times: chi-square over the 100 examples."""
    counts = np.zeros(100)
    rng = torch.Generator().manual_seed(0)
    for _ in range(4000):
        kept, seen = {}, 0
        for count in (40, 25, 35):
            kept |= {slot: example for example, slot in enumerate(reservoir_slots(10, seen, count, rng).tolist(), seen)}
            seen += count
        kept.pop(NONE)
        assert len(kept) == 10
        counts[list(kept.values())] += 1
    assert chisquare(counts).pvalue > 1e-4


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_every_beginning_of_a_balanced_order_is_balanced(targets, seed):
    targets = torch.tensor(targets)
    order = balanced_order(targets, generator(seed, "b"))
    assert sorted(order.tolist()) == list(range(len(targets)))
    sizes = torch.bincount(targets)
    for end in range(1, len(order) + 1):
        kept = torch.bincount(targets[order[:end]], minlength=len(sizes))
        level = int(kept.max())
        assert all(have >= min(level - 1, size) for have, size in zip(kept.tolist(), sizes.tolist(), strict=True))


@pytest.mark.parametrize("buffer", BUFFERS)
@given(total=st.integers(1, 60), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_a_memory_stays_within_its_total_and_only_gets_smaller(buffer, total, seed):
    tasks, before = toy_stream(4, count=24).tasks, {}
    for arrived in range(1, 5):
        memory = filled(Budget(total=total), tasks[:arrived], seed, buffer)
        assert memory.size()[0] == min(total, 24 * arrived)
        now = {t: set(memory.examples(t).rows.tolist()) for t in range(1, arrived + 1)}
        assert all(now[t] <= before[t] for t in before)
        assert all(len(rows) == len(memory.examples(t)) for t, rows in now.items())
        before = now


def test_a_memory_per_class_has_as_many_of_each():
    tasks = toy_stream(2, count=24).tasks
    memory = filled(Budget(per_class=5), tasks)
    for task in tasks:
        assert torch.bincount(memory.examples(task.id).targets).tolist() == [5] * task.num_outputs


# Methods as a whole


def test_a_memory_larger_than_a_task_keeps_all_of_it():
    method, _, _ = run_toy(toy_config(method="er", memory_per_class=100), toy_stream(2))
    assert set(method.memory.examples(1).rows.tolist()) == set(range(24))


def test_the_two_forms_of_the_replay_loss_differ_by_a_factor():
    """On equal halves the sum of two means is twice the mean over both."""
    stream = toy_stream(2)
    net = new_net(stream).eval()
    images = stream.spec.preprocess(stream.tasks[0].train_eval.store[:16])
    batch = Batch(images, stream.tasks[0].train_eval.targets[:16], torch.tensor([1, 2] * 8), 8)
    rules = [rule_of("er", replay_loss=form) for form in ("mean", "sum")]
    mean, both = (float(rule.loss(net, batch, OBJECTIVE).detach()) for rule in rules)
    assert both == pytest.approx(2 * mean, rel=1e-5)


def test_finetuning_forgets_and_remembering_does_not():
    """Two tasks with the same images and opposite labels in a shared trunk: replay, springs and isolation help."""
    stream = toy_stream(4, count=60)
    after = {}
    for name in ("finetune", "er", "isolated"):
        config = toy_config(method=name, hp={"epochs": 8})
        _, _, predictions = run_toy(config, stream)
        answers = [predictions[-1][t.id].argmax(1) == t.test.targets for t in stream.tasks[:-1]]
        after[name] = float(torch.cat(answers).float().mean())
    assert after["finetune"] < min(after["er"], after["isolated"])


@pytest.mark.parametrize("method", ["finetune", "ewc"])
def test_batch_normalisation_of_each_task(method):
    """per_task: a task is answered with its own statistics, however long ago; frozen: nobody's change."""
    stream = toy_stream(3)
    states = {}
    for bn in ("shared", "per_task", "freeze_after_first"):
        learner, _, _ = run_toy(toy_config(method=method, settings={"bn": bn}), stream)
        states[bn] = learner
    first, _, _ = run_toy(toy_config(method=method, settings={"bn": "shared"}), toy_stream(1))
    name = "norm2.running_mean"
    norm, norms = trunk_of(first).norm2, {bn: trunk_of(learner).norm2 for bn, learner in states.items()}
    assert torch.equal(states["per_task"].task_weights(1)[name], norm.running_mean)
    assert torch.equal(norms["freeze_after_first"].running_mean, norm.running_mean)
    assert torch.equal(norms["freeze_after_first"].weight, norm.weight)
    assert not torch.equal(norms["shared"].running_mean, norm.running_mean)
    # Asking about an old task does not disturb the newest one.
    newest = norms["per_task"].running_mean.clone()
    states["per_task"].predict(stream.tasks[0])
    assert torch.equal(norms["per_task"].running_mean, newest)


def test_heads_of_other_tasks_are_not_touched():
    before, after = (run_toy(toy_config(method="finetune"), toy_stream(tasks))[0].network([1]) for tasks in (1, 3))
    assert torch.equal(before.weight, after.weight)
    assert torch.equal(before.bias, after.bias)


def test_an_isolated_ensemble_spends_what_the_zoo_spends():
    stream = toy_stream(4)
    spent = {}
    for name in ("zoo", "isolated_ensemble"):
        _, history, _ = run_toy(toy_config(method=name, tasks_per_round=3), stream)
        spent[name] = [learned.stats.gradients for learned in history]
    assert spent["zoo"] == spent["isolated_ensemble"]


def test_joint_is_the_zoos_warm_start():
    """One network on all tasks, in the multi-task mode."""
    stream = toy_stream(3)
    _, history, joint = run_toy(toy_config(method="joint", continual=False, rounds=1), stream)
    assert history[0].tasks == (1, 2, 3)
    _, _, warm = run_toy(toy_config(method="zoo", continual=False, rounds=1, warm_start=True), stream)
    assert all(torch.equal(joint[0][t], warm[0][t]) for t in (1, 2, 3))


def test_cumulative_has_one_network_of_all_tasks_seen():
    stream = toy_stream(2)
    method, history, _ = run_toy(toy_config(method="cumulative"), stream)
    assert [learned.tasks for learned in history] == [(1,), (1, 2)]
    assert method.storage().members_per_prediction == 1
    assert method.storage().examples == 48


def test_gradients_of_replayed_examples_are_counted():
    """3 tasks of 24 in batches of 8 over two epochs: six steps a task, from the second on with 16 replayed examples."""
    _, history, _ = run_toy(toy_config(method="er", settings={"replay_batch": 16}), toy_stream(3))
    assert [learned.stats.images for learned in history] == [48, 48, 48]
    assert [learned.stats.gradients for learned in history] == [48, 48 + 6 * 16, 48 + 6 * 16]


def test_what_is_recorded_comes_with_its_example():
    """The recorded outputs of example i are made i everywhere: they must come with the image of example i."""
    stream = toy_stream(2)
    method, _, _ = run_toy(toy_config(method="der", memory_per_class=4), toy_stream(1))
    kept = method.memory.examples(1)
    method.recorded[1] = kept.rows.float()[:, None].expand(-1, 3)
    batch = next(method.past(stream.tasks[1])[0])
    shown = {tuple(image.flatten().tolist()): row for row, image in enumerate(stream.spec.preprocess(kept.store))}
    method.recipe = replace(method.recipe, augment=False)
    batch = next(method.past(stream.tasks[1])[0])
    assert [shown[tuple(image.flatten().tolist())] for image in batch.inputs] == batch.recorded[:, 0].tolist()


def test_a_reservoir_without_a_total_is_refused(tmp_path):
    path = tmp_path / "er.yaml"
    path.write_text("{memory_per_class: 4, buffer: reservoir, replay_batch: 8, replay_loss: mean, bn: shared}")
    options = {"method": "er", "continual": True, "method_config": str(path)}
    with pytest.raises(UserError, match="setting buffer is 'reservoir', which has a total: add --memory"):
        with_settings(configure(**options))
    assert with_settings(configure(memory=5, **options)).settings.buffer == "reservoir"


@pytest.mark.parametrize("method", ["ewc", "ewc_online", "si"])
def test_springs_do_not_hold_what_each_task_has_of_its_own(method):
    learner, _, _ = run_toy(toy_config(method=method, settings={"bn": "per_task"}), toy_stream(1))
    held = learner.rule().stiffness
    assert {"trunk.conv1.weight", "trunk.conv2.weight", "trunk.conv3.weight"} == set(held)
    learner, _, _ = run_toy(toy_config(method=method, settings={"bn": "shared"}), toy_stream(1))
    assert "trunk.norm2.weight" in learner.rule().stiffness


@pytest.mark.parametrize("method", ["finetune", "isolated"])
def test_a_network_that_the_last_step_destroyed_is_not_believed(method, monkeypatch):
    class Destroying(Training):
        def __init__(self, net, *given, **options):
            super().__init__(net, *given, **options)
            self.net = net

        def complete(self):
            stats = super().complete()
            self.net.weight.data.fill_(math.nan)
            return stats

    for module in ("single", "ensemble"):
        monkeypatch.setattr(f"methods.{module}.Training", Destroying)
    with pytest.raises(TrainingError, match=r"episode 1.*: the prediction is not finite after training; try a smaller"):
        run_toy(toy_config(method=method), toy_stream(1))
