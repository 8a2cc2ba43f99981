"""The network of sequence mixers: published sizes, its two forms, initialisation, and where weights decay."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from net import build_net, count_parameters, settings_class
from training.optimizers import make_optimizer
from training.recipe import Recipe
from utils.errors import UserError
from utils.seeding import seeded
from utils.settings import declarations, read

PROJECT = Path(__file__).parent.parent

FIRST = torch.ones(1, dtype=torch.long)


def net_of(shape=(12 + 3,), vocabulary=11, asked=3, **given):
    settings = read(settings_class("sequence"), "net.yaml", {"width": 8, **given})
    with seeded(0, "net"):
        return build_net("sequence", shape, settings, {1: vocabulary}, "identity", asked)


def token_inputs(batch=4, length=12, vocabulary=11, asked=3):
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (batch, length), generator=rng)
    return torch.cat([tokens, torch.rand(batch, length, generator=rng).argsort(-1)[:, :asked]], -1)


def in_steps(net, inputs, asked):
    """The outputs where they are asked for, from the step form."""
    trunk, tokens = net.trunk, inputs[:, : net.trunk.length]
    states, found = trunk.begin(len(inputs)), []
    for place in range(trunk.length):
        outputs, states = trunk.step(tokens[:, place], place, states)
        found.append(outputs)
    return torch.stack([torch.stack(found, 1)[row, places] for row, places in enumerate(asked)])


@pytest.mark.parametrize("width", [64, 128])
def test_attention_with_positions_has_the_published_size(width):
    net = net_of((64 + 4,), 8192, 4, width=width, positions=True, state_mixer="norm")
    assert count_parameters(net) == {64: 562_304, 128: 1_190_144}[width]
    assert count_parameters(net) - (8192 + 64) * width == {64: 33_920, 128: 133_376}[width]
    assert 4 * net.trunk.state_size(1024) == {64: 1_048_576, 128: 2_097_152}[width]


def test_the_quick_start_of_the_paper_has_its_size():
    net = net_of((64 + 4,), 256, 4, width=128, positions=True, state_mixer="mlp")
    assert count_parameters(net) == 437_760


@pytest.mark.parametrize("state_mixer", ["mlp", "glu", "norm", "none"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_outputs_are_those_of_the_step_form_at_the_positions_that_are_asked_about(state_mixer, norm):
    net = net_of(state_mixer=state_mixer, norm=norm, positions=True, dropout=0.5).double().eval()
    inputs = token_inputs()
    with torch.no_grad():
        outputs = net(inputs, FIRST.expand(4))
        assert outputs.shape == (4, 3, 11)
        assert (outputs - in_steps(net, inputs, inputs[:, 12:])).abs().max() < 1e-12


def test_vectors_are_asked_about_at_their_last_positions():
    net = net_of((6, 5), 7, 2).double().eval()
    inputs = torch.randn(4, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        outputs = net(inputs, FIRST.expand(4))
        assert (outputs - in_steps(net, inputs, [[4, 5]] * 4)).abs().max() < 1e-12


def test_nothing_but_questions_depends_on_what_is_behind_the_last_question():
    net = net_of(positions=True).eval()
    inputs = token_inputs()
    inputs[:, 12:] = torch.tensor([2, 5, -1])  # two questions; what is answered to -1 does not count
    changed = inputs.clone()
    changed[:, 6:12] = 0
    with torch.no_grad():
        before, after = net(inputs, FIRST.expand(4)), net(changed, FIRST.expand(4))
    assert torch.equal(before[:, :2], after[:, :2])


def test_shorter_inputs_are_taken_as_they_are():
    net = net_of(positions=True, mixers=["base_conv", "attention"]).double().eval()
    inputs = token_inputs(length=7)
    longer = torch.cat([inputs[:, :7], torch.zeros(4, 5, dtype=torch.long), inputs[:, 7:]], -1)
    with torch.no_grad():
        assert (net(inputs, FIRST.expand(4)) - net(longer, FIRST.expand(4))).abs().max() < 1e-12


def test_a_layer_is_the_published_one():
    """Two layers by the published order of residuals: r is added to before each norm, h is what a mixer returns."""
    net = net_of(state_mixer="norm").double().eval()
    trunk, inputs = net.trunk, token_inputs()
    hidden = trunk.embed(inputs[:, :12])
    residual = torch.zeros_like(hidden)
    for block in trunk.blocks:
        residual = residual + hidden
        hidden = block.mixer(block.mixer_norm(residual))
        residual = residual + hidden
        hidden = block.state_norm(residual)  # the state mixer is the identity
    expected = trunk.norm(residual + hidden) @ trunk.embed.weight.T
    at = inputs[:, 12:].unsqueeze(-1).expand(-1, -1, 11)
    assert (net(inputs, FIRST.expand(4)) - expected.gather(1, at)).abs().max() < 1e-12


def test_weights_into_the_stream_begin_smaller():
    trunk = net_of(width=64, layers=8, positions=True).trunk
    for block in trunk.blocks:
        for into in (block.mixer.out_proj, block.state.fc2):
            assert math.isclose(into.weight.std().item(), 0.02 / 4, rel_tol=0.1)
        for other in (block.mixer.qkv_proj, block.state.fc1):
            assert math.isclose(other.weight.std().item(), 0.02, rel_tol=0.1)
            assert not other.bias.any()
    assert math.isclose(trunk.embed.weight.std().item(), 0.02, rel_tol=0.2)


def test_weights_of_torch_stay_but_those_into_the_stream():
    trunk = net_of(width=64, layers=4, init="torch").trunk
    uniform = 1 / math.sqrt(3 * 64)  # the standard deviation of nn.Linear's weights
    assert math.isclose(trunk.blocks[0].mixer.qkv_proj.weight.std().item(), uniform, rel_tol=0.05)
    assert math.isclose(trunk.blocks[0].mixer.out_proj.weight.std().item(), uniform / 2, rel_tol=0.05)


def test_only_weights_of_layers_decay_if_so_asked():
    net = net_of(positions=True)
    recipe = Recipe(optimizer="sgd", lr=0.1, momentum=0.0, l2_reg=0.5, decayed="weights")
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    optimizer = make_optimizer(net, recipe, recipe.lr)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    layers = {f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert {"trunk.blocks.0.mixer.out_proj.weight", "trunk.blocks.1.state.fc2.weight"} <= layers
    for name, value in net.named_parameters():
        factor = 0.95 if name in layers else 1.0
        torch.testing.assert_close(value.detach(), factor * before[name])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"mixers": []}, "mixers must be a list with at least one mixer"),
        ({"mixers": ["atention"]}, "mixers 1: unknown mixer 'atention'"),
        ({"mixers": ["attention", {"heads": 2}]}, "mixers 2: key 'mixer' is missing"),
        ({"mixers": [{"mixer": "attention", "head": 2}]}, "mixers 1: unknown key 'head'"),
        ({"mixers": [{"mixer": "attention", "heads": 3}]}, "heads is 3; it must divide the width, 8"),
    ],
)
def test_wrong_mixers_are_named(given, told):
    with pytest.raises(UserError) as error:
        net_of(**given)
    assert told in str(error.value)


def test_tasks_and_networks_that_do_not_fit_are_told():
    with pytest.raises(UserError, match="the task asks for none"):
        net_of(shape=(12,), asked=0)
    with pytest.raises(UserError, match="rnn cannot be asked about positions, as this task does: try sequence"):
        build_net("rnn", (15,), settings_class("rnn")(), {1: 11}, "identity", 3)


# Published sizes at a vocabulary of 8192: parameters but for embedding and positions, and bytes of state after 1024.
PUBLISHED = {
    ("attention", 64): (33_920, 1_048_576),
    ("attention", 128): (133_376, 2_097_152),
    ("conv_attention", 64): (21_696, 525_056),
    ("conv_attention", 128): (84_352, 1_050_112),
    ("based", 64): (15_296, 40_548),
    ("based", 128): (55_168, 80_484),
    ("hyena", 64): (67_200, 524_288),
    ("hyena", 128): (176_512, 1_048_576),
    ("base_conv", 64): (13_440, 262_912),
    ("base_conv", 128): (40_128, 525_824),
    ("sliding_attention", 64): (21_696, 33_536),
    ("sliding_attention", 128): (84_352, 67_072),
    ("h3", 64): (41_344, 8_192),
    ("h3", 128): (162_560, 32_768),
}


@pytest.mark.parametrize(("preset", "width"), PUBLISHED)
def test_presets_have_the_published_sizes(preset, width):
    content = yaml.safe_load((PROJECT / f"config/hyperparam/{preset}.yaml").read_text())
    given = {key: value for key, value in content.items() if key not in declarations(Recipe) and key != "model"}
    net = net_of((1024 + 4,), 8192, 4, **{**given, "width": width})
    parameters, state = PUBLISHED[preset, width]
    tables = 8192 * width + (1024 * width if given.get("positions") else 0)
    assert count_parameters(net) - tables == parameters
    assert 4 * net.trunk.state_size(1024) == state


# Choices of published encoders


def test_a_layer_without_normalisation_is_that_of_nanda():
    """Attention of one head without biases, ReLU, no norms, outputs of their own, written out."""
    chosen = [{"mixer": "attention", "bias": False}]
    net = net_of(mixers=chosen, layers=1, norm="none", activation="relu", tied=False, positions=True, init="torch")
    trunk, inputs = net.double().eval().trunk, token_inputs()
    assert not any("norm" in name for name, _ in trunk.named_parameters())
    (block,) = trunk.blocks
    stream = trunk.embed.weight[inputs[:, :12]] + trunk.positions
    q, k, v = (stream @ block.mixer.qkv_proj.weight.T).split(8, -1)
    scores = (q @ k.transpose(1, 2) / math.sqrt(8)).masked_fill(~torch.ones(12, 12).tril().bool(), -torch.inf)
    stream = stream + scores.softmax(-1) @ v @ block.mixer.out_proj.weight.T
    hidden = (stream @ block.state.fc1.weight.T + block.state.fc1.bias).clamp(min=0)
    outputs = (stream + hidden @ block.state.fc2.weight.T + block.state.fc2.bias) @ trunk.unembed.weight.T
    at = inputs[:, 12:].unsqueeze(-1).expand(-1, -1, 11)
    assert (net(inputs, FIRST.expand(4)) - outputs.gather(1, at)).abs().max() < 1e-12


@pytest.mark.parametrize("width", [12, 15, 32])
def test_one_hot_embeddings_are_unit_vectors_with_sines_beside_them(width):
    trunk = net_of(width=width, embedding="one_hot").trunk
    assert not any(name.startswith(("embed", "positions")) for name, _ in trunk.named_parameters())
    inputs, others = token_inputs(), width - 11
    for row, stream in zip(inputs.tolist(), trunk.embedded(inputs), strict=True):
        for place, values in enumerate(stream.tolist()):
            assert values[:11] == [float(token == row[place]) for token in range(11)]
            for number, value in enumerate(values[11:]):
                angle = place / 10000 ** ((number - number % 2) / others)
                assert value == pytest.approx((math.cos if number % 2 else math.sin)(angle), abs=1e-6)
    assert torch.equal(trunk.unembedding, torch.eye(11, width))


def test_frozen_embeddings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="needs more than the 11 tokens"):
        net_of(width=11, embedding="one_hot")
    with pytest.raises(UserError, match="leave the learned ones out"):
        net_of(width=16, embedding="one_hot", positions=True)
    with pytest.raises(UserError, match="is for tokens"):
        net_of((6, 5), embedding="one_hot")


@pytest.mark.parametrize("name", ["attention", "sliding_attention"])
def test_attention_that_is_not_causal_does_not_know_the_order(name):
    """Reversed inputs have reversed outputs, with or without a window; and there is no step form."""
    net = net_of(mixers=[{"mixer": name, "heads": 2, "causal": False, **({"window": 3} if "_" in name else {})}])
    mixer = net.trunk.blocks[0].mixer.double().eval()
    inputs = torch.randn(2, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        outputs, backwards = mixer(inputs), mixer(inputs.flip(1))
        assert (outputs - backwards.flip(1)).abs().max() < 1e-12
        values = mixer.qkv_proj(inputs)[..., 16:].unflatten(-1, (2, 4))  # behind queries and keys, of two heads
        read = mixer.weights(inputs) @ values.transpose(1, 2)
        assert (mixer.out_proj(read.transpose(1, 2).flatten(2)) - outputs).abs().max() < 1e-12
    assert ((mixer.weights(inputs)[0, 0, 4] > 0).sum() == (5 if "_" in name else 9)).item()
    with pytest.raises(UserError, match="position by position"):
        net.trunk.begin(2)
