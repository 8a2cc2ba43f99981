"""Sites: activations of networks that are read and overwritten."""

import pytest
import torch

from net.sequences.attention_only import AttentionOnly
from net.sequences.mixers import MIXERS
from net.sequences.model import SequenceModel
from net.sequences.rnn import RNN
from net.sequences.sites import Write, run
from utils.seeding import seeded
from utils.settings import read

LENGTH, VOCABULARY, BATCH = 10, 12, 3


def model_of(mixer, state_mixer="mlp", **settings):
    """Two layers with drawn weights, in test mode and double precision; one question an input."""
    own = {"width": 8, "mixers": [mixer], "state_mixer": state_mixer, **settings}
    with seeded(0, "sites"):
        net = SequenceModel((LENGTH + 1,), read(SequenceModel.Settings, "net", own), VOCABULARY, asked=1)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return net.double().eval()


def inputs_of(seed=1):
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))
    return torch.cat([tokens, torch.tensor([[4], [7], [9]])], 1)


SETTINGS = {"attention": {"heads": 2}, "based": {"heads": 2}, "gla": {"heads": 2}, "rwkv7": {"head_size": 4},
            "mamba2": {"head_size": 8}}  # fmt: skip


@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_the_sites_of_every_mixer(name):
    net, inputs = model_of({"mixer": name, **SETTINGS.get(name, {})}), inputs_of()
    whole = run(net, inputs, read=net.sites())
    assert torch.equal(whole.outputs, net(inputs))
    assert list(whole.activations) == list(net.sites())  # in the order of computation
    found = whole.activations
    for layer in range(2):
        at = f"blocks.{layer}"
        stream = found[f"{at}.input"] + found[f"{at}.mixer.output"] + found[f"{at}.state.output"]
        assert (stream - found[f"{at}.output"]).abs().max() < 1e-12
        block = net.blocks[layer]
        assert torch.equal(block.mixer_norm(found[f"{at}.input"]), found[f"{at}.mixer.input"])
        assert torch.equal(block.mixer(found[f"{at}.mixer.input"]), found[f"{at}.mixer.output"])
        if f"{at}.mixer.heads" in found:
            heads = found[f"{at}.mixer.heads"]
            assert heads.shape[:3] == (BATCH, LENGTH, block.mixer.heads)
            assert torch.equal(block.mixer.joining(heads.flatten(2)), found[f"{at}.mixer.output"])
    assert torch.equal(found["blocks.0.output"], found["blocks.1.input"])
    # what is written is what is computed with from there on
    other = run(net, inputs_of(2), read=net.sites())
    for site in net.sites():
        moved = run(net, inputs, read=[site], write={site: Write(other.activations[site])})
        assert torch.equal(moved.activations[site], other.activations[site])
        if site.endswith((".0.output", ".1.input")):  # all that goes on
            assert torch.equal(moved.outputs, other.outputs)
    assert torch.equal(run(net, inputs).outputs, whole.outputs)  # nothing is left behind


@torch.no_grad()
def test_one_position_of_some_rows():
    net, inputs = model_of("attention"), inputs_of()
    values = torch.randn(2, 8, dtype=torch.float64)
    write = Write(values, rows=torch.tensor([0, 2]), positions=torch.tensor([3, 5]))
    before = run(net, inputs, read=["blocks.1.input"])
    after = run(net, inputs, read=["blocks.1.input"], write={"blocks.1.input": write})
    changed = (before.activations["blocks.1.input"] != after.activations["blocks.1.input"]).any(-1)
    assert changed.nonzero().tolist() == [[0, 3], [2, 5]]
    assert torch.equal(after.activations["blocks.1.input"][[0, 2], [3, 5]], values)
    different = (before.outputs != after.outputs).flatten(1).any(1)
    assert different.tolist() == [True, False, True]


def test_positions_need_rows():
    write = Write(torch.zeros(BATCH, 8, dtype=torch.float64), positions=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="positions without rows"):
        run(model_of("attention"), inputs_of(), write={"blocks.0.input": write})


def test_state_mixers_have_sites_if_they_are_there():
    with_none, with_norm = model_of("attention", "none").sites(), model_of("attention", "norm").sites()
    assert not [site for site in with_none if "state" in site]
    assert [site for site in with_norm if "state" in site] == ["blocks.0.state.output", "blocks.1.state.output"]
    with pytest.raises(KeyError, match=r"there is no site blocks\.2\.input; there are blocks\.0\.input"):
        run(model_of("attention"), inputs_of(), read=["blocks.2.input"])


@torch.no_grad()
def test_small_networks_have_sites():
    rnn = RNN((5,), RNN.Settings(hidden_size=4)).double()
    numbers = torch.randn(3, 5, dtype=torch.float64)
    whole = run(rnn, numbers, read=rnn.sites())
    assert (whole.outputs - rnn(numbers)).abs().max() < 1e-12
    assert (torch.stack(list(whole.activations.values()), 1) - rnn.states(numbers)).abs().max() < 1e-12
    state = torch.rand(3, 4, dtype=torch.float64)
    moved = run(rnn, numbers, write={"states.2": Write(state)})
    assert (moved.outputs - rnn.states(numbers[:, 3:], state)[:, -1]).abs().max() < 1e-12

    net = AttentionOnly((6,), AttentionOnly.Settings(width=8, heads=2)).double()
    tokens = torch.randint(6, (3, 6), generator=torch.Generator().manual_seed(0))
    whole = run(net, tokens, read=net.sites())
    assert (whole.outputs - net(tokens)).abs().max() < 1e-12
    other = run(net, tokens.flip(1), read=net.sites())
    moved = run(net, tokens, write={"blocks.1.input": Write(other.activations["blocks.0.output"])})
    assert (moved.outputs - net(tokens.flip(1))).abs().max() < 1e-12
