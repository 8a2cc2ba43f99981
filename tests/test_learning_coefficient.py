"""The local learning coefficient: potentials with known coefficients, diagnostics of chains, and networks."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from datasets import build_stream
from evaluation.flat_loss import FlatLoss
from evaluation.hessian import eigenvalues
from evaluation.landscape import polygons
from evaluation.learning_coefficient import (
    Sampler,
    SamplingSettings,
    between_chains,
    effective_samples,
    estimate,
    estimates,
    largest_curvature,
)
from evaluation.questions import EVALUATIONS, check_evaluations, settings_asked
from evaluation.subject import Subject
from methods.base import new_network
from records.configuration import obstacle, plain_config, saved_config
from records.invocation import configure
from records.resume import differs
from tests.polygons import at_polygon
from tests.toys import CPU
from utils.errors import UserError
from utils.seeding import generator

N = 1000


def sampled(loss, centre, n=N, **given):
    """Independent estimates of the coefficient of an expected loss."""
    count = given.pop("count", 1)
    return estimates(lambda w, _: loss(w), centre, n, [Sampler(**given)] * count, generator(0, "llc"))


# Potentials


@pytest.mark.parametrize(("loss", "size", "known", "step"), [
    (lambda w: w[:, :3].square().sum(1) / 2, 4, 1.5, 3e-4),  # quadratic of rank 3: r / 2
    (lambda w: w[:, 0] ** 4, 1, 0.25, 1e-3),
], ids=["rank 3", "w^4"])  # fmt: skip
def test_learning_coefficients_that_are_known(loss, size, known, step):
    centre = torch.zeros(size, dtype=torch.float64)
    found = sampled(loss, centre, step=step, localisation=0.1, chains=100, steps=2000, burn_in=500, count=4)
    for each in found:
        assert each.value == pytest.approx(known, rel=0.1)
        assert each.between_chains < 1.05
        assert 100 < each.effective_samples < 100 * 2000
        assert each.trace.shape == (100, 2500)
    assert sum(abs(each.value - known) < 2 * each.stderr for each in found) >= 3


def expected(n, localisation):
    """E X and Var X, X = t (x y)^2, under exp(-X - localisation (x^2 + y^2) / 2), by quadrature; t = n / log n."""
    t = n / math.log(n)

    def moment(power):
        # Over y in closed form: a Gaussian of the precision p has the mass p^-1/2 and E y^2 = 1 / p, E y^4 = 3 / p^2.
        def integrand(x):
            p = localisation + 2 * t * x * x
            return math.exp(-localisation * x * x / 2) * p**-0.5 * (t * x * x / p) ** power * (1, 1, 3)[power]

        return 2 * quad(integrand, 0, 10 / math.sqrt(localisation), points=[0.01, 0.1, 1], limit=500)[0]

    mass, first, second = map(moment, range(3))
    return first / mass, second / mass - (first / mass) ** 2


def test_a_singularity_of_multiplicity_2():
    n, localisation = 1e5, 10.0
    mean, variance = expected(n, localisation)  # the mean is far below 1/2, which it approaches as 1 / log n
    assert mean + math.sqrt(mean - variance) == pytest.approx(0.5, rel=0.01)
    given = {"step": 2e-5, "localisation": localisation, "chains": 1000, "steps": 6000, "burn_in": 3000, "count": 2}
    for found in sampled(lambda w: (w[:, 0] * w[:, 1]).square(), torch.zeros(2, dtype=torch.float64), n, **given):
        assert found.value == pytest.approx(mean, rel=0.04)
        value, stderr = found.of_multiplicity(2)
        assert value == pytest.approx(0.5, rel=0.1)
        assert abs(value - 0.5) < 2 * stderr < 0.03
        assert found.of_multiplicity(1) == (found.value, found.stderr)


def reduced_rank(inputs, hidden, outputs, rank):
    """The coefficient of y = B A x at rank r, and its multiplicity, by the four cases of the formula.

    Source: Aoyagi and Watanabe, "Stochastic complexities of reduced rank regression in Bayesian estimation" (2005).
    """
    M, H, N, r = inputs, hidden, outputs, rank
    if N + r > M + H:
        return (H * M - H * r + N * r) / 2, 1
    if M + r > N + H:
        return (H * N - H * r + M * r) / 2, 1
    if H + r > M + N:
        return M * N / 2, 1
    odd = (M + H + N + r) % 2
    return (-((H + r) ** 2) - M**2 - N**2 + 2 * (H + r) * (M + N) + 2 * M * N + odd) / 8, 1 + odd


@pytest.mark.parametrize(("sizes", "step", "steps"), [
    ((2, 2, 2, 0), 0.3, 2200), ((2, 2, 3, 1), 0.05, 2200), ((3, 2, 3, 1), 0.05, 2200),  # more than a parabola
    ((1, 1, 4, 1), 0.02, 1500), ((4, 1, 1, 1), 0.02, 1500), ((1, 3, 1, 1), 0.02, 1500),
], ids=str)  # fmt: skip
def test_reduced_rank_regression(sizes, step, steps):
    M, H, N, r = sizes
    known, _ = reduced_rank(*sizes)
    truth, first, second = (torch.zeros(shape, dtype=torch.float64) for shape in ((N, M), (H, M), (N, H)))
    for part in (truth, first, second):
        part.diagonal()[:r] = 1  # the most singular of all points with this product
    centre = torch.cat([first.flatten(), second.flatten()])

    def loss(w):
        product = w[:, H * M :].unflatten(1, (N, H)) @ w[:, : H * M].unflatten(1, (H, M))
        return (product - truth).square().sum((1, 2)) / 2  # of normal inputs

    n = 10_000
    given = {"step": step * math.log(n) / n, "chains": 150, "steps": steps - 700, "burn_in": 700}
    (found,) = sampled(loss, centre, n, **given)
    assert found.value == pytest.approx(known, rel=0.1)
    if 1 in sizes[:3]:  # a parabola, so that n is large enough
        assert abs(found.value - known) < 3 * found.stderr


# Chains


def test_diagnostics_of_chains():
    rng = np.random.default_rng(0)
    plain = torch.tensor(rng.normal(size=(8, 4000)))
    assert effective_samples(plain) == pytest.approx(8 * 4000, rel=0.15)
    slow = torch.zeros(8, 4000, dtype=torch.float64)
    for t in range(1, 4000):  # autocorrelation .9^k: each sample is worth (1 - .9) / (1 + .9)
        slow[:, t] = 0.9 * slow[:, t - 1] + plain[:, t]
    assert effective_samples(slow) == pytest.approx(8 * 4000 / 19, rel=0.25)
    assert between_chains(plain) == pytest.approx(1, abs=0.01)
    assert between_chains(plain + torch.arange(8).unsqueeze(1)) > 2


def test_chains_that_leave_are_counted_and_left_out():
    def cliff(w):
        return w.square().sum(1) / 2 - 100 * (w[:, 0] > 0.3) * (w[:, 0] - 0.3) ** 2  # down, further and further

    centre = torch.zeros(2, dtype=torch.float64)
    (found,) = sampled(cliff, centre, step=1e-3, chains=64, steps=400, burn_in=100)
    assert 0 < found.left < 64
    assert len(found.trace) == 64 - found.left
    assert found.trace.isfinite().all()
    (none,) = sampled(lambda w: -w.square().sum(1), centre, step=1e-2, chains=4, steps=400, burn_in=100)
    assert none.left == 4
    assert math.isnan(none.value)


def test_samplers_that_compute_together_are_each_its_own():
    centre, rng = torch.zeros(3, dtype=torch.float64), generator(0, "together")
    curvatures = torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64)
    samplers = [Sampler(step, gamma, 300, 800, 300) for step, gamma in ((0.003, 1.0), (0.006, 1.0), (0.003, 40.0))]
    found = estimates(lambda w, _: (curvatures * w.square()).sum(1) / 2, centre, N, samplers, rng)
    stiff = N / math.log(N) * curvatures
    for sampler, each in zip(samplers, found, strict=True):
        total = stiff + sampler.localisation
        # The stationary variance of w <- (1 - s k / 2) w + sqrt(s) noise is 1 / (k (1 - s k / 4)).
        known = float((stiff / (2 * total * (1 - sampler.step * total / 4))).sum())
        assert abs(each.value - known) < 4 * each.stderr


def test_a_batch_is_of_rows():
    data = torch.arange(N, dtype=torch.float64) % 2 + 0.5  # of the mean 1

    def loss(w, rows):
        return (data if rows is None else data[rows]).expand(len(w), -1).mean(1) * w.square().sum(1) / 2

    sampler = Sampler(1e-3, 0.1, 100, 1000, 300, batch=20)
    found = estimate(loss, torch.zeros(2, dtype=torch.float64), N, sampler, generator(0, "batch"))
    assert found.value == pytest.approx(1, rel=0.1)


def test_the_largest_curvature():
    matrix = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = matrix @ matrix.T
    found = largest_curvature(
        lambda w, _: (w @ matrix * w).sum(1) / 2, torch.ones(6).double(), torch.Generator().manual_seed(0)
    )
    assert found == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=0.02)


# Networks

FEW = SamplingSettings(chains=2, steps=16, burn_in=0)


def test_the_coefficient_of_the_hexagon():
    found = EVALUATIONS["learning_coefficient"].about(
        at_polygon("6-gon"), SamplingSettings(chains=6, steps=1050, burn_in=350)
    )
    assert found["estimate"].value == pytest.approx(8.5, rel=0.1)
    assert found["by dimension"].value == 8.5
    assert found["between chains"].value < 1.1
    assert found["chains that left"].value == 0
    assert found["loss"].value == pytest.approx(polygons(6)[-1].loss, abs=1e-4)
    for name in ("step halved", "step doubled", "localisation halved", "localisation doubled"):
        assert found[f"estimate, {name}"].value == pytest.approx(8.5, rel=0.15)
    trace = [found[f"trace {place}"].value for place in range(1, 17)]
    assert trace[0] < min(trace[4:])  # chains begin at the minimum
    assert np.mean(trace[4:]) == pytest.approx(found["estimate"].value, rel=1e-3)  # a quarter is burn-in


@pytest.mark.parametrize(("name", "known"), [("5-gon+", 8.5), ("5-gon-", 7), ("3-gon-", None)])
def test_the_coefficient_by_dimension(name, known):
    found = EVALUATIONS["learning_coefficient"].about(at_polygon(name), FEW)
    # A triangle is at kinks in many directions: its energy is no parabola, and half the rank would be wrong.
    assert known is None if "by dimension" not in found else found["by dimension"].value == known


def test_the_estimate_is_corrected_for_a_multiplicity_that_is_known():
    plain, corrected = (
        EVALUATIONS["learning_coefficient"].about(at_polygon("5-gon-"), replace(FEW, multiplicity=m))["estimate"]
        for m in (1, 2)
    )
    assert corrected.value >= plain.value
    assert corrected.value != plain.value


def test_a_network_that_is_at_no_minimum_is_moved_to_one():
    away = at_polygon("6-gon", shift=0.02)
    found = EVALUATIONS["learning_coefficient"].about(away, FEW)
    assert found["fall"].value > 10
    assert found["by dimension"].value == 8.5
    stays = EVALUATIONS["learning_coefficient"].about(away, SamplingSettings(chains=2, steps=16, burn_in=0, descent=0))
    assert stays["fall"].value == 0
    assert "by dimension" not in stays


def test_a_loss_that_is_flat_has_no_estimate_unless_the_chains_are_told_how_to_go():
    subject, ask = at_polygon("6-gon"), EVALUATIONS["learning_coefficient"].about
    with torch.no_grad():
        subject.net.trunk.bias.fill_(-100.0)  # no output is ever above 0
    assert set(ask(subject, FEW)) == {"loss"}
    found = ask(subject, replace(FEW, step=1e-4, localisation=1.0))
    assert found["estimate"].value == 0
    assert found["chains that left"].value == 0


def test_networks_with_attention_have_second_derivatives():
    config = configure(
        data_config="config/dataset/modular_addition.yaml", hp_config="config/hyperparam/modular_attention.yaml",
        set={"data.modulus": 5, "net.width": 8},
    ).config  # fmt: skip
    stream = build_stream(config.data, 0, CPU.device)
    task = stream.tasks[0]
    net = new_network(config, stream.spec, {task.id: task.num_outputs}).eval()
    found = EVALUATIONS["learning_coefficient"].about(Subject(net, task, stream.spec, CPU), FEW)
    assert found["step"].value > 0
    loss = FlatLoss(Subject(net, task, stream.spec, CPU), 1000, torch.float64)
    curvature = largest_curvature(loss, loss.centre, generator(0, "curvature"), rounds=100)
    values = eigenvalues(lambda point: loss(point.unsqueeze(0))[0], loss.centre)
    assert curvature == pytest.approx(values.abs().max().item(), rel=0.02)


def test_too_few_examples_are_refused():
    subject = at_polygon("6-gon")
    few = subject.task.with_splits(test=subject.task.test.subset(torch.arange(2)))
    with pytest.raises(UserError, match="the task has 2 to test on"):
        check_evaluations(["learning_coefficient"], {}, subject.net, few)


# Settings


def test_settings_of_evaluations():
    asked = settings_asked(["hessian:end", "geometry"], {"hessian.tolerance": 0.1})
    assert asked["hessian"].tolerance == 0.1
    assert list(asked) == ["hessian"]
    net = at_polygon("6-gon")
    check_evaluations(["hessian"], asked, net.net, net.task)
    few = settings_asked(["hessian"], {"hessian.most_parameters": 17})
    with pytest.raises(UserError, match="18 parameters, more than 17; leave it out, or raise"):
        check_evaluations(["hessian"], few, net.net, net.task)
    for names, given, words in (
        (["geometry"], {"geometry.step": 1}, "geometry has no settings"),
        (["geometry"], {"hessian.tolerance": 1}, "hessian is not asked; --evaluate asks it"),
        (["hessian"], {"hessian": 3}, "hessian has settings; name one: examples, tolerance, most_parameters"),
        (["hessian"], {"hesian.tolerance": 1}, "unknown evaluation 'hesian'; did you mean 'hessian'?"),
        (["hessian"], {"hessian.tolerence": 1}, "unknown key 'tolerence'; did you mean 'tolerance'?"),
        (["hessian"], {"hessian.tolerance": 2}, "tolerance is 2; it must be a number at least 0"),
    ):
        with pytest.raises(UserError, match=words.replace("?", r"\?")):
            settings_asked(names, given)


def test_settings_of_evaluations_are_part_of_a_run():
    usual = {"data_config": "config/dataset/superposition.yaml", "hp_config": "config/hyperparam/autoencoder.yaml"}
    key = "ask.learning_coefficient.step"
    one, other = (configure(**usual, evaluate="learning_coefficient", set={key: step}).config for step in (1e-4, 2e-4))
    content = plain_config(one)
    assert content["ask"]["learning_coefficient"] == {**vars(SamplingSettings()), "step": 1e-4}
    assert saved_config("config.yaml", content) == one
    assert "ask" not in plain_config(configure(**usual, evaluate="geometry").config)
    assert obstacle(content, plain_config(other)) is None  # the networks are the same
    assert differs(key, other, one, ())  # a resumed run may not change them
    assert not differs(key, one, one, ())
    with pytest.raises(UserError, match="step is 0; it must be a number above 0"):
        configure(**usual, evaluate="learning_coefficient", set={key: 0})
