"""Captured steps against steps launched one by one, and where the data of a GPU run lies."""

from dataclasses import replace

import pytest
import torch

from datasets.mixture import Mixture
from datasets.task import Examples, Table
from methods import METHODS
from tests.test_training import new_net, sources
from tests.toys import CPU, toy_stream
from training.batches import batches
from training.launch import choose_launch
from training.loop import Training
from training.prediction import predict_examples
from training.recipe import Recipe
from training.steps import GradientSteps
from utils.compute import Compute, place
from utils.seeding import generator, seeded

HYPER = Recipe(epochs=4, batch=8, lr=0.05, l2_reg=1e-3)
CUDA = Compute(torch.device("cuda"))


def gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")(test))


class Recorded(GradientSteps):
    """What a CUDA graph does, without one: the same operations on the same tensors as when it was captured."""

    captures = 0

    def _capture(self, place):
        type(self).captures += 1
        return lambda: self._step(place)


def weights(net):
    return torch.cat([value.flatten().float().cpu() for value in net.state_dict().values()])


def test_a_step_replayed_on_fixed_tensors_is_the_same_step(monkeypatch):
    """52 examples in batches of 8: six whole ones and one of 4 in each of four epochs."""
    stream = toy_stream(2, count=26)
    plain, replayed = new_net(stream), new_net(stream)
    one = Training(plain, sources(stream), stream.spec, HYPER, CPU, 0, ("m",)).complete()
    monkeypatch.setattr("training.loop.GradientSteps", Recorded)
    captured = replace(CPU, captured=True)
    other = Training(replayed, sources(stream), stream.spec, HYPER, captured, 0, ("m",)).complete()
    assert Recorded.captures == 2
    assert (one.steps, one.images) == (other.steps, other.images) == (28, 4 * 52)
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    torch.testing.assert_close(weights(replayed), weights(plain), rtol=1e-4, atol=1e-5)


def test_on_a_cpu_there_is_nothing_to_choose():
    stream = toy_stream(1)
    assert choose_launch(new_net(stream), 1, stream.tasks[0].train, stream.spec, HYPER, CPU) == (CPU, "")


def test_steps_that_wait_for_the_device_are_not_captured():
    """Decided before anything is tried on the device, so that it can be tested without one."""
    stream = toy_stream(1)
    compute, launch = choose_launch(
        new_net(stream), 1, stream.tasks[0].train, stream.spec, HYPER, CUDA, METHODS["gem"].no_graph_reason
    )  # fmt: skip
    assert compute == CUDA
    assert not compute.captured
    assert "one operation at a time (whether GEM" in launch


def test_what_does_not_fit_stays_in_the_memory_of_the_host(monkeypatch):
    data = torch.zeros(1000, dtype=torch.uint8)
    assert place(data, CPU.device) is data
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (1999, 10_000))
    assert place(data, CUDA.device) is data


def test_held_data_is_counted_once():
    stream = toy_stream(3, count=24)
    tables = [task.train_eval for task in stream.tasks]
    assert stream.held() == {CPU.device: sum((24 + 40) * (64 + 8 + 8) for _ in tables)}
    twice = replace(stream, tasks=(*stream.tasks, replace(stream.tasks[0], id=4)))
    assert twice.held() == stream.held()


def on_gpu(stream, store="cuda"):
    """Train sources on the GPU; the images themselves on `store`."""
    moved = []
    for task in stream.tasks:
        given = task.train_eval
        examples = Examples(given.store.to(store), given.rows.to(store), given.targets.cuda())
        moved.append((task.id, Table(examples)))
    return moved


@gpu
@pytest.mark.parametrize("model", ["conv", "wrn16_4"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_captured_step_is_the_same_step(model, dropout):
    stream = toy_stream(2, count=26)
    nets, losses = [], []
    for captured in (False, True):
        with seeded(0, "gpu"):
            net = new_net(stream, dropout, model).cuda()
            compute = replace(CUDA, captured=captured)
            stats = Training(
                net, on_gpu(stream), stream.spec, HYPER, compute, 0, ("m",)
            ).complete()  # fmt: skip
        nets.append(net)
        losses.append(stats.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    torch.testing.assert_close(weights(nets[1]), weights(nets[0]), rtol=1e-2, atol=1e-3)


@gpu
def test_an_ordinary_network_is_captured():
    stream = toy_stream(2)
    source = on_gpu(stream)[0][1]
    compute, launch = choose_launch(new_net(stream).cuda(), 1, source, stream.spec, HYPER, CUDA)
    assert compute.captured
    assert launch == "steps launched as CUDA graphs"


@gpu
def test_a_network_that_waits_for_the_device_is_not_captured_and_says_why():
    stream = toy_stream(2)
    net = new_net(stream).cuda()
    net.trunk.register_forward_hook(lambda module, inputs, outputs: outputs * float(outputs.sum().item() > -1e9))
    compute, launch = choose_launch(net, 1, on_gpu(stream)[0][1], stream.spec, HYPER, CUDA)
    assert not compute.captured
    assert launch.startswith("steps launched one operation at a time (a CUDA graph cannot hold one: ")
    # And the device is as usable as before.
    Training(new_net(stream).cuda(), on_gpu(stream), stream.spec, HYPER, compute, 0, ("m",)).complete()


@gpu
def test_a_gpu_trains_to_the_same_loss_as_a_cpu():
    stream = toy_stream(2)
    made = [(CPU, sources(stream)), (CUDA, on_gpu(stream)), (CUDA, on_gpu(stream, store="cpu"))]
    losses = []
    for compute, data in made:
        net = new_net(stream).to(compute.device)
        stats = Training(net, data, stream.spec, HYPER, compute, 0, ("m",)).complete()
        losses.append(stats.loss)
    assert losses[1] == losses[2]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@gpu
def test_images_in_the_memory_of_the_host_arrive_in_order():
    stream = toy_stream(2)
    parts = [Mixture([(t, source.examples) for t, source in on_gpu(stream, store)]) for store in ("cpu", "cuda")]
    there, here = [list(batches(part, stream.spec, 8, generator(0, "b"), augment=True)) for part in parts]
    for one, other in zip(there, here, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)


@gpu
def test_predictions_of_a_gpu_equal_those_of_a_cpu():
    stream = toy_stream(2)
    net, task = new_net(stream), stream.tasks[0]
    here = predict_examples(net, task.id, task.train_eval, stream.spec, CPU)
    there = predict_examples(net.cuda(), task.id, on_gpu(stream)[0][1].examples, stream.spec, CUDA)
    torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)
