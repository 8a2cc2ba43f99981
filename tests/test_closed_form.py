"""Heads in closed form against scikit-learn, other orders and splits of the stream, and streams without a class."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid

from datasets.objectives import CrossEntropy
from datasets.scenarios import in_scenario
from datasets.task import Preprocess, StreamSpec, Table, Task, TaskStream
from methods.closed_form import HEADS, solve
from modelzoo import run
from net.random_features import RandomFeatures, RandomFeatureSettings
from records.invocation import configure
from records.run import Run
from tests.toys import configured, run_toy, table, toy_config, toy_stream
from utils.errors import UserError
from zoo import Zoo


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


def linear(head, **settings):
    """A configuration whose heads act on the inputs, or on random features of them."""
    config = toy_config(method="closed_form", settings={"head": head, **settings})
    return replace(config, net=configured("mlp", dropout=0.0, widths=[]))


def vectors(parts, classes):
    """A stream of vectors, a task for each pair of inputs [N, D] and targets, whose tasks share a head."""
    spec = StreamSpec("vectors", tuple(parts[0][0].shape[1:]), CrossEntropy(), Preprocess(), "shared", "domain")
    tables = [table(inputs.float(), targets) for inputs, targets in parts]
    tasks = [Task(number, f"task {number}", classes, Table(own), {"train": own, "test": own.subset(torch.arange(1))})
             for number, own in enumerate(tables, 1)]  # fmt: skip
    return TaskStream(spec, tuple(tasks))


def head_of(learner):
    net = learner.network(learner.seen[:1])
    return net.weight.detach(), net.bias.detach()


@given(st.integers(0, 10**6), st.sampled_from(HEADS), st.lists(st.integers(1, 119), max_size=5, unique=True))
@settings(max_examples=15, deadline=None)
def test_no_order_and_no_split_of_the_stream_matters(seed, head, cuts):
    """Of whole numbers the sums are exact: then not a bit of the head depends on it."""
    h, targets = examples(seed)
    h = (8 * h).round()
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))
    together, _, _ = run_toy(linear(head), vectors([(h, targets)], 4))
    parts = [(h[part], targets[part]) for part in order.tensor_split(sorted(cuts))]
    apart, _, _ = run_toy(linear(head), vectors(parts, 4))
    assert all(map(torch.equal, head_of(together), head_of(apart)))


@pytest.mark.parametrize("kernel", ["relu", "cosine"])
@pytest.mark.parametrize("head", HEADS)
def test_the_order_matters_for_random_features_no_more_than_rounding(head, kernel):
    h, targets = examples(1)
    config = linear(head, random_features=50, kernel=kernel)
    first, _, _ = run_toy(config, vectors([(h[:70], targets[:70]), (h[70:], targets[70:])], 4))
    other, _, _ = run_toy(config, vectors([(h[70:].flip(0), targets[70:].flip(0)), (h[:70], targets[:70])], 4))
    for one, same in zip(first.sums[0].values(), other.sums[0].values(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-13, atol=1e-12)
    for one, same in zip(head_of(first), head_of(other), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("random_features", [0, 50])
@pytest.mark.parametrize("head", HEADS)
def test_unlearning_a_class_equals_never_having_seen_it(head, random_features):
    h, targets = examples(2)
    config = linear(head, random_features=random_features)
    stream = vectors([(h[:60], targets[:60]), (h[60:], targets[60:])], 4)
    learner, _, _ = run_toy(config, stream)
    for task in stream.tasks:
        learner.unlearn(task, [1])
    kept = targets != 1
    never, _, _ = run_toy(config, vectors([(h[kept], targets[kept])], 4))
    for one, same in zip(learner.sums[0].values(), never.sums[0].values(), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-12, atol=1e-11)
    weight, bias = head_of(learner)
    for one, same in zip((weight, bias), head_of(never), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)
    assert bias[1] == -torch.inf or head == "ridge"
    assert not learner.sums[0]["sum"][1].any()


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_unlearning_a_task_equals_never_having_seen_it(scenario):
    stream = scenario_of(toy_stream(3), scenario)
    config = toy_config(method="closed_form", settings={"head": "lda"})
    learner, _, _ = run_toy(config, stream)
    learner.unlearn(stream.tasks[1])
    never, _, _ = run_toy(config, TaskStream(stream.spec, (stream.tasks[0], stream.tasks[2])))
    assert learner.seen == never.seen == [1, 3]
    for task in (stream.tasks[0], stream.tasks[2]):
        found, expected = (own.predict(task) for own in (learner, never))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_what_was_unlearned_before_is_not_taken_out_twice(head):
    """A class twice, then its whole task; the other task has examples of all classes, too."""
    h, targets = examples(3)
    stream = vectors([(h[:60], targets[:60]), (h[60:], targets[60:])], 4)
    learner, _, _ = run_toy(linear(head), stream)
    for classes in ([1], [1, 2], None):
        learner.unlearn(stream.tasks[0], classes)
    never, _, _ = run_toy(linear(head), vectors([(h[60:], targets[60:])], 4))
    for one, same in zip(head_of(learner), head_of(never), strict=True):
        torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_unlearned_leaves_the_head_as_it_was():
    h, targets = examples(4)
    stream = vectors([(h[:60], targets[:60]), (h[60:], targets[60:])], 4)
    learner, _, _ = run_toy(linear("lda"), stream)
    learner.unlearn(stream.tasks[0])
    before = head_of(learner)
    with pytest.raises(UserError, match="task 1 was not learned, or was unlearned before"):
        learner.unlearn(stream.tasks[0])
    with pytest.raises(UserError, match="task 2: no class would be left"):
        learner.unlearn(stream.tasks[1], range(4))
    assert all(map(torch.equal, head_of(learner), before))


@pytest.mark.parametrize(("head", "value"), [("lda", 1e-30), ("ridge", 1e-30), ("lda", 1e-320)])
def test_a_covariance_without_an_inverse_is_one_line(head, value):
    """Two features are the same, or one is 0 everywhere, so that its inverse is beyond all numbers."""
    h, targets = examples(5)
    h[:, 2] = h[:, 1] if value > 1e-300 else 0
    with pytest.raises(UserError, match=f"settings.regularisation: {value:g} is too small"):
        run_toy(linear(head, regularisation=value), vectors([(h, targets)], 4))


@pytest.mark.parametrize("settings", [{"gamma": 1.0}, {"gamma": 1.0, "random_features": 5, "kernel": "relu"}])
def test_gamma_without_cosine_features_is_refused(settings):
    h, targets = examples(6)
    with pytest.raises(UserError, match=r"settings\.gamma: is for random_features with kernel: cosine"):
        run_toy(linear("mean", **settings), vectors([(h, targets)], 4))


@pytest.mark.parametrize(("kernel", "gamma"), [("relu", None), ("cosine", 0.7), ("cosine", None)])
def test_products_of_random_features_tend_to_their_kernel(kernel, gamma):
    """Against the Gaussian kernel (gamma: 1/3 by default), and half the arc-cosine kernel of order 1 over 3 inputs."""
    torch.manual_seed(0)
    h = torch.randn(5, 3)
    features = RandomFeatures(torch.nn.Identity(), 3, RandomFeatureSettings(
        random_features=200_000, kernel=kernel, gamma=gamma))(h).double()  # fmt: skip
    norms = h.norm(dim=1)
    angle = torch.nn.functional.cosine_similarity(h[:, None], h[None], dim=2).clamp(-1, 1).acos()
    arc_cosine = norms.outer(norms) * (angle.sin() + (torch.pi - angle) * angle.cos()) / torch.pi
    expected = (-(gamma or 1 / 3) * torch.cdist(h, h).square()).exp() if kernel == "cosine" else arc_cosine / 6
    torch.testing.assert_close(features @ features.T / 200_000, expected.double(), rtol=0.02, atol=0.01)


def test_random_features_with_a_shared_covariance_know_digits_after_one_pass(tmp_path):
    """The written network answers from its files, random features included; a nearest mean of pixels has 0.90."""
    config = {"model": "mlp", "widths": [], "dropout": 0.0, "batch": 16}
    (tmp_path / "linear.yaml").write_text(yaml.safe_dump(config))
    changes = {"head": "lda", "random_features": 500, "kernel": "cosine", "gamma": 0.005}
    done = run(configure(
        hp_config=str(tmp_path / "linear.yaml"), method="closed_form", continual=True, scenario="class",
        run_dir=str(tmp_path / "run"), quiet=True, set={f"settings.{key}": value for key, value in changes.items()},
    ))  # fmt: skip
    images, targets = load_digits(return_X_y=True)
    test = Zoo.load(done).predict(torch.tensor(images / 16).float().unflatten(1, (1, 8, 8)), "auto")
    assert Run.load(done).summary["avg_acc_final"] > 0.95
    assert np.mean([label == str(target) for label, target in zip(test.labels, targets, strict=True)]) > 0.95
