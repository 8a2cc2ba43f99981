"""Networks: parameter counts of the paper, no dead parameters, and the head against separate linear layers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from net import TRUNKS, build_net, build_trunk, count_parameters, feature_size
from net.multihead import MultiHead
from utils.errors import UserError
from utils.seeding import seeded

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 84, 84)]


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
    trunk = build_trunk(model, shape, 0.2)
    assert count_parameters(trunk) == parameters
    assert feature_size(trunk, model, shape) == features


def test_a_member_with_five_tasks_of_five_classes():
    net = build_net("conv", (3, 32, 32), 0.0, dict.fromkeys(range(1, 6), 5))
    assert count_parameters(net) == 125_865 - 160


@pytest.mark.parametrize("model", [*TRUNKS, "timm/resnet10t"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_parameter_is_trained(model, shape):
    """Heads of different widths included: no row is padding."""
    with seeded(0, "net"):
        net = build_net(model, shape, 0.0, {2: 3, 5: 2})
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
        trunk = build_trunk(model, (3, 32, 32), dropout).train()
        with torch.no_grad():
            assert (not torch.equal(trunk(images), trunk(images))) == differs
            trunk.eval()
            assert torch.equal(trunk(images), trunk(images))


def test_pooling_before_the_activation_changes_nothing():
    trunk = build_trunk("conv", (3, 32, 32), 0.0).train()
    images = torch.randn(5, 3, 32, 32)
    x = F.max_pool2d(F.relu(trunk.conv1(images)), 2)
    x = F.max_pool2d(F.relu(trunk.norm2(trunk.conv2(x))), 2)
    x = F.max_pool2d(F.relu(trunk.norm3(trunk.conv3(x))), 2)
    torch.testing.assert_close(trunk(images), x.flatten(1), rtol=0, atol=1e-6)


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
            nets.append(build_net("conv", (1, 8, 8), 0.0, {1: 2}))
    same, again, other = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_a_transformer_takes_small_images():
    trunk = build_trunk("timm/vit_tiny_patch16_224", (3, 32, 32), 0.0)
    assert feature_size(trunk, "timm/vit_tiny_patch16_224", (3, 32, 32)) == 192


def test_a_model_that_does_not_fit_says_so():
    trunk = build_trunk("timm/vgg11", (1, 8, 8), 0.0)
    with pytest.raises(UserError, match="timm/vgg11 cannot take inputs of 1x8x8"):
        feature_size(trunk, "timm/vgg11", (1, 8, 8))
