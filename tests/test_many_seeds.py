"""Autoencoders of several seeds that train as one computation, and the examples that they draw."""

import math

import pytest
import torch

from datasets import build_stream
from datasets.synthetic.superposition import FreshFeatures, Law
from net import build_net, settings_class
from records.invocation import configure
from tests.toys import CPU
from training.loop import Training
from training.recipe import Recipe
from training.stacked import StackedTraining
from utils.files import side_by_side
from utils.seeding import generator, seeded


def network(seed):
    with seeded(seed, "net"):
        return build_net("autoencoder", (6,), settings_class("autoencoder")(), {1: 6}, "identity")


@pytest.mark.parametrize(("fresh", "batch"), [("true", 16), ("false", 16), ("false", "full")])
def test_networks_that_train_together_are_those_that_train_alone(fresh, batch, tmp_path):
    content = f"{{dataset: superposition, tasks: [sparse], fresh: {fresh}, train_examples: 40, epoch_examples: 40}}"
    (tmp_path / "d.yaml").write_text(content)
    config = configure(data_config=str(tmp_path / "d.yaml"), hp_config="config/hyperparam/autoencoder.yaml").config
    streams = [build_stream(config.data, seed, CPU.device) for seed in range(3)]
    sources = [[(1, stream.tasks[0].train)] for stream in streams]
    recipe = Recipe(steps=11, batch=batch, lr=0.1, optimizer="adam")
    together = [network(seed) for seed in range(3)]
    StackedTraining(together, sources, streams[0].spec, recipe, CPU, range(3), ("member",)).complete()
    for seed, (own, found) in enumerate(zip(sources, together, strict=True)):
        alone = network(seed)
        Training(alone, own, streams[0].spec, recipe, CPU, seed, ("member",)).complete()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", ["uniform", "ones"])
@pytest.mark.parametrize(("kind", "share"), [("sparse", 0.3), ("k_hot", 1 / 6)])
def test_values_of_features_that_are_there(kind, share, values):
    law = Law(features=6, probability=0.3, values=values)
    examples = FreshFeatures(kind, law, 1, CPU.device).draw(60_000, generator(0, kind))
    there = examples.store > 0
    assert there.double().mean(0).sub(share).abs().max() < 5 * math.sqrt(share / 60_000)
    if kind == "k_hot":
        assert (there.sum(1) == 1).all()
    found = examples.store[there].double()
    if values == "ones":
        assert (found == 1).all()
        return
    ranks = (torch.arange(len(found)) + 0.5) / len(found)  # Kolmogorov and Smirnov: 1.95 / sqrt(n) once in a thousand
    assert (found.sort().values - ranks).abs().max() < 1.95 / math.sqrt(len(found))
    assert torch.equal(examples.targets[:, 0], examples.store)


def test_what_is_written_side_by_side_comes_back_in_order_and_errors_are_raised():
    assert side_by_side(lambda number: 2 * number, range(50)) == [2 * number for number in range(50)]
    assert side_by_side(str, ()) == []

    def failing(number):
        raise OSError(number)

    with pytest.raises(OSError, match="0"):
        side_by_side(failing, range(3))
