"""Heads in closed form against scikit-learn, and against other orders of the tasks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid

from datasets.scenarios import in_scenario
from datasets.task import TaskStream
from methods.closed_form import HEADS, solve
from tests.toys import run_toy, toy_config, toy_stream


def examples(seed, count=120, features=6, classes=4):
    rng = torch.Generator().manual_seed(seed)
    targets = torch.cat([torch.arange(classes), torch.randint(classes, (count - classes,), generator=rng)])
    centres = torch.randn(classes, features, generator=rng, dtype=torch.float64)
    return centres[targets] + torch.randn(count, features, generator=rng, dtype=torch.float64), targets


def sums_of(h, targets):
    classes = int(targets.max()) + 1
    total = torch.stack([h[targets == c].sum(0) for c in range(classes)])
    return {"n": torch.bincount(targets).double(), "sum": total, "square": h.T @ h}


def scenario_of(stream, scenario):
    """A toy stream in a scenario; where tasks share a head all have three outputs."""
    tasks = stream.tasks if scenario != "domain" else tuple(replace(task, num_outputs=3) for task in stream.tasks)
    return in_scenario(replace(stream, tasks=tasks), scenario)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_ridge_is_that_of_scikit_learn(seed):
    h, targets = examples(seed)
    weight, bias = solve(sums_of(h, targets), "ridge", 0.3)
    twin = Ridge(alpha=0.3 * len(h)).fit(h.numpy(), np.eye(4)[targets.numpy()])
    np.testing.assert_allclose(weight.numpy(), twin.coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(bias.numpy(), twin.intercept_, rtol=1e-8, atol=1e-10)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_linear_discriminant_analysis_is_that_of_scikit_learn(seed):
    h, targets = examples(seed)
    weight, bias = solve(sums_of(h, targets), "lda", 1e-12)
    ours = (h @ weight.T + bias).log_softmax(1)
    twin = LinearDiscriminantAnalysis(solver="lsqr").fit(h.numpy(), targets.numpy())
    np.testing.assert_allclose(ours.numpy(), twin.predict_log_proba(h.numpy()), rtol=1e-6, atol=1e-7)


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_nearest_mean_is_that_of_scikit_learn(seed):
    h, targets = examples(seed)
    weight, bias = solve(sums_of(h, targets), "mean", 1.0)
    twin = NearestCentroid().fit(h.numpy(), targets.numpy())
    assert ((h @ weight.T + bias).argmax(1).numpy() == twin.predict(h.numpy())).all()


@pytest.mark.parametrize("head", HEADS)
def test_a_class_without_examples_is_never_the_answer(head):
    """The other answers are those of the head without it; many examples are nearer to 0 than to any mean."""
    h, targets = examples(0)
    h, targets = h[targets != 1], targets[targets != 1]
    one, other = (solve(sums_of(h, labels), head, 0.1) for labels in (targets, (targets - 1).clamp_min(0)))
    found, expected = ((h @ weight.T + bias).argmax(1) for weight, bias in (one, other))
    assert torch.equal(found, torch.where(expected > 0, expected + 1, 0))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_the_order_of_the_tasks_does_not_matter(head, scenario):
    """Sums are in float64 and weights in float32, so that another order of summation changes no weight."""
    stream = scenario_of(toy_stream(3), scenario)
    config = toy_config(method="closed_form", settings={"head": head})
    forward, _, _ = run_toy(config, stream)
    others = [stream.tasks[place] for place in (2, 0, 1)]
    if scenario == "class":  # the head has outputs for all classes from the first task on, in the same order
        wide = stream.tasks[-1].num_outputs
        others = [replace(task, num_outputs=wide) for task in others]
    renumbered = [replace(task, id=number) for number, task in enumerate(others, 1)]
    backward, _, _ = run_toy(config, TaskStream(stream.spec, tuple(renumbered)))
    for name in ("n", "sum", "square"):
        torch.testing.assert_close(forward.sums[0][name], backward.sums[0][name], rtol=1e-13, atol=1e-12)
    one, other = (learner.network([1]).state_dict() for learner in (forward, backward))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_all_tasks_at_once_give_the_same_head(scenario):
    """The last head is that of one pass over all examples, with the features of the untrained trunk."""
    stream = scenario_of(toy_stream(2), scenario)
    learner, _, _ = run_toy(toy_config(method="closed_form", settings={"head": "ridge", "regularisation": 0.1}), stream)
    parts = stream.tasks if scenario != "task" else stream.tasks[1:]
    net = learner.network([2]).eval()
    with torch.no_grad():
        h = torch.cat(
            [net.trunk(stream.spec.preprocess(t.train_eval.store[t.train_eval.rows])) for t in parts]
        ).double()
    targets = torch.cat([task.train_eval.targets for task in parts])
    twin = Ridge(alpha=0.1 * len(h)).fit(h.numpy(), np.eye(net.head_sizes[2])[targets.numpy()])
    rows = net.rows(2)
    np.testing.assert_allclose(net.weight[rows].detach().numpy(), twin.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(net.bias[rows].detach().numpy(), twin.intercept_, rtol=1e-4, atol=1e-5)
