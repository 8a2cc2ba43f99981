"""Training in pieces, asked between, saved and restored; batches of one example and of all."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.mixture import Mixture
from datasets.task import Table
from net import build_net, settings_class
from tests.toys import CPU, SHAPE, number_stream, toy_stream
from training.batches import Replays
from training.loop import Training
from training.monitor import Monitor
from training.prediction import predict_examples
from training.recipe import Recipe
from utils.errors import TrainingError, UserError
from utils.seeding import generator, seeded

STREAM = toy_stream(2, count=21)  # 42 examples in batches of 8: six a epoch, the last one of two
RECIPES = {
    "epochs": Recipe(epochs=3, batch=8, lr=0.05),
    "steps": Recipe(steps=15, batch=8, lr=0.05),
    "examples": Recipe(examples=100, batch=8, lr=0.05, optimizer="adamw", schedule="linear", warmup=0.2),
}


class Recorder(Monitor):
    def __init__(self):
        self.losses, self.images = [], 0

    def epoch_ends(self, epoch, loss, lr):
        self.losses.append((epoch, loss, lr))

    def step(self, images):
        self.images += images


def begun(recipe, stream=STREAM, replayed=False, monitor=None):
    """A training of a small conv net with dropout, whose global random numbers are those of a seed."""
    with seeded(0, "net"):
        net = build_net("conv", SHAPE, settings_class("conv")(dropout=0.3, width=8), {1: 3, 2: 2})
    data = Mixture([(task.id, task.train_eval) for task in STREAM.tasks])
    past = [Replays(data, stream.spec, 4, generator(0, "past"), augment=True)] if replayed else []
    sources = [(task.id, task.train) for task in stream.tasks]
    return net, Training(net, sources, stream.spec, recipe, CPU, 0, ("m",), past=past, monitor=monitor)


def weights(net):
    return torch.cat([value.flatten().double() for value in net.state_dict().values()])


def ask(net):
    """What an evaluation does to a network and to the global random numbers."""
    predict_examples(net, 1, STREAM.tasks[0].test, STREAM.spec, CPU)
    torch.rand(7)


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("length", RECIPES)
@given(st.lists(st.integers(0, 20), max_size=5))
@settings(max_examples=8, deadline=None)
def test_advancing_in_pieces_with_questions_between_equals_one_go_to_the_bit(length, replayed, stops):
    recorders = Recorder(), Recorder()
    with seeded(0, "dropout"):
        whole, training = begun(RECIPES[length], replayed=replayed, monitor=recorders[0])
        training.advance()
        stats = training.stats
    with seeded(0, "dropout"):
        net, training = begun(RECIPES[length], replayed=replayed, monitor=recorders[1])
        for stop in sorted(stops):
            training.advance(stop)
            assert training.clock.steps == min(stop, training.length)
            ask(net)
        training.advance()
    assert training.done
    assert not net.training
    assert torch.equal(weights(net), weights(whole))
    assert vars(recorders[0]) == vars(recorders[1])
    assert recorders[0].images == stats.images == training.clock.examples
    found = training.stats
    assert (found.images, found.gradients, found.steps, found.loss) == (
        stats.images, stats.gradients, stats.steps, stats.loss,
    )  # fmt: skip


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("stop", range(0, 19, 3))
def test_a_training_that_is_restored_equals_one_that_was_never_stopped_to_the_bit(stop, fresh):
    stream = toy_stream(2, fresh=fresh, count=21)
    with seeded(0, "dropout"):
        whole, training = begun(RECIPES["epochs"], stream, replayed=True)
        training.advance()
    with seeded(0, "dropout"):
        net, training = begun(RECIPES["epochs"], stream, replayed=True)
        training.advance(stop)
        ask(net)
        state = copy.deepcopy(training.state())
    torch.rand(3)
    net, again = begun(RECIPES["epochs"], stream, replayed=True)
    again.restore(state)
    assert again.clock == training.clock
    again.advance()
    assert torch.equal(weights(net), weights(whole))


def test_the_clock_counts_steps_examples_and_epochs_of_tables():
    _, training = begun(RECIPES["epochs"])
    assert (training.length, training.examples, training.epochs) == (18, 42, 3)
    for steps, examples in [(0, 0), (1, 8), (5, 40), (6, 42), (7, 50), (18, 126)]:
        training.advance(steps)
        assert training.clock == (steps, examples, examples / 42)
    _, training = begun(RECIPES["epochs"], toy_stream(2, fresh=True, count=21))
    training.advance(7)
    assert training.clock == (7, 50, None)


def test_a_length_in_steps_ends_within_an_epoch_whose_loss_is_the_mean_of_what_was_seen():
    recorder = Recorder()
    _, training = begun(RECIPES["steps"], monitor=recorder)
    training.advance()
    assert training.clock == (15, 42 * 2 + 24, (42 * 2 + 24) / 42)
    assert [epoch for epoch, *_ in recorder.losses] == [1, 2, 3]
    assert recorder.losses[2][1] == training.stats.loss < 2


def test_a_training_in_steps_that_diverges_says_in_which_step():
    _, training = begun(Recipe(steps=15, batch=8, lr=1e30))
    with pytest.raises(TrainingError, match=r"not finite in step \d+ of 15; try a smaller lr \(now 1e\+30\)"):
        training.advance()


# Batches of one example and of all


def linear_regression(recipe):
    """An mlp on points of the plane after training, and its sources."""
    stream = number_stream(1, frozen=True)
    with seeded(0, "net"):
        net = build_net("mlp", (2,), settings_class("mlp")(dropout=0.0, widths=(5, 5)), {1: 2})
    start = copy.deepcopy(net)
    task = stream.tasks[0]
    source = Table(task.train_eval.subset(torch.arange(9)))
    stats = Training(net, [(1, source)], stream.spec, recipe, CPU, 0, ("m",)).complete()
    return net, start, source.examples, stats


@pytest.mark.parametrize(("batch", "steps"), [(1, 9), ("full", 1), (9, 1), (4, 3), (2, 5)])
def test_every_example_is_trained_on_in_batches_of_any_size(batch, steps):
    """Plain gradient descent by hand; 9 examples in batches of 4 or 2 leave a last one of one example."""
    recipe = Recipe(epochs=2, batch=batch, lr=0.1, l2_reg=0.0, momentum=0.0, schedule="constant")
    net, plain, examples, stats = linear_regression(recipe)
    assert (stats.steps, stats.images) == (2 * steps, 18)
    rng, size = generator(0, "m", "data"), 9 if batch == "full" else batch
    for _ in range(2):
        for chosen in torch.randperm(9, generator=rng).split(size):
            inputs = examples.store[examples.rows[chosen]]
            outputs = plain(inputs, torch.ones(len(chosen), dtype=torch.long))
            loss = (outputs - examples.targets[chosen]).square().mean()
            gradients = torch.autograd.grad(loss, list(plain.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_batch_normalisation_leaves_out_a_last_example_that_is_alone():
    stream = toy_stream(1, count=25)
    _, training = begun(Recipe(epochs=1, batch=8), stream)
    training.advance()
    assert (training.examples, training.length) == (24, 3)
    _, training = begun(Recipe(epochs=1, batch="full"), stream)
    assert (training.examples, training.length) == (25, 1)


@pytest.mark.parametrize(("batch", "count"), [(1, 25), ("full", 1), (16, 1)])
def test_a_batch_of_one_is_refused_where_there_is_batch_normalisation(batch, count):
    message = rf"batch is {batch}, of {count} training examples; this network has batch normalisation, which needs"
    with pytest.raises(UserError, match=message):
        begun(Recipe(epochs=1, batch=batch), toy_stream(1, count=count))
