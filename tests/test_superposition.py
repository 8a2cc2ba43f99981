"""Superposition: sparse features, the autoencoder, exact losses and geometry."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import train_task
from datasets import build_stream
from datasets.objectives import Reconstruction
from datasets.synthetic.superposition import KINDS, Law, importances, table
from evaluation import phases
from evaluation.geometry import measures, polygon_of
from evaluation.landscape import (
    dimensions,
    one_active_loss,
    one_hot_loss,
    polygon_weights,
    polygons,
    polygons_without_biases,
    two_features_loss,
)
from evaluation.questions import EVALUATIONS
from evaluation.subject import Subject
from net import build_net, settings_class
from net.autoencoder import Autoencoder
from net.stack import Stack, stackable
from records.invocation import configure
from records.run import Run
from tests.toys import CPU
from utils.errors import UserError
from utils.seeding import generator, seeded
from utils.settings import read


def stream_of(tmp_path, **content):
    """A stream from a YAML file of these keys."""
    (tmp_path / "d.yaml").write_text(str({"dataset": "superposition", "tasks": ["k_hot"], **content}).replace("'", '"'))
    config = configure(data_config=str(tmp_path / "d.yaml"), hp_config="config/hyperparam/autoencoder.yaml").config
    return build_stream(config.data, 0, CPU.device)


# Features


@pytest.mark.parametrize("kind", ["sparse", "k_hot", "correlated", "anticorrelated"])
def test_how_often_features_and_pairs_of_them_are_there(kind):
    law = Law(features=6, probability=0.3, active=2, group=3)
    there = KINDS[kind](60_000, law, generator(0, kind)).double()
    each = {"sparse": 0.3, "k_hot": 2 / 6, "correlated": 0.3, "anticorrelated": 0.1}[kind]
    inside = {"sparse": 0.09, "k_hot": 1 / 15, "correlated": 0.3, "anticorrelated": 0}[kind]
    across = {"sparse": 0.09, "k_hot": 1 / 15, "correlated": 0.09, "anticorrelated": 0.01}[kind]
    together = there.T @ there / len(there)
    for i, j in itertools.product(range(6), repeat=2):
        expected = each if i == j else inside if i // 3 == j // 3 else across
        assert together[i, j] == pytest.approx(expected, abs=5 * math.sqrt(expected / 60_000) + 1e-9)


def test_a_stream_of_tasks_with_importances_of_their_own(tmp_path):
    tasks = ['{"task": "sparse", "decay": 0.5}', '{"task": "k_hot", "active": 2, "values": "ones", "averaged": true}']
    (tmp_path / "d.yaml").write_text(
        f'{{"dataset": "superposition", "features": 4, "dev_examples": 50, "tasks": [{", ".join(tasks)}]}}'
    )
    config = configure(data_config=str(tmp_path / "d.yaml"), hp_config="config/hyperparam/autoencoder.yaml").config
    first, second = build_stream(config.data, 0, CPU.device).tasks
    for task, weights in ((first, [1, 0.5, 0.25, 0.125]), (second, [0.25] * 4)):
        examples = task.splits["dev"]
        values, found = examples.targets.unbind(1)
        assert torch.equal(values, examples.store[examples.rows])
        assert found.unique(dim=0).tolist() == [weights]
    ones = second.splits["dev"].store
    assert set(ones.unique().tolist()) == {0, 1}
    assert (ones.sum(1) == 2).all()
    assert 0 < first.splits["dev"].store.max() < 1


def test_the_table_has_every_choice_once(tmp_path):
    rows = table(Law(features=5, active=2))
    expected = [[float(i in pair) for i in range(5)] for pair in itertools.combinations(range(5), 2)]
    assert rows.tolist() == expected
    task = stream_of(tmp_path, tasks=["table"], features=5, active=2).tasks[0]
    assert task.train.epoch(None).store.tolist() == expected
    with pytest.raises(UserError, match="a table of 19,619,725,782,651,120 choices is too large"):
        stream_of(tmp_path, tasks=["table"], features=64, active=20)


# The autoencoder


@pytest.mark.parametrize("settings", [
    {}, {"tied": False}, {"bias": False}, {"hidden_bias": True}, {"activation": "identity", "scale": 2.0},
    {"lengths": "unit"}, {"lengths": "equal"}, {"trained_scale": True, "tied": False, "hidden_bias": True},
])  # fmt: skip
def test_the_autoencoder_is_its_formula(settings):
    with seeded(0, "autoencoder"):
        nets = [build_net("autoencoder", (5,), read(Autoencoder.Settings, "net", {"hidden": 3, **settings}), {1: 5},
                          "identity").double() for _ in range(3)]  # fmt: skip
    inputs, outputs = torch.rand(3, 7, 5, dtype=torch.float64), []
    for net, own in zip(nets, inputs, strict=True):
        for parameter in net.trunk.parameters():
            torch.nn.init.normal_(parameter)
        trunk = net.trunk
        W = trunk.encoder
        if trunk.lengths != "free":
            sizes = W.norm(dim=0)
            W = W / sizes * (1 if trunk.lengths == "unit" else sizes.mean())
        hidden = own @ W.T + (trunk.hidden_bias if settings.get("hidden_bias") else 0)
        before = hidden @ (W if trunk.decoder is None else trunk.decoder.T) + (0 if trunk.bias is None else trunk.bias)
        y = before if settings.get("activation") == "identity" else before.clamp_min(0)
        y = y * (trunk.factor if settings.get("trained_scale") else settings.get("scale", 1.0))
        assert (net(own, torch.ones(7, dtype=torch.int64)) - y).abs().max() < 1e-12
        outputs.append(y)
    assert stackable(nets[0])
    together = Stack(nets)(inputs, torch.ones(3, 7, dtype=torch.int64))  # [S, f, B]
    assert (together.transpose(1, 2) - torch.stack(outputs)).abs().max() < 1e-12
    tied = settings.get("tied", True)
    names = {name for name, _ in nets[0].trunk.named_parameters()}
    assert ("decoder" in names) == (not tied)  # one parameter for tied weights


# Exact losses


@pytest.mark.parametrize("weights", [(0.9, 0.4), (-0.9, -0.4), (0.9, -0.4), (0.4, -0.9), (-0.9, 0.4), (1.2, 0.0)])
def test_the_loss_of_two_features_is_that_of_drawn_ones(weights):
    rng, w = torch.Generator().manual_seed(0), torch.tensor(weights, dtype=torch.float64)
    x = torch.rand(400_000, 2, generator=rng, dtype=torch.float64)
    x *= torch.rand(400_000, 2, generator=rng) > 0.5
    losses = (x - ((x @ w).unsqueeze(1) * w).relu()).square().sum(1)
    assert two_features_loss(w[0], w[1], 0.5).item() == pytest.approx(losses.mean().item(), abs=1e-3)


def test_the_loss_of_one_feature_at_a_time_is_that_of_drawn_ones():
    rng = torch.Generator().manual_seed(1)
    W, b = torch.randn(2, 6, generator=rng, dtype=torch.float64), torch.randn(6, generator=rng, dtype=torch.float64) / 3
    W[:, 2] = 0  # a level line
    x = torch.zeros(600_000, 6, dtype=torch.float64)
    x[torch.arange(len(x)), torch.arange(len(x)) % 6] = torch.rand(len(x), generator=rng, dtype=torch.float64)
    losses = (x - (x @ W.T @ W + b).relu()).square().sum(1)
    assert one_active_loss(W, b).item() == pytest.approx(losses.mean().item(), abs=5 * losses.std().item() / 770)


def test_the_polygons_are_the_published_critical_points():
    found = {polygon.name: polygon for polygon in polygons(6)}
    published = {"2-gon+": 0.19444, "3-gon+": 0.14583, "4-gon+": 0.09722, "5-gon+": 0.06180, "5-gon-": 0.06874,
                 "6-gon": 0.04819}  # fmt: skip
    for name, loss in published.items():
        assert found[name].loss == pytest.approx(loss, abs=1e-5)
    assert (found["5-gon+"].length, found["5-gon+"].bias) == pytest.approx((1.1704, -0.2822), abs=2e-4)
    assert (found["6-gon"].length, found["6-gon"].bias) == pytest.approx((1.3203, -0.6178), abs=2e-3)
    five = found["5-gon+"]  # critical: no slope in any direction
    W, b = polygon_weights(5, 6, five.length, five.bias, 1 / 12)
    W.requires_grad_(), b.requires_grad_()
    for gradient in torch.autograd.grad(one_active_loss(W, b), (W, b)):
        assert gradient.abs().max() < 1e-4


def test_every_sign_of_dead_biases_has_its_critical_loss():
    found = polygons(6, mixed=True)
    assert len(found) == 5 + 4 + 3 + 2 + 1
    assert set(polygons(6)) <= set(found)
    for point in found:
        W, b = polygon_weights(point.k, 6, point.length, point.bias, -0.5)
        b[point.k : point.k + point.positive] = 1 / 12
        assert one_active_loss(W, b).item() == pytest.approx(point.loss, abs=1e-12)
    assert {point.name for point in found if point.k == 4} == {"4-gon+", "4-gon+-", "4-gon-"}
    # Ranks of the Hessian counted by hand: 12 + 6 parameters, without a rotation, and without those of a dead output.
    known = {point.name: dimensions(point) for point in found if point.k > 3}
    assert known == {"4-gon+": None, "4-gon+-": None, "4-gon-": None, "5-gon+": 8.5, "5-gon-": 7.0, "6-gon": 8.5}


def test_polygons_without_biases_have_the_losses_of_all_one_hot_inputs():
    found = {point.k: point for point in polygons_without_biases(6)}
    for k, loss in {4: 0.055556, 5: 0.050050, 6: 0.055556}.items():  # as means over 36 entries
        assert found[k].loss / 6 == pytest.approx(loss, abs=1e-6)
    for k, point in found.items():
        W, b = polygon_weights(k, 6, point.length, 0, 0)
        outputs = (torch.eye(6).double() @ W.T @ W).relu()
        assert (torch.eye(6) - outputs).square().sum().item() / 6 == pytest.approx(point.loss, abs=1e-12)
        assert one_hot_loss(W, b).item() == pytest.approx(point.loss, abs=1e-12)
        assert one_active_loss(W, b).item() == pytest.approx(point.loss / 3, abs=1e-12)
        for length in (point.length - 1e-3, point.length + 1e-3):
            assert one_hot_loss(polygon_weights(k, 6, length, 0, 0)[0], b) > point.loss


# Two features in one dimension


@pytest.mark.parametrize("weights", [(0.9, -0.4, 0.1, -0.2), (1.0, 0.0, 0.0, 0.2), (0.8, 0.6, -0.1, 0.3)])
def test_the_loss_of_two_features_with_biases_is_that_of_drawn_ones(weights):
    rng, point = torch.Generator().manual_seed(0), torch.tensor(weights, dtype=torch.float64)
    x = torch.rand(400_000, 2, generator=rng, dtype=torch.float64)
    x *= torch.rand(400_000, 2, generator=rng) < 0.4
    w, b = point[:2], point[2:]
    found = (x - ((x @ w).unsqueeze(1) * w + b).relu()).square()
    expected = phases.errors(w, b, 0.4)
    assert ((found.mean(0) - expected).abs() <= 5 * found.std(0) / 400_000**0.5).all()
    plain = phases.errors(w, torch.zeros(2).double(), 0.4) @ torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert plain.item() == pytest.approx(two_features_loss(w[0], w[1], 0.6, importance=3.0).item(), abs=1e-5)


def test_the_best_of_the_three_solutions_changes_at_the_boundary():
    line = phases.boundary(0.5)
    below, above = (phases.candidates(0.5, factor * line) for factor in (0.97, 1.03))
    assert below[phases.FIRST] < below[phases.BOTH]
    assert above[phases.FIRST] > above[phases.BOTH]
    mirrored = phases.candidates(0.5, 1 / (0.97 * line))  # the two features in each other's place
    assert mirrored[phases.SECOND] < mirrored[phases.BOTH]
    assert phases.boundary(1.0) is None
    assert phases.boundary(0.1) < 0.05
    lengths = {(1, 0.1): phases.FIRST, (1, 0.9): phases.BOTH, (0, 1): phases.SECOND, (0, 0): ""}
    assert {pair: phases.phase(pair) for pair in lengths} == lengths


# Geometry


def test_dimensionality_of_known_figures():
    pentagon = polygon_weights(5, 5, 1.0, 0.0, 0.0)[0]
    _, shares, _ = measures(pentagon)
    assert shares.tolist() == pytest.approx([2 / 5] * 5)
    pairs = torch.tensor([[1.0, -1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0, 0.0]])
    lengths, shares, interference = measures(pairs)
    assert lengths.tolist() == [1, 1, 1, 1, 0]
    assert shares.tolist() == [0.5] * 4 + [0]
    assert interference.tolist() == [1, 1, 1, 1, 0]


def turned(vectors, angle):
    """Vectors [2, f] turned by an angle, in another order."""
    c, s = math.cos(angle), math.sin(angle)
    return (torch.tensor([[c, -s], [s, c]]).double() @ vectors)[:, [3, 0, 5, 1, 4, 2]]


@given(angle=st.floats(0, 6.3), place=st.integers(0, 14), seed=st.integers(0, 99), off=st.sampled_from([0, 0.02, 0.6]))
@hypothesis_settings(max_examples=60, deadline=None)
def test_polygons_are_told_by_their_vectors(angle, place, seed, off):
    points = polygons(6, mixed=True)
    point = points[place]
    W, b = polygon_weights(point.k, 6, point.length, point.bias, -0.5)
    b[point.k : point.k + point.positive] = 1 / 12
    W += off * torch.randn(2, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = [3, 0, 5, 1, 4, 2]
    found = polygon_of(turned(W, angle), b[order], points)
    if off < 0.5:
        assert found == point
    elif found is not None:  # far away: at least the lengths are right
        assert (W.norm(dim=0) > 0.5 * found.length).sum() == found.k


def test_features_that_share_a_direction_count_as_one():
    points = polygons_without_biases(6)
    five = next(point for point in points if point.k == 5)
    W = polygon_weights(5, 6, five.length, 0, 0)[0]
    W[:, 5], W[:, 0] = 0.6 * W[:, 0], 0.8 * W[:, 0]  # squared lengths .36 and .64 of the whole
    for angle in (0.0, 1.0, 3.0):
        assert polygon_of(turned(W, angle), None, points) == five
    assert one_hot_loss(W, torch.zeros(6)).item() == pytest.approx(five.loss, abs=1e-9)
    W[:, 5] = -W[:, 5]  # between two others
    assert polygon_of(W, None, points) is None


def test_default_training_without_biases_ends_at_a_polygon(tmp_path):
    data = {"dataset": "superposition", "tasks": ["table"], "values": "ones", "averaged": True}
    (tmp_path / "d.yaml").write_text(str(data).replace("'", '"').replace("True", "true"))
    options = [
        "--set=net.bias=false",
        "--set=hp.lr=2",
        "--steps=1000",
        "--seeds=5",
        "--evaluate=geometry:end",
        "--quiet",
    ]
    files = [f"--data_config={tmp_path}/d.yaml", "--hp_config=config/hyperparam/autoencoder.yaml"]
    assert train_task.main([*files, *options, "--evaluate_at=none", f"--run_dir={tmp_path}/runs"]) == 0
    for seed in range(5):
        rows = Run.load(tmp_path / f"runs/seed{seed}").metrics
        found = rows[rows.scenario == "geometry"].set_index("metric").value
        measured = rows[(rows.split == "test") & (rows.metric == "loss")].value.iloc[-1]
        assert found["loss"] == pytest.approx(measured, abs=1e-5)
        assert found["polygon"] in (4, 5, 6)
        assert found["loss"] == pytest.approx(0.05005 if found["polygon"] == 5 else 0.05556, abs=1e-4)
        assert abs(found["above critical"]) < 1e-4


def test_a_network_at_a_polygon_is_recognised(tmp_path):
    stream = stream_of(tmp_path, test_examples=200)
    five = next(polygon for polygon in polygons(6) if polygon.name == "5-gon+")
    net = build_net("autoencoder", (6,), settings_class("autoencoder")(), {1: 6}, "identity")
    with torch.no_grad():
        W, b = polygon_weights(5, 6, five.length, five.bias, 1 / 12)
        net.trunk.encoder.copy_(W)
        net.trunk.bias.copy_(b)
    found = EVALUATIONS["geometry"].ask(Subject(net, stream.tasks[0], stream.spec, CPU))
    expected = {"polygon": 5, "critical loss": five.loss, "above critical": 0, "represented": 5, "dead": 1,
                "dead, bias above 0": 1, "dead, bias below 0": 0, "dimensionality": 2.0}  # fmt: skip
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-6)
    outputs = net(stream.tasks[0].test.store, torch.ones(200, dtype=torch.int64))
    sampled = Reconstruction().evaluate(outputs.detach(), stream.tasks[0].test.targets)["loss"]
    assert abs(sampled.value - found["loss"].value) < 5 * sampled.stderr


def test_importances():
    assert importances(Law(features=3, decay=0.5)).tolist() == [1, 0.5, 0.25]
    assert importances(Law(features=4, averaged=True)).tolist() == [0.25] * 4


def test_an_autoencoder_may_begin_near_a_polygon():
    def begun(**settings):
        kind = settings_class("autoencoder")
        return build_net("autoencoder", (6,), kind(**settings), {1: 6}, "identity").trunk

    exact = {point.name: point.loss for point in polygons(6)}
    for k, name, dead in ((2, "2-gon+", None), (4, "4-gon+", None), (3, "3-gon-", -0.2)):
        net = begun(start=k, noise=0.0, dead_bias=dead)
        loss = one_active_loss(net.vectors().detach().double(), net.bias.detach().double())
        assert float(loss) == pytest.approx(exact[name], abs=1e-6)
    torch.manual_seed(0)
    spread = torch.cat([begun(start=2, noise=0.3).vectors().detach()[:, 2:].flatten() for _ in range(200)])
    assert float(spread.std()) == pytest.approx(0.3, rel=0.05)
    with pytest.raises(UserError, match="a 7-gon needs hidden: 2, tied: true, lengths: free and at least 7 features"):
        begun(start=7)
    with pytest.raises(UserError, match="there are 3 hidden values"):
        begun(start=2, hidden=3)
    with pytest.raises(UserError, match="lengths: free"):  # dead features have no length
        begun(start=2, noise=0.0, lengths="unit")
