"""Networks that train as one computation are networks that were trained one at a time, up to rounding."""

import math
from dataclasses import replace

import pytest
import torch

from datasets import build_stream
from methods.base import new_network
from net.stack import Stack, stackable
from records.task_invocation import configure
from tests.toys import CPU
from training.loop import Training
from training.monitor import Checkpoints
from training.stacked import StackedTraining
from utils.errors import TrainingError
from utils.seeding import seeded
from utils.trees import from_bytes, to_bytes

SEEDS, NAME = (3, 4, 5), ("member", 0)
RATES = (0.01, 0.03, 0.002)
SMALL = {"data.length": 4, "data.epoch_examples": 48, "data.train_examples": 48, "data.dev_examples": 8,
         "data.test_examples": 8, "hp.batch": 16, "hp.lr": 0.01, "hp.lr_scale": "none", "hp.warmup": 2}  # fmt: skip
KINDS = {
    "rnn": {"set": {**SMALL, "net.hidden_size": 5}},
    "rnn with biases": {"set": {**SMALL, "net.hidden_size": 5, "net.bias": True}},
    "attention": {
        "data_config": "config/dataset/longest_cycle.yaml", "hp_config": "config/hyperparam/attention_only.yaml",
        "set": {**SMALL, "net.width": 4, "net.heads": 2},
    },
    "numbers": {"data_config": "config/dataset/median.yaml", "set": {**SMALL, "net.hidden_size": 3}},
}  # fmt: skip


def built(kind, steps=20, **changes):
    """The recipe, and for each seed its stream and network, in the state before training."""
    given = KINDS[kind]
    config = configure(**{**given, "set": {**given["set"], **changes}}, steps=steps).config
    streams = [build_stream(config.data, seed, CPU.device) for seed in SEEDS]
    nets = []
    for seed, stream in zip(SEEDS, streams, strict=True):
        with seeded(seed, *NAME):
            nets.append(new_network(config, stream.spec, {1: stream.tasks[0].num_outputs}))
    return config.hp, streams, nets


def sources(stream):
    return [(1, stream.tasks[0].train)]


def together(kind, rates=(), checkpoints=None, **changes):
    recipe, streams, nets = built(kind, **changes)
    every = [sources(stream) for stream in streams]
    spec, more = streams[0].spec, {"rates": rates, "checkpoints": checkpoints}
    return StackedTraining(nets, every, spec, recipe, CPU, SEEDS, NAME, **more), nets


def alone(kind, number, rates=(), **changes):
    recipe, streams, nets = built(kind, **changes)
    recipe = replace(recipe, lr=rates[number]) if rates else recipe
    net, stream = nets[number], streams[number]
    return Training(net, sources(stream), stream.spec, recipe, CPU, SEEDS[number], NAME), net


def assert_same(net, other, **tolerance):
    theirs = other.state_dict()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, theirs[name], **tolerance or {"rtol": 2e-4, "atol": 2e-5})


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_computes_what_its_networks_compute(kind):
    _, streams, nets = built(kind)
    assert all(map(stackable, nets))
    draws = [stream.tasks[0].train.draw(7, torch.Generator().manual_seed(n)) for n, stream in enumerate(streams)]
    inputs, ids = [draw.store[draw.rows] for draw in draws], torch.ones(7, dtype=torch.int64)
    found = Stack(nets)(torch.stack(inputs), ids.expand(3, 7)).transpose(1, 2)
    for net, own, outputs in zip(nets, inputs, found, strict=True):
        torch.testing.assert_close(outputs, net(own, ids))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_networks_trained_together_are_those_trained_alone(kind, fresh, optimizer):
    changes = {"data.fresh": fresh, "hp.optimizer": optimizer, "hp.l2_reg": 0.01}
    stacked, nets = together(kind, **changes)
    stacked.complete()
    for number, net in enumerate(nets):
        training, own = alone(kind, number, **changes)
        stats = training.complete()
        assert_same(net, own)
        assert stacked.losses[number] == pytest.approx(stats.loss, rel=1e-4)
        assert stacked.clock == training.clock


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_each_network_may_have_a_learning_rate_of_its_own(optimizer):
    stacked, nets = together("rnn", RATES, **{"hp.optimizer": optimizer})
    stacked.complete()
    for number, net in enumerate(nets):
        training, own = alone("rnn", number, RATES, **{"hp.optimizer": optimizer})
        training.complete()
        assert_same(net, own)


@pytest.mark.parametrize("steps", [1, 3, 10, 19, 20])  # 20: all
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("fresh", [True, False])
def test_training_goes_on_where_it_was_stopped_to_the_bit(fresh, optimizer, steps):
    changes = {"data.fresh": fresh, "hp.optimizer": optimizer}
    whole, expected = together("rnn", RATES, **changes)
    whole.complete()
    begun, _ = together("rnn", RATES, **changes)
    begun.advance(steps)
    states = [from_bytes(to_bytes(state), CPU.device) for state in begun.state()]
    resumed, nets = together("rnn", RATES, **changes)
    resumed.restore(states)
    resumed.complete()
    for net, other in zip(nets, expected, strict=True):
        assert_same(net, other, rtol=0, atol=0)
    assert resumed.losses == whole.losses


def test_training_saved_between_the_last_step_of_an_epoch_and_its_end_goes_on():
    """A checkpoint can fall due there: the next epoch has other examples all the same."""

    class Keeping(Checkpoints):
        def due(self, *, epoch_ends=False):
            return stacked.clock.steps in (3, 6) and not epoch_ends  # an epoch has three steps

        def save(self, name, state):
            saved.append(to_bytes(state()))

    saved = []
    stacked, expected = together("rnn", checkpoints=Keeping())
    stacked.complete()
    assert len(saved) == 2
    for content in saved:
        resumed, nets = together("rnn")
        resumed.restore(from_bytes(content, CPU.device))
        resumed.complete()
        for net, other in zip(nets, expected, strict=True):
            assert_same(net, other, rtol=0, atol=0)


def test_a_network_goes_on_alone_from_the_state_it_had_among_others():
    stacked, _ = together("rnn")
    stacked.advance(7)
    for number in range(len(SEEDS)):
        training, net = alone("rnn", number)
        training.restore(from_bytes(to_bytes(stacked.state()[number]), CPU.device))
        training.complete()
        whole, expected = alone("rnn", number)
        assert training.stats.loss == pytest.approx(whole.complete().loss, rel=1e-4)
        assert_same(net, expected)


def test_a_network_that_diverges_leaves_the_others_alone():
    stacked, nets = together("numbers", (0.01, 1000.0, 0.002), **{"hp.optimizer": "sgd"})
    stacked.complete()
    assert list(stacked.diverged) == [1]
    assert not math.isfinite(stacked.losses[1])
    for number in (0, 2):
        training, own = alone("numbers", number, (0.01, 1000.0, 0.002), **{"hp.optimizer": "sgd"})
        training.complete()
        assert_same(nets[number], own)


def test_training_ends_if_all_networks_diverge():
    stacked, nets = together("numbers")
    for net in nets:
        torch.nn.init.constant_(net.weight, math.inf)
    with pytest.raises(TrainingError, match="not finite"):
        stacked.complete()
