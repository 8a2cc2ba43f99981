"""Attention to a window and linear attention: against their equations; sizes of mixers as published."""

import math

import pytest
import torch

from net.sequences.mixers.feature_maps import FEATURE_MAPS
from tests.mixing import check_causal, check_forms_agree, check_gradients, inputs_of, mixer_of, stepped
from utils.errors import UserError

MAPS = sorted(FEATURE_MAPS)


@pytest.mark.parametrize("window", [1, 5, 100])
def test_attention_to_a_window_is_causal_and_its_forms_agree(window):
    if window > 1:
        check_causal(mixer_of("sliding_attention", heads=2, window=window))
    check_forms_agree(mixer_of("sliding_attention", heads=2, window=window))
    check_gradients("sliding_attention", heads=2, window=window)


@pytest.mark.parametrize("window", [1, 5, 100])
def test_attention_to_a_window_is_its_equation(window):
    mixer = mixer_of("sliding_attention", heads=2, window=window)
    inputs = inputs_of(mixer)
    q, k, v = (mixer.qkv_proj(inputs).view(3, 24, 3, 2, 4)[:, :, part] for part in range(3))
    expected = torch.zeros(3, 24, 2, 4, dtype=torch.float64)
    for t in range(24):
        seen = [s for s in range(24) if t - window < s <= t]
        weights = torch.stack([((q[:, t] * k[:, s]).sum(-1) / math.sqrt(4)).exp() for s in seen])
        total = sum(weight[..., None] * v[:, s] for weight, s in zip(weights, seen, strict=True))
        expected[:, t] = total / weights.sum(0)[..., None]
    assert (mixer(inputs) - mixer.out_proj(expected.flatten(2))).abs().max() < 1e-10


def test_the_state_of_a_window_stays_at_its_size():
    mixer = mixer_of("sliding_attention", heads=2, window=5)
    state = mixer.begin(3)
    for position in inputs_of(mixer).unbind(1):
        _, state = mixer.step(position, state)
    assert sum(part[0].numel() for part in state) == mixer.state_size(24) == 2 * 5 * 8


def mapped(name, values, t, length=24):
    """The features of one query or key, a list of floats, straight from the definitions."""
    f = len(values)
    clipped = [max(x, 0) for x in values]
    angle = math.pi * t / (2 * length)
    total = sum(math.exp(x) for x in values)
    return {
        "taylor": lambda: [
            1,
            *(x / f**0.25 for x in values),
            *(x * y / math.sqrt(2 * f) for x in values for y in values),
        ],
        "relu": lambda: clipped,
        "square": lambda: [x * x for x in values],
        "identity": lambda: values,
        "pos_elu": lambda: [x + 1 if x > 0 else math.exp(x) for x in values],
        "softmax": lambda: [math.exp(x) / total for x in values],
        "cosformer": lambda: [x * math.cos(angle) for x in clipped] + [x * math.sin(angle) for x in clipped],
    }[name]()


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("view", ["quadratic", "chunked"])
def test_linear_attention_is_its_recurrence(name, view):
    mixer = mixer_of("based", heads=2, feature=3, feature_map=name, view=view)
    inputs = inputs_of(mixer, batch=1)
    q, k = (layer(inputs)[0].view(24, 2, 3) for layer in (mixer.q, mixer.k))
    v = mixer.v(inputs)[0].view(24, 2, 4)
    expected = torch.zeros(24, 2, 4, dtype=torch.float64)
    for head in range(2):
        sums, norm = 0.0, 0.0
        for t in range(24):
            query, key = (torch.tensor(mapped(name, x[t, head].tolist(), t), dtype=q.dtype) for x in (q, k))
            sums = sums + key[:, None] * v[t, head]
            norm = norm + key
            expected[t, head] = query @ sums / (query @ norm + 1e-12)
    expected = expected.flatten(1) @ mixer.output.weight.T
    error = 1e-10 * max(1, expected.abs().max())  # scores of either sign may divide by almost nothing
    assert (mixer(inputs)[0] - expected).abs().max() < error
    assert (stepped(mixer, inputs)[0] - expected).abs().max() < error


@pytest.mark.parametrize("name", MAPS)
def test_linear_attention_is_causal_and_its_forms_agree(name):
    for view in ("quadratic", "chunked"):
        check_causal(mixer_of("based", heads=2, feature=3, feature_map=name, view=view))
    if name != "identity":  # its divisor may be almost zero, see the test of its recurrence
        check_forms_agree(mixer_of("based", heads=2, feature=3, feature_map=name))


@pytest.mark.parametrize("name", sorted(set(MAPS) - {"identity", "relu"}))
def test_gradients_of_linear_attention(name):
    check_gradients("based", heads=2, feature=2, feature_map=name)
    check_gradients("based", heads=1, feature=2, feature_map=name, view="chunked")


@pytest.mark.parametrize("name", ["taylor", "cosformer", "pos_elu"])
def test_views_of_linear_attention_agree_over_several_chunks(name):
    found = [mixer_of("based", length=300, feature=4, feature_map=name, view=v) for v in ("quadratic", "chunked")]
    inputs = inputs_of(found[0], batch=2, length=300)
    one, other = (mixer(inputs) for mixer in found)
    assert (one - other).abs().max() < 1e-10
    assert (other - stepped(found[1], inputs)).abs().max() < 1e-10
    changed = inputs.clone()
    changed[:, 200:] += 1
    assert (found[1](changed)[:, :200] == other[:, :200]).all()


def test_the_view_of_long_inputs_is_chosen():
    inputs = inputs_of(mixer_of("based"), batch=1, length=1100)
    auto, quadratic = (mixer_of("based", length=1100, view=view)(inputs) for view in ("auto", "quadratic"))
    assert (auto - quadratic).abs().max() < 1e-10


def test_taylor_features_give_the_exponential_to_second_order():
    phi = FEATURE_MAPS["taylor"](5, 8)
    q, k = torch.randn(2, 3, 8, 1, 5, dtype=torch.float64)
    s = torch.einsum("bthf,bshf->bhts", q, k) / math.sqrt(5)
    features = phi(q, torch.arange(8)), phi(k, torch.arange(8))
    assert features[0].shape[-1] == phi.size == 1 + 5 + 15
    assert (torch.einsum("bthf,bshf->bhts", *features) - (1 + s + s**2 / 2)).abs().max() < 1e-12
    assert (phi.scores(q, k, torch.arange(8)) - (1 + s + s**2 / 2)).abs().max() < 1e-12


@pytest.mark.parametrize("name", MAPS)
def test_the_state_of_linear_attention_has_the_size_it_reports(name):
    mixer = mixer_of("based", heads=2, feature=3, feature_map=name)
    assert mixer.begin(4)[0][0].numel() == mixer.state_size(10) == mixer.state_size(1000)


def test_cosformer_covers_no_longer_input():
    mixer = mixer_of("based", feature_map="cosformer")
    with pytest.raises(ValueError, match="the mixer is for 24"):
        mixer(inputs_of(mixer, length=25))


@pytest.mark.parametrize("name", ["attention", "sliding_attention", "based"])
def test_heads_divide_the_width(name):
    with pytest.raises(UserError, match=f"{name}: heads is 3; it must divide the width, 8"):
        mixer_of(name, heads=3)


SHORT = ("base_conv", {"kernel": 3})
ATTENTION = ("attention", {"heads": 1})
HYENA, H3 = ("hyena", {"kernel": 3}), ("h3", {"group": 2})
PUBLISHED = [  # two layers, then width: parameters without embeddings, bytes of state after 1024 positions
    ((ATTENTION, ATTENTION), {64: (33_920, 1_048_576), 128: (133_376, 2_097_152)}),
    ((SHORT, ATTENTION), {64: (21_696, 525_056), 128: (84_352, 1_050_112)}),
    ((SHORT, ("based", {"feature": 16})), {64: (15_296, 40_548), 128: (55_168, 80_484)}),
    ((HYENA, HYENA), {64: (67_200, 524_288), 128: (176_512, 1_048_576)}),
    ((SHORT, ("base_conv", {"filter": "implicit"})), {64: (13_440, 262_912), 128: (40_128, 525_824)}),
    ((SHORT, ("sliding_attention", {"window": 64})), {64: (21_696, 33_536), 128: (84_352, 67_072)}),
    ((H3, H3), {64: (41_344, 8_192), 128: (162_560, 32_768)}),
]


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("layers", "sizes"), PUBLISHED)
def test_parameters_and_state_are_as_published(layers, sizes, width):
    """Published for two blocks of two layer norms, a final layer norm, no state mixer, up to 1024 positions."""
    mixers = [mixer_of(name, width, 1024, **settings) for name, settings in layers]
    parameters = sum(value.numel() for mixer in mixers for value in mixer.parameters())
    norms = 2 * (2 * 2 * width) + 2 * width
    assert (parameters + norms, 4 * sum(mixer.state_size(1024) for mixer in mixers)) == sizes[width]
