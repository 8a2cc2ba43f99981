"""Networks against independent twins: published sizes, the blocks of torchvision, normalisation, initialisation."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from net import build_net, count_parameters, feature_size, settings_class
from net.images.norms import norm_layer
from tests.test_net import net_of, trunk_of
from tests.toys import configured, run_toy, toy_config, toy_stream
from utils.errors import UserError
from utils.seeding import seeded
from utils.settings import read
from utils.torchvision_ops import declare_missing_operators

NORMS = ["batch", "group", "none"]
IMAGES = ["conv", "wrn16_4", "resnet18_nf20"]


@pytest.mark.parametrize(
    ("model", "shape", "given", "outputs", "published"),
    [
        # GEM's, Adam's of the MNIST variants, van de Ven & Tolias's, Hsu et al.'s on images padded to 32x32.
        ("mlp", (1, 28, 28), {"widths": (100, 100)}, 10, 89_610),
        ("mlp", (1, 28, 28), {"widths": ()}, 10, 7_850),
        ("mlp", (1, 28, 28), {"widths": (256, 256)}, 10, 269_322),
        ("mlp", (1, 28, 28), {"widths": (400, 400)}, 10, 478_410),
        ("mlp", (1, 32, 32), {"widths": (400, 400)}, 10, 574_410),
        ("resnet18_nf20", (3, 32, 32), {}, 100, 1_109_240),
        # The usual ResNet-18 for 32x32 images.
        ("resnet18_nf20", (3, 32, 32), {"channels": 64}, 10, 11_173_962),
    ],
)
def test_networks_have_the_published_size(model, shape, given, outputs, published):
    assert count_parameters(net_of(model, shape, {1: outputs}, **given)) == published


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("init", ["torch", "xavier"])
@pytest.mark.parametrize(("shape", "widths"), [((5,), (7, 4, 9)), ((1, 8, 8), (6,)), ((2, 3), (3, 3))], ids=str)
def test_an_mlp_is_a_chain_of_linear_layers_and_takes_any_shape(shape, widths, bias, init):
    trunk = trunk_of("mlp", shape, widths=widths, bias=bias, init=init)
    sizes = [math.prod(shape), *widths]
    assert count_parameters(trunk) == sum((a + bias) * b for a, b in pairwise(sizes))
    twin = nn.Sequential(nn.Flatten())
    for a, b in pairwise(sizes):
        twin.extend([nn.Linear(a, b, bias=bias), nn.ReLU()])
    twin.load_state_dict(dict(zip(twin.state_dict(), trunk.state_dict().values(), strict=True)))
    x = torch.randn(4, *shape)
    torch.testing.assert_close(trunk(x), twin(x))


def test_an_mlp_drops_units_of_every_hidden_layer():
    """With weights that pass every unit on, what remains is a product of factors 0 or 1 / (1 - p)."""
    n = 4000
    trunk = trunk_of("mlp", (n,), dropout=0.5, widths=(n, n))
    with torch.no_grad():
        for layer in trunk.layers:
            layer.weight.copy_(torch.eye(n))
            layer.bias.zero_()
    found = trunk.train()(torch.ones(1, n))
    assert set(found.unique().tolist()) == {0.0, 4.0}
    assert abs((found > 0).float().mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / n)
    assert torch.equal(trunk.eval()(torch.ones(1, n)), torch.ones(1, n))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (400, "widths is 400; it must list the units of up to 1000 hidden layers, such as [256, 256], or [] for none"),
        ([8, 0], "widths: layer 2 is 0; it must be a whole number at least 1"),
        ([8, 2.5], "widths: layer 2 is 2.5"),
        (["8"], "widths: layer 1 is '8'"),
        ([True], "widths: layer 1 is True"),
        ([1] * 1001, "1, ...]; it must list the units of up to 1000"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_wrong_widths_are_one_line(given, words):
    with pytest.raises(UserError) as error:
        read(settings_class("mlp"), "h.yaml", {"widths": given})
    assert words in str(error.value)
    assert len(str(error.value)) < 200


def torchvision_block(channels_in, channels_out, stride, norm):
    """A basic block of torchvision; without a norm its convolutions get the biases."""
    declare_missing_operators()
    from torchvision.models.resnet import BasicBlock

    def layer(channels):
        return norm_layer(norm, channels)

    down = None
    if stride != 1 or channels_in != channels_out:
        down = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), layer(channels_out))
    block = BasicBlock(channels_in, channels_out, stride, down, norm_layer=layer)
    if norm == "none":
        block.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1)
        block.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1)
    return block


def resnet_twin(channels, norm):
    """The reduced ResNet-18 of GEM for 32x32 images, made of torchvision's blocks."""
    stem = [nn.Conv2d(3, channels, 3, padding=1, bias=norm == "none"), norm_layer(norm, channels), nn.ReLU()]
    blocks, before = [], channels
    for stage, stride in enumerate([1, 2, 2, 2]):
        after = channels * 2**stage
        blocks += [torchvision_block(before, after, stride, norm), torchvision_block(after, after, 1, norm)]
        before = after
    return nn.Sequential(*stem, *blocks, nn.AvgPool2d(4), nn.Flatten())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_the_reduced_resnet_equals_one_of_torchvisions_blocks(norm, training):
    """The output of every block, the features, the statistics and the gradients; with the same weights."""
    with seeded(0, "net"):
        trunk, twin = trunk_of("resnet18_nf20", (3, 32, 32), channels=6, norm=norm), resnet_twin(6, norm)
        images = torch.randn(5, 3, 32, 32)
        for name, value in trunk.state_dict().items():  # no gain of one, no mean of zero
            value.copy_(value + torch.rand(value.shape) if value.is_floating_point() and "norm" in name else value)
    twin.load_state_dict(dict(zip(twin.state_dict(), trunk.state_dict().values(), strict=True)))
    found, expected = [], []
    for blocks, outputs in ((trunk.blocks, found), (twin[3:11], expected)):
        for block in blocks:
            block.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output.detach().clone()))
    ours, theirs = trunk.train(training)(images), twin.train(training)(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, theirs)
    (ours**2).sum().backward()
    (theirs**2).sum().backward()
    for (name, a), b in zip(trunk.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4 * b.grad.abs().max().item(), msg=name)
    for a, b in zip(trunk.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 84, 84), (3, 33, 50)], ids=str)
def test_the_reduced_resnet_takes_images_of_any_size(shape):
    trunk = trunk_of("resnet18_nf20", shape)
    assert feature_size(trunk, "resnet18_nf20", shape) == 160
    assert count_parameters(trunk) == 1_093_140 - (3 - shape[0]) * 9 * 20


@pytest.mark.parametrize(
    ("model", "normalised", "biased"),
    [
        # Channels that are normalised, and outputs of the convolutions that have biases instead.
        ("conv", 2 * 80, 2 * 80),
        ("wrn16_4", 16 + 64 * 4 + 128 * 4 + 256 * 4, 16 + 64 * 4 + 128 * 4 + 256 * 4),
        ("resnet18_nf20", 20 * 5 + 40 * 5 + 80 * 5 + 160 * 5, 20 * 5 + 40 * 4 + 80 * 4 + 160 * 4),
    ],
)
def test_the_norm_changes_the_size_by_its_weights_or_by_biases(model, normalised, biased):
    sizes = {norm: count_parameters(trunk_of(model, (3, 32, 32), norm=norm)) for norm in NORMS}
    weights = sum(p.numel() for p in trunk_of(model, (3, 32, 32)).parameters() if p.ndim == 4)
    assert sizes["batch"] == sizes["group"] == weights + 2 * normalised
    assert sizes["none"] == weights + biased


@pytest.mark.parametrize("model", IMAGES)
@pytest.mark.parametrize("norm", NORMS)
def test_only_batch_normalisation_depends_on_the_other_images_and_keeps_statistics(model, norm):
    trunk = trunk_of(model, (3, 16, 16), norm=norm).train()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        together = trunk(images)
        apart = torch.cat([trunk(images[:1]), trunk(images[1:])])
    same = torch.allclose(together, apart, rtol=1e-3, atol=1e-4)
    assert same == (norm != "batch")
    kept = all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    assert kept == (norm != "batch")


@pytest.mark.parametrize("model", IMAGES)
@pytest.mark.parametrize("norm", ["group", "none"])
def test_without_batch_normalisation_every_parameter_is_trained_and_batches_may_be_of_one(model, norm):
    with seeded(0, "net"):
        net = net_of(model, (1, 8, 8), {1: 3}, norm=norm)
        outputs = net.train()(torch.randn(1, 1, 8, 8), torch.tensor([1]))
    outputs[0, 0].backward()
    for name, parameter in net.trunk.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@given(st.integers(1, 600))
@settings(max_examples=60, deadline=None)
def test_group_normalisation_has_zero_mean_and_unit_variance_in_each_group(channels):
    """The most groups of at most 32 that divide the channels and hold four or more of them."""
    allowed = [n for n in range(1, 33) if channels % n == 0 and (n == 1 or channels // n >= 4)]
    images = 3 * torch.randn(2, channels, 3, 3) + 5
    groups = norm_layer("group", channels)(images).view(2, max(allowed), -1)
    torch.testing.assert_close(groups.mean(-1), torch.zeros(2, max(allowed)), rtol=0, atol=1e-4)
    torch.testing.assert_close(groups.var(-1, unbiased=False), torch.ones(2, max(allowed)), rtol=1e-3, atol=0)


def uniform_within(values, bound):
    """Whether values are uniform in plus or minus a bound: none outside, the variance within five standard errors."""
    spread = (values / bound).square().mean() - 1 / 3
    return values.abs().max() <= bound and abs(spread) < 5 * math.sqrt((1 / 5 - 1 / 9) / values.numel())


@pytest.mark.parametrize("heads", ["task", "shared"])
def test_xavier_weights_are_uniform_and_biases_zero(heads):
    """Glorot & Bengio: sqrt(6 / (inputs + outputs)) in every layer and head."""
    sizes = {1: 20, 4: 20} if heads == "shared" else {1: 20, 4: 60, 2: 5}
    with seeded(0, "net"):
        net = net_of("mlp", (90,), sizes, heads, widths=(50, 70), init="xavier")
    layers = [(layer.weight, layer.bias) for layer in net.trunk.layers]
    layers += [(net.weight[net.rows(task)], net.bias[net.rows(task)]) for task in sizes]
    expected = [(50, 90), (70, 50), *((width, 70) for width in sizes.values())]
    for (weight, bias), shape in zip(layers, expected, strict=True):
        assert weight.shape == shape
        assert uniform_within(weight.detach(), math.sqrt(6 / sum(shape)))
        assert not bias.any()


@pytest.mark.parametrize("init", ["torch", "xavier"])
def test_heads_of_tasks_that_arrive_later_begin_like_those_of_the_first(init):
    config = replace(toy_config(method="finetune"), net=configured("mlp", dropout=0.0, widths=[70], init=init))
    learner, _, _ = run_toy(config, toy_stream(2))
    net = learner.network([1], {8: 60, 9: 5})
    for task, width in {8: 60, 9: 5}.items():
        head, xavier = net.weight[net.rows(task)].detach(), math.sqrt(6 / (70 + width))
        assert uniform_within(head, xavier if init == "xavier" else 1 / math.sqrt(70))
        assert not net.bias[net.rows(task)].any()


def test_heads_begin_as_one_draw_for_all_of_them():
    """What torch draws for a single matrix of all rows: the results of earlier versions are kept."""
    for heads, sizes in (("task", {3: 2, 1: 9, 7: 4}), ("shared", {3: 4, 1: 4})):
        with seeded(0, "net"):
            net = net_of("mlp", (3,), sizes, heads, widths=(16,))
        with seeded(0, "net"):
            trunk_of("mlp", (3,), widths=(16,))
            bound = 1 / math.sqrt(16)
            expected = torch.empty(15 if heads == "task" else 4, 16).uniform_(-bound, bound)
        assert torch.equal(net.weight, expected)


@pytest.mark.parametrize(
    ("model", "given"), [("mlp", {"init": "xavier"}), ("resnet18_nf20", {}), ("conv", {"norm": "group"})]
)
def test_a_network_follows_from_the_seed(model, given):
    nets = []
    for seed in (0, 0, 1):
        with seeded(seed, "net"):
            nets.append(build_net(model, (1, 8, 8), settings_class(model)(**given), {1: 2}))
    same, again, other = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize(
    ("model", "given"), [("conv", {"norm": "group"}), ("conv", {"norm": "none"}), ("mlp", {"widths": [12]})]
)
@pytest.mark.parametrize("method", ["finetune", "ewc", "packnet", "gpm"])
def test_where_there_is_no_batch_normalisation_its_setting_changes_nothing(method, model, given):
    stream, answers = toy_stream(2), []
    for bn in ("per_task", "freeze_after_first"):
        config = replace(toy_config(method=method, settings={"bn": bn}), net=configured(model, dropout=0.0, **given))
        answers.append(run_toy(config, stream)[2])
    one, other = answers
    for episode, told in enumerate(one):
        for task, predictions in told.items():
            assert torch.equal(predictions, other[episode][task])
    if method == "packnet":
        assert torch.equal(one[1][1], one[0][1])  # an old task is answered as it was
    elif method == "finetune":
        assert not torch.equal(one[1][1], one[0][1])
