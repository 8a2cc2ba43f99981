"""The perceptron for tokens, and the networks of published work on modular addition."""

import math

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from net import build_net, count_parameters, settings_class
from tests.test_sequence_model import PROJECT
from training.recipe import Recipe
from utils.errors import UserError
from utils.seeding import generator, seeded
from utils.settings import declarations, read


def mlp(shape=(4,), vocabulary=7, asked=1, **given):
    own = read(settings_class("token_mlp"), "net.yaml", given)
    with seeded(0, "net"):
        return build_net("token_mlp", shape, own, {1: vocabulary}, "identity", asked).double()


def preset(name, vocabulary):
    content = yaml.safe_load((PROJECT / f"config/hyperparam/{name}.yaml").read_text())
    recipe = declarations(Recipe)
    own = {key: value for key, value in content.items() if key != "model" and key not in recipe}
    net = read(settings_class(content["model"]), name, own)
    return build_net(content["model"], (3 + 1,), net, {1: vocabulary}, "identity", 1)


def answered(net, tokens):
    """Outputs for some tokens with the question behind them."""
    ends = torch.tensor([0, tokens.shape[1]]).expand(len(tokens), -1)
    with torch.no_grad():
        return net(torch.cat([tokens, ends], 1), torch.ones(len(tokens), dtype=torch.long))


@pytest.mark.parametrize("modulus", [5, 12, 23])
def test_cosines_add_modulo_a_number(modulus):
    """The weights of Gromov (2023), with random phases: over 6,000 hidden values the other terms average out."""
    hidden, rng = 6000, generator(0, "phases")
    frequency = torch.randint(1, modulus // 2 + 1, (hidden,), generator=rng)
    phases = 2 * math.pi * torch.rand(2, hidden, generator=rng, dtype=torch.float64)
    angles = 2 * math.pi / modulus * torch.arange(modulus).double().unsqueeze(-1) * frequency
    net = mlp(vocabulary=modulus, hidden=hidden)
    with torch.no_grad():
        net.trunk.tables.copy_(torch.cos(angles + phases.unsqueeze(1)))
        net.trunk.last.weight.copy_(torch.cos(angles + phases.sum(0)))
    pairs = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    assert torch.equal(answered(net, pairs).squeeze(1).argmax(-1), pairs.sum(1) % modulus)


CHOICES = {"activation": st.sampled_from(["quadratic", "relu"]), "shared": st.booleans(), "bias": st.booleans(),
           "embedding": st.sampled_from([None, 5]), "combined": st.sampled_from(["sum", "concatenate"])}  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries(CHOICES), st.integers(1, 4))
def test_it_is_a_perceptron_of_one_hot_vectors(chosen, count):
    """Against matrices on concatenated one-hot vectors, written out for each choice."""
    if chosen["combined"] == "concatenate" and chosen["embedding"] is None:
        with pytest.raises(UserError, match="set embedding"):
            mlp(**chosen)
        return
    net = mlp((count + 2,), hidden=6, **chosen)
    for parameter in net.trunk.parameters():
        torch.nn.init.normal_(parameter)
    trunk = net.trunk
    tokens = torch.randint(7, (9, count), generator=generator(count, "tokens"))
    vectors = torch.eye(7, dtype=torch.float64)[tokens]
    tables = trunk.tables.expand(count, -1, -1)
    by_place = [vectors[:, place] @ tables[place] for place in range(count)]
    hidden = torch.cat(by_place, 1) if chosen["combined"] == "concatenate" else sum(by_place)
    if chosen["embedding"]:
        hidden = hidden @ trunk.first.weight.T
    if chosen["bias"]:
        hidden = hidden + (trunk.first.bias if chosen["embedding"] else trunk.bias)
    hidden = hidden**2 if chosen["activation"] == "quadratic" else hidden.clamp(min=0)
    expected = hidden @ trunk.last.weight.T + (trunk.last.bias if chosen["bias"] else 0)
    assert (answered(net, tokens).squeeze(1) - expected).abs().max() < 1e-10


def test_tokens_from_the_question_on_are_not_read():
    net, ones = mlp((5,)), torch.ones(1, dtype=torch.long)
    rows = torch.tensor([[1, 2, 3, 4, 2], [1, 2, 5, 6, 2], [1, 3, 3, 4, 2]])
    with torch.no_grad():
        first, behind, before = (net(row.unsqueeze(0), ones) for row in rows)
    assert torch.equal(first, behind)
    assert not torch.equal(first, before)


@pytest.mark.parametrize(("shape", "asked"), [((5,), 2), ((2,), 1), ((4, 3), 1)])
def test_other_tasks_are_refused(shape, asked):
    with pytest.raises(UserError, match="token_mlp is for tokens with one question"):
        mlp(shape, asked=asked)


def test_the_published_networks_of_modular_addition_have_their_sizes():
    tokens = 113 + 1  # numbers, and the sign =
    attention, states = 4 * 128 * 128, 2 * 128 * 512 + 512 + 128
    assert count_parameters(preset("modular_attention", tokens)) == 2 * tokens * 128 + 3 * 128 + attention + states
    assert count_parameters(preset("modular_mlp", 97)) == 3 * 97 * 500
