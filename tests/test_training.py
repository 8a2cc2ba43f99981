"""The trainer against a plain loop, and what it promises about batches, schedule and failures."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.images.stream import ImagePreprocess
from datasets.mixture import Mixture
from datasets.task import Table
from net import build_net, settings_class
from tests.toys import CPU, SHAPE, run_toy, table, toy_config, toy_stream
from training.batches import batches
from training.loop import Training, TrainingStats
from training.monitor import Monitor
from training.optimizers import SCHEDULES
from training.prediction import outputs_of_heads, predict_examples
from training.recipe import Recipe
from utils.errors import TrainingError
from utils.seeding import generator, seeded


def new_net(stream, dropout=0.0, model="conv"):
    with seeded(0, "net"):
        settings = settings_class(model)(dropout=dropout)
        return build_net(model, SHAPE, settings, {task.id: task.num_outputs for task in stream.tasks})


def sources(stream):
    return [(task.id, task.train) for task in stream.tasks]


class Recorder(Monitor):
    def __init__(self):
        self.rates, self.losses, self.images = [], [], 0

    def epoch_ends(self, epoch, loss, lr):
        self.rates.append(lr)
        self.losses.append(loss)

    def step(self, images):
        self.images += images


def test_equals_a_plain_loop():
    """Same data order; an ordinary optimizer, scheduler and memory layout, image by image."""
    stream, hyper = toy_stream(3), Recipe(epochs=3, batch=8, lr=0.05, l2_reg=1e-3, augment=False)
    ours, plain = new_net(stream), new_net(stream).to(memory_format=torch.contiguous_format)
    Training(ours, sources(stream), stream.spec, hyper, CPU, 0, ("m",)).complete()

    rows = [(task.train_eval, i, task.id) for task in stream.tasks for i in range(len(task.train_eval))]
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3 * math.ceil(len(rows) / 8))
    rng = generator(0, "m", "data")
    plain.train()
    for _ in range(3):
        order = torch.randperm(len(rows), generator=rng).tolist()
        for start in range(0, len(order), 8):
            batch = [rows[i] for i in order[start : start + 8]]
            images = torch.stack([(e.store[e.rows[i]] / 255 - 0.5) / 0.25 for e, i, _ in batch])
            targets = torch.stack([e.targets[i] for e, i, _ in batch])
            loss = F.cross_entropy(plain(images, torch.tensor([t for *_, t in batch])), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)


def test_predictions_equal_a_plain_forward_pass():
    stream = toy_stream(2)
    net = new_net(stream).eval()
    task = stream.tasks[1]
    images = (task.test.store[task.test.rows] / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = net(images, torch.full((len(images),), 2))[:, : task.num_outputs].softmax(1)
    found = predict_examples(net, 2, task.test, stream.spec, CPU)
    assert found.shape == (len(task.test), task.num_outputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@given(st.integers(1, 70), st.integers(1, 16), st.booleans(), st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_every_example_once_but_for_those_that_are_left_out(count, size, augment, left_out):
    images = torch.arange(count * 64).remainder(251).to(torch.uint8).view(count, *SHAPE)
    data = Mixture([(1, table(images, torch.arange(count)))])
    spec = toy_stream(1).spec
    left_out = min(left_out, count - 1)
    got = list(batches(data, spec, size, generator(0, "b"), augment=augment, count=count - left_out))
    targets = torch.cat([batch.targets for batch in got]).tolist()
    assert len(targets) == len(set(targets)) == count - left_out
    assert all(len(batch.targets) == size for batch in got[:-1])
    assert 1 <= len(got[-1].targets) <= size
    if not augment:
        shown = torch.cat([batch.inputs for batch in got])
        torch.testing.assert_close(shown, (images[targets] / 255 - 0.5) / 0.25)


def test_batches_do_not_depend_on_how_many_are_prepared_together(monkeypatch):
    data = Mixture([(task.id, task.train_eval) for task in toy_stream(3).tasks])
    spec = toy_stream(1).spec
    together = list(batches(data, spec, 8, generator(0, "b"), augment=True))
    monkeypatch.setattr("training.batches.CHUNK_BYTES", 1)
    for one, other in zip(together, batches(data, spec, 8, generator(0, "b"), augment=True), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.task_ids, other.task_ids)


def test_the_learning_rate_is_pytorchs_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 17)
    for step in range(17):
        assert SCHEDULES["cosine"](step, 17, Recipe()) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_the_loss_of_several_members_is_the_mean_over_their_examples():
    members = [
        TrainingStats(10, 20, 30, 2, 1.0, 0.5),
        TrainingStats(10, 20, 20, 2, 1.0, 0.7),
        TrainingStats(20, 40, 50, 4, 2.0, 0.2),
    ]
    total = sum(members, TrainingStats())
    assert total == TrainingStats(40, 80, 100, 8, 4.0, pytest.approx((10 * 0.5 + 10 * 0.7 + 20 * 0.2) / 40))


def test_loss_images_and_rates_are_reported():
    stream, recorder = toy_stream(2, count=21), Recorder()
    hyper = Recipe(epochs=3, batch=8, lr=0.01)
    stats = Training(new_net(stream), sources(stream), stream.spec, hyper, CPU, 0, ("m",), monitor=recorder).complete()
    assert stats.examples == 42
    assert stats.images == stats.gradients == recorder.images == 3 * 42
    assert stats.steps == 3 * 6
    assert stats.loss == recorder.losses[-1] < recorder.losses[0]
    assert recorder.rates[-1] == pytest.approx(0.01 * SCHEDULES["cosine"](17, 18, hyper))


@pytest.mark.parametrize("augment", [False, True])
def test_members_trained_under_one_name_are_equal_to_the_bit(augment):
    stream, hyper = toy_stream(2), Recipe(epochs=2, batch=8, augment=augment)
    nets = [new_net(stream), new_net(stream), new_net(stream)]
    for net, name in zip(nets, ["a", "a", "b"], strict=True):
        Training(net, sources(stream), stream.spec, hyper, CPU, 0, (name,)).complete()
    first, again, other = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augmentation_is_only_in_training():
    """A network trained on shifted images sees test images as they are."""
    stream = toy_stream(1)
    shifted = ImagePreprocess(2, flip=True)
    assert torch.equal(shifted(stream.tasks[0].test.store), ImagePreprocess(0, False)(stream.tasks[0].test.store))


def test_a_loss_that_is_not_finite_stops_with_the_epoch_and_a_remedy():
    stream = toy_stream(1)
    net = new_net(stream)
    with pytest.raises(TrainingError, match=r"epoch \d+ of 5; try a smaller lr \(now 1e\+30\)"):
        Training(
            net, sources(stream), stream.spec, Recipe(epochs=5, batch=8, lr=1e30), CPU, 0, ("m",)
        ).complete()  # fmt: skip


def test_training_in_bf16_is_close_to_float32():
    stream, hyper = toy_stream(2, count=64), Recipe(epochs=6, batch=8, augment=False)
    accuracies = []
    for bf16 in (False, True):
        compute = copy.replace(CPU, bf16=bf16) if hasattr(copy, "replace") else type(CPU)(CPU.device, bf16)
        net = new_net(stream)
        Training(net, sources(stream), stream.spec, hyper, compute, 0, ("m",)).complete()
        task = stream.tasks[0]
        predictions = predict_examples(net, 1, task.test, stream.spec, compute)
        assert predictions.dtype == torch.float32
        accuracies.append(stream.spec.objective.evaluate(predictions, task.test.targets)["accuracy"].value)
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.15)
    assert min(accuracies) > 0.6


def test_a_repeated_table_repeats_every_row():
    examples = toy_stream(1).tasks[0].train_eval
    repeated = Table(examples, 3).epoch(generator(0, "e"))
    assert sorted(repeated.rows.tolist()) == sorted(examples.rows.tolist() * 3)


def test_the_table_of_all_tasks_is_made_once(monkeypatch):
    """Tasks with stores of their own are copied for it."""
    made = []
    monkeypatch.setattr("training.loop.Mixture", lambda parts: made.append(Mixture(parts)) or made[-1])
    stream = toy_stream(2)
    Training(new_net(stream), sources(stream), stream.spec, Recipe(epochs=3, batch=8), CPU, 0, ("m",)).complete()
    assert len(made) == 1
    fresh = toy_stream(2, fresh=True)
    Training(new_net(fresh), sources(fresh), fresh.spec, Recipe(epochs=3, batch=8), CPU, 0, ("m",)).complete()
    assert len(made) == 1 + 3


def calls_of_tensor(monkeypatch, function, *given):
    """How often a function makes a tensor of Python numbers; on a GPU each waits for the device."""
    calls, made = [], torch.tensor
    with monkeypatch.context() as patch:
        patch.setattr(torch, "tensor", lambda *given, **options: calls.append(given) or made(*given, **options))
        function(*given)
    return len(calls)


def test_no_batch_waits_for_the_device_to_predict(monkeypatch):
    stream = toy_stream(2)
    net, task = new_net(stream), stream.tasks[0]
    for times in (1, 60):  # of 40 examples: one batch, five batches
        given = net, [1, 2], Mixture([(1, task.test)] * times), stream.spec, CPU, {}
        assert calls_of_tensor(monkeypatch, outputs_of_heads, *given) == 1


@pytest.mark.parametrize("method", ["zoo", "er", "lwf"])
def test_no_batch_waits_for_the_device_to_train(method, monkeypatch):
    short, long = (toy_config(method=method, hp={"epochs": epochs}) for epochs in (2, 4))
    counts = [calls_of_tensor(monkeypatch, run_toy, config, toy_stream(2)) for config in (short, long)]
    assert counts[0] == counts[1]
