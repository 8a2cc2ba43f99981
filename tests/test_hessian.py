"""The Hessian of the loss of networks, and the loss as a function of a vector of parameters."""

import copy

import pytest
import torch
from torch import nn

from evaluation.flat_loss import FlatLoss
from evaluation.hessian import eigenvalues, negative, rank
from evaluation.questions import EVALUATIONS
from evaluation.subject import Subject
from net import build_net, settings_class
from tests.polygons import at_polygon
from tests.toys import CPU, number_stream, toy_stream
from training.prediction import outputs_on
from utils.seeding import seeded


def subject_of(kind):
    """A small network of each kind of objective; of two tasks, so that there are heads that are not asked."""
    if kind == "features":
        return at_polygon("6-gon", shift=0.1)
    stream = toy_stream(tasks=2, classes=3) if kind == "classes" else number_stream()
    sizes = {task.id: task.num_outputs for task in stream.tasks}
    with seeded(0, "hessian"):
        net = build_net("mlp", stream.spec.input_shape, settings_class("mlp")(widths=(4,)), sizes)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    return Subject(net.eval(), stream.tasks[0], stream.spec, CPU)


@pytest.mark.parametrize("kind", ["features", "classes", "numbers"])
def test_the_flat_loss_is_the_loss_of_the_network(kind):
    subject = subject_of(kind)
    loss, examples, own = FlatLoss(subject, 10**6), subject.task.test, copy.deepcopy(subject.net)
    points = loss.centre + 0.1 * torch.randn(3, len(loss.centre), generator=torch.Generator().manual_seed(0))
    rows = torch.randint(len(examples), (3, 7), generator=torch.Generator().manual_seed(1))
    whole, parts = loss(points), loss(points, rows)
    for place, point in enumerate(points):
        nn.utils.vector_to_parameters(point, [value for value in own.parameters() if value.requires_grad])
        for found, chosen in ((whole, examples), (parts, examples.subset(rows[place]))):
            outputs = torch.cat(list(outputs_on(own, 1, chosen, subject.spec, CPU)))
            assert found[place].item() == pytest.approx(
                subject.spec.objective.loss(outputs, chosen.targets).item(), rel=1e-5
            )
    assert (loss.centre == nn.utils.parameters_to_vector(v for v in subject.net.parameters() if v.requires_grad)).all()


@pytest.mark.parametrize("kind", ["features", "numbers"])
def test_the_hessian_is_that_of_finite_differences(kind):
    subject = subject_of(kind)
    loss = FlatLoss(subject, 50, torch.float64)
    size, step = len(loss.centre), 1e-6
    differences = []
    for direction in torch.eye(size, dtype=torch.float64) * step:
        slopes = []
        for point in (loss.centre + direction, loss.centre - direction):
            point.requires_grad_()
            slopes.append(torch.autograd.grad(loss(point.unsqueeze(0))[0], point)[0])
        differences.append((slopes[0] - slopes[1]) / (2 * step))
    expected = torch.linalg.eigvalsh(torch.stack(differences)).flip(0)
    assert (eigenvalues(lambda point: loss(point.unsqueeze(0))[0], loss.centre) - expected).abs().max() < 1e-6


def test_a_quadratic_with_a_known_spectrum():
    spectrum = torch.tensor([3.0, 1.0, 0.01, 0.0, -0.5], dtype=torch.float64)
    turned = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double())[0]
    matrix = turned @ spectrum.diag() @ turned.T
    found = eigenvalues(lambda point: point @ matrix @ point / 2, torch.ones(5).double())
    assert (found - spectrum).abs().max() < 1e-9
    assert (rank(found, 1e-3), rank(found, 1e-2), negative(found)) == (4, 3, 1)


@pytest.mark.parametrize(("name", "expected"), [("6-gon", 17), ("5-gon+", 17), ("5-gon-", 14)])
def test_the_rank_at_polygons(name, expected):
    found = EVALUATIONS["hessian"].ask(at_polygon(name))
    assert found["rank"].value == expected
    assert found["negative"].value == 0
    values = [found[f"eigenvalue {place}"].value for place in range(1, 19)]
    assert values == sorted(values, reverse=True)
    assert found["trace"].value == pytest.approx(sum(values))
