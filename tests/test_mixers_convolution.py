"""Convolutional mixers: against their equations, one position at a time."""

import cmath
import math

import pytest
import torch

from net.sequences.mixers.convolution import causal_convolution, position_features
from net.sequences.mixers.short_conv import ShortConvolution
from tests.mixing import check_causal, check_forms_agree, check_gradients, inputs_of, mixer_of, stepped
from utils.errors import UserError

KINDS = {
    "short": ("base_conv", {"filter": "short", "kernel": 3}),
    "short silu": ("base_conv", {"filter": "short", "kernel": 30, "silu": True}),
    "implicit": ("base_conv", {"filter": "implicit", "hidden": 5}),
    "explicit": ("base_conv", {"filter": "explicit", "silu": True}),
    "hyena": ("hyena", {"hidden": 5}),
    "h3": ("h3", {}),
    "h3, wide groups": ("h3", {"state": 6, "group": 4}),
}
WITH_FILTERS = ("implicit", "explicit", "hyena")  # of as many positions as the longest input


def built(kind, **more):
    name, settings = KINDS[kind]
    return mixer_of(name, **more, **settings)


def convolved(inputs, kernel):
    """y_t = sum of kernel_{t-s} inputs_s, in loops."""
    outputs = torch.zeros_like(inputs)
    for t in range(inputs.shape[1]):
        for s in range(t + 1):
            if t - s < len(kernel):
                outputs[:, t] += kernel[t - s] * inputs[:, s]
    return outputs


def short_kernel(convolution):
    return convolution.weight[:, 0].flip(-1).T


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_are_causal(kind):
    check_causal(built(kind), exact=KINDS[kind][0] == "base_conv" and kind.startswith("short"))


@pytest.mark.parametrize("kind", KINDS)
def test_forms_of_convolutions_agree(kind):
    check_forms_agree(built(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_convolutions(kind):
    name, settings = KINDS[kind]
    check_gradients(name, **(settings | ({"state": 2} if name == "h3" else {})))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_do_not_depend_on_the_length_of_the_input(kind):
    mixer = built(kind)
    inputs = inputs_of(mixer)
    assert (mixer(inputs)[:, :7] - mixer(inputs[:, :7])).abs().max() < 1e-12


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_fourier_convolution_is_the_direct_one(length):
    inputs, kernel = torch.randn(2, length, 3, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)
    assert (causal_convolution(inputs, kernel) - convolved(inputs, kernel)).abs().max() < 1e-12


def test_fourier_convolution_keeps_half_precision():
    inputs, kernel = torch.randn(2, 5, 3), torch.randn(5, 3)
    found = causal_convolution(inputs.bfloat16(), kernel.bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), causal_convolution(inputs, kernel), atol=0.2)


def test_short_convolution_is_the_direct_one():
    convolution = ShortConvolution(3, 4, bias=True).double()
    inputs = torch.randn(2, 9, 3, dtype=torch.float64)
    expected = convolved(inputs, short_kernel(convolution)) + convolution.bias
    assert (convolution(inputs) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["short", "short silu", "implicit", "explicit"])
def test_base_conv_is_its_equation(kind):
    mixer = built(kind)
    inputs = inputs_of(mixer)
    if kind.startswith("short"):
        mixed = convolved(inputs, short_kernel(mixer.conv)) + mixer.conv.bias
    elif kind == "explicit":
        mixed = convolved(inputs, mixer.conv.filter.weight) + inputs
    else:
        first, _, last = mixer.conv.filter.network
        hidden = (mixer.conv.filter.positions @ first.weight.T + first.bias).clamp(min=0)
        mixed = convolved(inputs, hidden @ last.weight.T + last.bias) + inputs
    gate = inputs @ mixer.gate.weight.T + mixer.gate.bias
    if KINDS[kind][1].get("silu"):
        mixed, gate = mixed * mixed.sigmoid(), gate * gate.sigmoid()
    assert (mixer(inputs) - (mixed * gate + inputs)).abs().max() < 1e-10


def test_hyena_is_its_equation():
    mixer = built("hyena")
    with torch.no_grad():
        mixer.filter.frequency.uniform_(0.5, 2)
    inputs = inputs_of(mixer)
    projected = inputs @ mixer.in_proj.weight.T + mixer.in_proj.bias
    x1, x2, v = (convolved(projected, short_kernel(mixer.short)) + mixer.short.bias).split(8, -1)
    kernel = torch.zeros(24, 8, dtype=torch.float64)
    for t in range(24):
        values = mixer.filter.positions[t]
        for layer in mixer.filter.layers:
            values = torch.sin(mixer.filter.frequency * (layer.weight @ values + layer.bias))
        for channel in range(8):
            delta = math.log(0.01) * (1 / 1.5 + (1 / 0.3 - 1 / 1.5) * channel / 7)
            kernel[t, channel] = math.exp(-t / 23 * abs(delta)) * (mixer.filter.output.weight[channel] @ values)
    long = convolved(v * x1, kernel) + mixer.skip * v * x1
    expected = (long * x2) @ mixer.out_proj.weight.T + mixer.out_proj.bias
    assert (mixer(inputs) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("kind", ["h3", "h3, wide groups"])
@torch.no_grad()
def test_h3_is_its_recurrence(kind):
    """One group, key channel and value channel at a time, the modes as Python's complex numbers."""
    mixer = built(kind)
    torch.nn.init.normal_(mixer.shift.b)
    torch.nn.init.normal_(mixer.diagonal.b)
    inputs = inputs_of(mixer, batch=1, length=9)
    q, k, v = (layer(inputs)[0] for layer in (mixer.q, mixer.k, mixer.v))
    shift, ssm, size = mixer.shift, mixer.diagonal, mixer.width // mixer.groups
    keys, reads = torch.zeros(9, 8, dtype=torch.float64), torch.zeros(9, 8, dtype=torch.float64)
    for channel in range(8):
        past = [0.0] * mixer.states
        for t in range(9):
            past = [shift.b[channel, n] * k[t, channel] + (past[n - 1] if n else 0) for n in range(mixer.states)]
            keys[t, channel] = sum(shift.c[channel, n] * past[n] for n in range(mixer.states))
            keys[t, channel] += shift.d[channel] * k[t, channel]
    for group in range(mixer.groups):
        step = math.exp(ssm.log_step[group])
        rates = [complex(-math.exp(ssm.log_decay[group, m]), ssm.angle[group, m]) for m in range(mixer.states // 2)]
        b, c = ([complex(*pair) for pair in values[group].tolist()] for values in (ssm.b, ssm.c))
        for i in range(group * size, (group + 1) * size):
            for j in range(group * size, (group + 1) * size):
                modes = [0j] * len(rates)
                for t in range(9):
                    product = float(keys[t, i] * v[t, j])
                    for m, a in enumerate(rates):
                        modes[m] = (1 + step * a / 2) / (1 - step * a / 2) * modes[m]
                        modes[m] += step * b[m] / (1 - step * a / 2) * product
                    read = 2 * sum((c[m] * modes[m]).real for m in range(len(rates))) + ssm.d[group] * product
                    reads[t, j] += q[t, i] * read
    expected = reads @ mixer.output.weight.T + mixer.output.bias
    assert (mixer(inputs)[0] - expected).abs().max() < 1e-10
    assert (stepped(mixer, inputs)[0] - expected).abs().max() < 1e-10


def test_initial_values_of_h3():
    mixer = mixer_of("h3", width=64)
    ssm = mixer.diagonal
    assert (ssm.log_decay.exp() - 0.5).abs().max() < 1e-6
    assert (ssm.angle - math.pi * torch.arange(8)).abs().max() < 1e-5
    assert ssm.log_step.min() >= math.log(0.001)
    assert ssm.log_step.max() <= math.log(0.1)
    assert (mixer.shift.b == torch.eye(1, 16)).all()
    assert abs(ssm.c.square().sum(-1).mean() - 1) < 0.2  # complex N(0, 1)


def test_position_features_are_time_and_a_slow_wave():
    features = position_features(11)
    for t in range(11):
        wave = cmath.exp(-1j * 1e-4 * 2 * math.pi * t / 11)
        assert features[t].tolist() == pytest.approx([t / 10, wave.real, wave.imag], abs=1e-6)


@pytest.mark.parametrize("kind", WITH_FILTERS)
def test_an_input_longer_than_the_filter_is_an_error(kind):
    mixer = built(kind)
    inputs = inputs_of(mixer, length=25)
    with pytest.raises(ValueError, match="25 positions, the filter only 24"):
        mixer(inputs)
    with pytest.raises(ValueError, match="25 positions, the filter only 24"):
        stepped(mixer, inputs)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(WITH_FILTERS)))
def test_other_convolutions_take_longer_inputs(kind):
    mixer = built(kind)
    inputs = inputs_of(mixer, length=30)
    assert (mixer(inputs) - stepped(mixer, inputs)).abs().max() < 1e-10


@pytest.mark.parametrize("kind", WITH_FILTERS)
def test_a_filter_for_one_position(kind):
    mixer = built(kind, length=1)
    inputs = inputs_of(mixer, length=1)
    assert (mixer(inputs) - stepped(mixer, inputs)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group": 3}, "h3: group is 3; it must divide the width, 8"),
        ({"state": 5}, "h3: state is 5; it must be an even number at least 2"),
    ],
)
def test_settings_of_h3_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        mixer_of("h3", **settings)
