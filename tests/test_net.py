"""Networks: parameter counts of the paper, no dead parameters, and the head against separate linear layers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from net import TRUNKS, build_net, build_trunk, count_parameters, feature_size, has_batch_norm, settings_class
from net.images import smallconv
from net.images.relu_dropout import ReluDropout
from net.multihead import MultiHead
from utils.errors import UserError
from utils.seeding import seeded
from utils.settings import declarations, read

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 84, 84)]


def settings_of(model, dropout=0.0, **settings):
    kind = settings_class(model)
    return kind(**settings, **({"dropout": dropout} if "dropout" in declarations(kind) else {}))


def trunk_of(model, shape, dropout=0.0, **settings):
    return build_trunk(model, shape, settings_of(model, dropout, **settings))


def net_of(model, shape, head_sizes, heads="task", **settings):
    return build_net(model, shape, settings_of(model, **settings), head_sizes, heads)


@pytest.mark.parametrize(
    ("model", "shape", "parameters", "features"),
    [
        # The published counts less what has no effect: two biases of 80 before a normalisation in conv,
        # 86,016 weights of unused shortcuts in the wide ResNet.
        ("conv", (3, 32, 32), 117_840 - 160, 320),
        ("conv", (1, 28, 28), 116_400 - 160, 80),
        ("conv", (3, 84, 84), 117_840 - 160, 320),
        ("conv", (1, 8, 8), 116_400 - 160, 80),
        ("wrn16_4", (3, 32, 32), 2_832_336 - 86_016, 256),
        ("wrn16_4", (3, 84, 84), 2_832_336 - 86_016, 256),
    ],
)
def test_trunks_have_the_size_of_the_paper(model, shape, parameters, features):
    trunk = trunk_of(model, shape, 0.2)
    assert count_parameters(trunk) == parameters
    assert feature_size(trunk, model, shape) == features


@pytest.mark.parametrize(
    ("model", "given", "parameters", "features"),
    [
        ("conv", {"width": 12}, 9 * 3 * 12 + 2 * 9 * 12 * 12 + 2 * 24, 48),
        # One block a group of 16, 32 and 64 channels: stem, convolutions, norms, shortcuts where channels change.
        ("wrn16_4", {"depth": 10, "widen": 1},
         9 * 16 * (3 + 16 + 16 + 32) + 9 * 32 * (32 + 64) + 9 * 64 * 64 + 2 * (16 * 3 + 32 * 2 + 64 * 2)
         + 16 * 32 + 32 * 64, 64),
    ],
)  # fmt: skip
def test_settings_of_a_network_change_its_size(model, given, parameters, features):
    trunk = trunk_of(model, (3, 32, 32), **given)
    assert count_parameters(trunk) == parameters
    assert feature_size(trunk, model, (3, 32, 32)) == features


def test_settings_have_defaults_and_are_checked():
    assert settings_class("conv")() == settings_class("conv")(dropout=0.2, width=80, norm="batch")
    assert settings_class("wrn16_4")() == settings_class("wrn16_4")(dropout=0.2, depth=16, widen=4, norm="batch")
    assert settings_class("mlp")() == settings_class("mlp")(dropout=0.2, widths=(256, 256), bias=True, init="torch")
    assert settings_class("resnet18_nf20")() == settings_class("resnet18_nf20")(channels=20, norm="batch")
    assert read(settings_class("timm/resnet10t"), "h.yaml", {"dropout": 0.5}).dropout == 0.5
    with pytest.raises(UserError, match=r"h\.yaml: width is 0; it must be a whole number at least 1"):
        read(settings_class("conv"), "h.yaml", {"width": 0})
    with pytest.raises(UserError, match=r"depth is 17; a wide residual network has 6n \+ 4 layers"):
        trunk_of("wrn16_4", (3, 32, 32), depth=17)
    with pytest.raises(UserError, match="unknown model 'convv'"):
        settings_class("convv")


def test_which_networks_have_batch_normalisation():
    models = ["conv", "wrn16_4", "resnet18_nf20", "mlp", "timm/resnet10t", "timm/vit_tiny_patch16_224"]
    found = [has_batch_norm(trunk_of(model, (3, 32, 32))) for model in models]
    assert found == [True, True, True, False, True, False]


def test_a_member_with_five_tasks_of_five_classes():
    net = net_of("conv", (3, 32, 32), dict.fromkeys(range(1, 6), 5))
    assert count_parameters(net) == 125_865 - 160


def test_strided_1x1_layers_on_few_channels_compute_with_the_channels_first():
    """With the channels last torch's CPU library crashes in them, or reads what is not theirs; not in every process."""

    class Trunk(nn.Module):
        def __init__(self, shape, settings):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 1, stride=2), nn.Conv2d(8, 8, 1, stride=2), nn.Conv2d(8, 4, 3))

        def forward(self, images):
            return self.layers(images).mean((2, 3))

    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRUNKS, "strided", Trunk)
        net = build_net("strided", (3, 32, 32), None, {1: 2})
    for name, layer in net.trunk.layers.named_children():
        layer.register_forward_hook(lambda layer, args, _, name=name: seen.update({name: (args[0], layer.weight)}))
    images = torch.rand(4, 3, 32, 32).to(memory_format=torch.channels_last)
    outputs = net(images, torch.ones(4, dtype=torch.long))
    assert [tensor.stride()[1] > 1 for tensor in (*seen["0"], *seen["2"])] == [True, False, False, False]
    assert seen["0"][1].stride() == (3, 1, 1, 1)
    assert seen["1"][1].stride()[1] == seen["2"][1].stride()[1] == 1 == seen["2"][0].stride()[1]
    plain = copy.deepcopy(net.trunk).to(memory_format=torch.contiguous_format)
    expected = F.linear(plain(images.contiguous()), net.weight, net.bias)
    torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize("model", ["conv", "wrn16_4", "resnet18_nf20", "mlp", "timm/resnet10t"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_parameter_is_trained(model, shape):
    """Heads of different widths included: no row is padding."""
    with seeded(0, "net"):
        net = net_of(model, shape, {2: 3, 5: 2})
        outputs = net(torch.randn(6, *shape), torch.tensor([2, 5, 2, 5, 2, 5]))
        loss = F.cross_entropy(outputs, torch.tensor([0, 1, 2, 0, 1, 1]))
    loss.backward()
    for name, parameter in net.named_parameters():
        scale = parameter.grad.abs().max().item()
        # conv1 of a timm residual block may start behind a gain of zero
        assert scale > 1e-7 or model.startswith("timm/"), name


@pytest.mark.parametrize("model", ["conv", "wrn16_4", "timm/resnet10t"])
def test_dropout_acts_where_it_is_asked_for(model):
    images = torch.randn(4, 3, 32, 32)
    for dropout, differs in [(0.5, True), (0.0, False)]:
        trunk = trunk_of(model, (3, 32, 32), dropout).train()
        with torch.no_grad():
            assert (not torch.equal(trunk(images), trunk(images))) == differs
            trunk.eval()
            assert torch.equal(trunk(images), trunk(images))


def test_pooling_before_the_activation_changes_nothing():
    trunk = trunk_of("conv", (3, 32, 32), 0.0).train()
    images = torch.randn(5, 3, 32, 32)
    x = F.max_pool2d(F.relu(trunk.conv1(images)), 2)
    x = F.max_pool2d(F.relu(trunk.norm2(trunk.conv2(x))), 2)
    x = F.max_pool2d(F.relu(trunk.norm3(trunk.conv3(x))), 2)
    torch.testing.assert_close(trunk(images), x.flatten(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("height", range(1, 9))
def test_larger_grids_are_pooled_adaptively(height, width):
    """Ties, such as the zeros behind ReLU, included; the gradient as well, but for grids of one row or column."""
    x = torch.randn(3, 4, height, width).relu()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    pooled, expected = smallconv.pooled_to_grid(ours), F.adaptive_max_pool2d(theirs, 2)
    assert torch.equal(pooled, expected)
    if min(height, width) > 1:
        slopes = torch.randn_like(pooled)
        (pooled * slopes).sum().backward()
        (expected * slopes).sum().backward()
        assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_operations_in_place_change_nothing(norm):
    """A residual network of ordinary operations has the same outputs and gradients."""
    trunk = trunk_of("wrn16_4", (3, 16, 16), norm=norm).train()
    plain = copy.deepcopy(trunk)

    def forward(images):
        x = plain.stem(images)
        for block in plain.blocks:
            active = F.relu(block.norm1(x))
            inner = block.conv2(F.relu(block.norm2(block.conv1(active))))
            x = inner + (x if block.shortcut is None else block.shortcut(active))
        return F.relu(plain.norm(x)).mean((2, 3))

    images = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    ours, theirs = trunk(images), forward(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    (ours**2).sum().backward()
    (theirs**2).sum().backward()
    for (name, a), b in zip(trunk.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (1001,), (16, 64, 8, 8)], ids=str)
@pytest.mark.parametrize("p", [0.2, 0.5, 0.999])
def test_relu_and_dropout_in_one(shape, p):
    layer, rng = ReluDropout(p), torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=rng)
    if len(shape) == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    leaf = x.clone().requires_grad_()
    y = layer(leaf * 1)
    kept = y != 0
    assert not kept[x <= 0].any()
    scale = 65536 / (65536 - round(65536 * p))
    torch.testing.assert_close(y, torch.where(kept, x * scale, 0.0))
    direction = torch.randn(shape, generator=rng)
    y.backward(direction)
    torch.testing.assert_close(leaf.grad, torch.where(kept, direction * scale, 0.0))
    torch.testing.assert_close(layer.eval()(x.clone()), F.relu(x))


@given(st.sampled_from([0.001, 0.1, 0.2, 0.5, 0.9]), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_dropout_drops_independently_the_share_asked_for(p, seed):
    n = 40_000
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dropped = (ReluDropout(p)(torch.ones(n)) == 0).double()
    # Five standard deviations of a binomial; the four values that share a random word are looked at apart.
    counts = dropped.view(-1, 4).sum(0)
    assert abs(dropped.sum() - n * p) < 5 * math.sqrt(n * p * (1 - p)) + 1
    assert (abs(counts - n / 4 * p) < 5 * math.sqrt(n / 4 * p * (1 - p)) + 1).all()
    pairs = (dropped[:-1] * dropped[1:]).sum()
    assert abs(pairs - (n - 1) * p * p) < 6 * math.sqrt(n * p * p * (1 + 2 * p)) + 2


class Flatten(nn.Module):
    def forward(self, x):
        return x.flatten(1)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_heads_equal_separate_linear_layers(data):
    ids = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=5, unique=True))
    sizes = {task: data.draw(st.integers(2, 6)) for task in ids}
    net = MultiHead(Flatten(), 4, sizes)
    layers, start = {}, 0
    for task, size in sizes.items():
        layers[task] = (net.weight[start : start + size], net.bias[start : start + size])
        start += size
    inputs = torch.randn(12, 4)
    tasks = torch.tensor(data.draw(st.lists(st.sampled_from(ids), min_size=12, max_size=12)))
    outputs = net(inputs, tasks)
    assert outputs.shape == (12, max(sizes.values()))
    for row, task in enumerate(tasks.tolist()):
        expected = F.linear(inputs[row], *layers[task])
        torch.testing.assert_close(outputs[row, : sizes[task]], expected)
        assert outputs[row].softmax(-1)[sizes[task] :].sum() == 0


def test_the_same_seed_gives_the_same_network_and_members_differ():
    nets = []
    for name in [("member", 0), ("member", 0), ("member", 1)]:
        with seeded(0, *name):
            nets.append(net_of("conv", (1, 8, 8), {1: 2}))
    same, again, other = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_a_transformer_takes_small_images():
    trunk = trunk_of("timm/vit_tiny_patch16_224", (3, 32, 32), 0.0)
    assert feature_size(trunk, "timm/vit_tiny_patch16_224", (3, 32, 32)) == 192


def test_a_model_that_does_not_fit_says_so():
    with pytest.raises(UserError, match=r"no weights are downloaded; name timm/resnet10t, and a file in weights$"):
        trunk_of("timm/resnet10t.c3_in1k", (3, 32, 32))
    trunk = trunk_of("timm/vgg11", (1, 8, 8), 0.0)
    with pytest.raises(UserError, match="timm/vgg11 cannot take inputs of 1x8x8"):
        feature_size(trunk, "timm/vgg11", (1, 8, 8))
