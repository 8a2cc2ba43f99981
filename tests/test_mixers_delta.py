"""Mixers with a delta rule: against their equations, one position at a time, and exact identities."""

import math

import pytest
import torch
import torch.nn.functional as F

from net.sequences.mixers.delta import delta_rule, generalised_delta_rule
from net.sequences.mixers.short_conv import ShortConvolution
from tests.mixing import check_causal, check_forms_agree, check_gradients, inputs_of, mixer_of
from utils.errors import UserError

SETTINGS = {"delta_net": {"heads": 2}, "gated_delta_net": {"heads": 2}, "rwkv7": {"head_size": 4, "rank": 2}}
DOUBLE = torch.float64


def drawn(name, **sizes):
    """A mixer all of whose parameters are random, so that none is at a value that hides a mistake."""
    mixer, noise = mixer_of(name, **SETTINGS[name], **sizes), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=noise, dtype=DOUBLE)
    return mixer


@pytest.mark.parametrize("name", SETTINGS)
def test_mixers_are_causal_and_their_forms_agree(name):
    check_forms_agree(drawn(name))
    check_causal(drawn(name))
    check_gradients(name, **{**SETTINGS[name], **({"head_size": 2} if name == "rwkv7" else {})})


@pytest.mark.parametrize("name", SETTINGS)
def test_longer_than_a_chunk_forms_agree_and_nothing_leaks_back(name):
    mixer = drawn(name, length=77)
    inputs = inputs_of(mixer, length=77)
    state, found = mixer.begin(3), []
    for position in inputs.unbind(1):
        output, state = mixer.step(position, state)
        found.append(output)
    assert (mixer(inputs) - torch.stack(found, 1)).abs().max() < 1e-10
    changed = inputs.clone()
    changed[:, 41:] *= -3
    mixer, inputs, changed = mixer.float(), inputs.float(), changed.float()
    assert torch.equal(mixer(inputs)[:, :41], mixer(changed)[:, :41])


def convolved(mixer, inputs):
    """SiLU of the convolution, a sum over its taps."""
    projected, kernel = inputs @ mixer.qkv_proj.weight.T, mixer.conv.weight.shape[-1]
    found = torch.zeros_like(projected)
    for t in range(inputs.shape[1]):
        for back in range(min(kernel, t + 1)):
            found[:, t] += mixer.conv.weight[:, 0, kernel - 1 - back] * projected[:, t - back]
    return found * found.sigmoid()


def unit(vector):
    return vector / vector.square().sum(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("name", ["delta_net", "gated_delta_net"])
def test_delta_nets_are_their_equations(name):
    gated = name == "gated_delta_net"
    mixer, per_head, values = drawn(name), 4, 8 if gated else 4
    inputs = inputs_of(mixer)
    mixed, expected = convolved(mixer, inputs), torch.zeros(3, 24, 2, values, dtype=DOUBLE)
    for head in range(2):
        q, k = (unit(mixed[..., start + per_head * head :][..., :per_head]) for start in (0, 8))
        v = mixed[..., 16 + values * head :][..., :values]
        beta = (inputs @ mixer.beta_proj.weight[head]).sigmoid()
        alpha = torch.ones_like(beta)
        if gated:
            step = (1 + (inputs @ mixer.decay_proj.weight[head] + mixer.dt_bias[head]).exp()).log()
            alpha = (-mixer.A_log[head].exp() * step).exp()
        for b in range(3):
            state = torch.zeros(values, per_head, dtype=DOUBLE)
            for t in range(24):
                erase = torch.eye(per_head, dtype=DOUBLE) - beta[b, t] * torch.outer(k[b, t], k[b, t])
                state = alpha[b, t] * state @ erase + beta[b, t] * torch.outer(v[b, t], k[b, t])
                expected[b, t, head] = state @ q[b, t] / math.sqrt(per_head)
    expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    expected = expected.flatten(2)
    if gated:
        gate = inputs @ mixer.gate_proj.weight.T
        expected = expected * gate * gate.sigmoid()
    assert (mixer(inputs) - expected @ mixer.o_proj.weight.T).abs().max() < 1e-10


def test_rwkv7_is_its_equations():
    mixer = drawn("rwkv7")
    inputs = inputs_of(mixer)
    before = torch.cat([torch.zeros_like(inputs[:, :1]), inputs[:, :-1]], 1)
    x_r, x_d, x_k, x_v, x_a, x_g = (inputs + (before - inputs) * mu for mu in mixer.mixing)
    r, k, v = (
        x @ layer.weight.T for x, layer in ((x_r, mixer.read_proj), (x_k, mixer.key_proj), (x_v, mixer.value_proj))
    )
    d = mixer.decay_bias + (x_d @ mixer.decay[0].weight.T).tanh() @ mixer.decay[2].weight.T
    w = (-math.exp(-0.5) * d.sigmoid()).exp()
    a = (mixer.rate_bias + x_a @ mixer.rate[0].weight.T @ mixer.rate[2].weight.T).sigmoid()
    gate = (x_g @ mixer.gate[0].weight.T).sigmoid() @ mixer.gate[2].weight.T
    replacing = k * (1 + (a - 1) * mixer.replacement)
    expected = torch.zeros(3, 24, 8, dtype=DOUBLE)
    for b in range(3):
        for part in (slice(0, 4), slice(4, 8)):
            removed, state = unit((k * mixer.removal)[b, :, part]), torch.zeros(4, 4, dtype=DOUBLE)
            for t in range(24):
                change = w[b, t, part].diag() - torch.outer(removed[t], a[b, t, part] * removed[t])
                state = state @ change + torch.outer(v[b, t, part], replacing[b, t, part])
                o = state @ r[b, t, part]
                o = (o - o.mean()) / (o.var(correction=0) + 4e-5).sqrt()
                o = o * mixer.norm.weight[part] + mixer.norm.bias[part]
                bonus = (r[b, t, part] * mixer.bonus[part] * replacing[b, t, part]).sum() * v[b, t, part]
                expected[b, t, part] = o + bonus
    assert (mixer(inputs) - (gate * expected) @ mixer.o_proj.weight.T).abs().max() < 1e-10


def rule(q, k, v, beta, log_decay):
    """The delta rule, one position after the other."""
    state, found = torch.zeros(v.shape[0], v.shape[2], v.shape[3], k.shape[3], dtype=v.dtype), []
    for t in range(q.shape[1]):
        state = state * log_decay[:, t].exp()[..., None, None]
        error = v[:, t] - torch.einsum("bhvk,bhk->bhv", state, k[:, t])
        state = state + torch.einsum("bhv,bhk,bh->bhvk", error, k[:, t], beta[:, t])
        found.append(torch.einsum("bhvk,bhk->bhv", state, q[:, t]))
    return torch.stack(found, 1)


def sequences(length, size=4, alike=0.0):
    """Queries, keys of norm 1, values, beta and decays; alike: 1 if all keys of a head are the same."""
    rng = torch.Generator().manual_seed(length)
    q, k, v = torch.randn(3, 2, length, 2, size, generator=rng, dtype=DOUBLE)
    k = unit(alike * k[:, :1] + (1 - alike) * k)
    beta, log_decay = torch.rand(2, 2, length, 2, generator=rng, dtype=DOUBLE)
    return q, k, v, beta, -log_decay


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_any_length_and_chunk(length, chunk):
    q, k, v, beta, log_decay = sequences(length)
    assert (delta_rule(q, k, v, beta, log_decay, chunk) - rule(q, k, v, beta, log_decay)).abs().max() < 1e-10
    assert (delta_rule(q, k, v, beta, None, chunk) - rule(q, k, v, beta, 0 * log_decay)).abs().max() < 1e-10
    channels = log_decay.unsqueeze(-1).expand_as(k).contiguous()
    erased = k * (beta * log_decay.exp()).unsqueeze(-1)
    found = generalised_delta_rule(q, channels, beta.unsqueeze(-1) * k, v, k, erased, chunk)
    assert (found - rule(q, k, v, beta, log_decay)).abs().max() < 1e-10  # the delta rule is a case of it


@pytest.mark.parametrize("decay", [0.0, -1e-9, -1.0, -80.0, -1e4])
@pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("alike", [0.0, 0.999, 1.0])
def test_extreme_decays_rates_and_equal_keys(decay, rate, alike):
    q, k, v, beta, log_decay = sequences(70, alike=alike)
    beta, log_decay = torch.full_like(beta, rate), torch.full_like(log_decay, decay)
    log_decay[:, ::7] = -1e-3
    expected = rule(q, k, v, beta, log_decay)
    assert (delta_rule(q, k, v, beta, log_decay) - expected).abs().max() < 1e-10
    single = [part.float().requires_grad_() for part in (q, k, v, beta, log_decay)]
    found = delta_rule(*single)
    assert (found - expected).abs().max() < (5e-2 if decay < -1e3 else 1e-3)
    found.square().sum().backward()
    assert all(part.grad.isfinite().all() for part in single)


@pytest.mark.parametrize("decay", [0.0, -math.exp(-0.5)])
def test_the_generalised_rule_is_safe_in_single_precision(decay):
    q, k, v, beta, _ = sequences(200, size=16)
    channels = torch.full_like(k, decay)
    parts = (q, channels, k, v, k, beta.unsqueeze(-1) * k)
    expected = generalised_delta_rule(*parts, chunk=1)
    single = [part.float().requires_grad_() for part in parts]
    found = generalised_delta_rule(*single, chunk=64)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    found.square().sum().backward()
    doubles = [part.detach().requires_grad_() for part in parts]
    generalised_delta_rule(*doubles, chunk=1).square().sum().backward()
    for one, two in zip(single, doubles, strict=True):
        assert (one.grad - two.grad).abs().max() < 1e-3 * two.grad.abs().max()


def test_orthonormal_keys_store_and_overwrite_exactly():
    """With orthonormal keys and beta = 1, a query finds the last value written under its key, or 0."""
    rng = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=rng, dtype=DOUBLE))[0]
    written = torch.randint(16, (100,), generator=rng)
    asked = torch.randint(16, (100,), generator=rng)
    values = torch.randn(100, 16, generator=rng, dtype=DOUBLE)
    keys, queries, values = (part.view(1, 100, 1, 16) for part in (basis[written], basis[asked], values))
    found = delta_rule(queries, keys, values, torch.ones(1, 100, 1, dtype=DOUBLE))[0, :, 0]
    held = torch.zeros(16, 16, dtype=DOUBLE)
    for t in range(100):
        held[written[t]] = values[0, t, 0]
        assert (found[t] - held[asked[t]]).abs().max() < 1e-12


@pytest.mark.parametrize("width", [64, 128])
def test_parameter_counts_and_states(width):
    """Published states, in bytes with the 3 d of a convolution in another layer: DeltaNet 8960 and 34304."""
    counts, states = {}, {}
    for name in SETTINGS:
        mixer = mixer_of(name, width=width)
        counts[name] = sum(parameter.numel() for parameter in mixer.parameters())
        states[name] = mixer.state_size(256)
        assert states[name] == mixer.begin(1)[0].numel()
    d = width
    assert counts["delta_net"] == 4 * d * d + 3 * d * 4 + 2 * d + d // 2
    assert counts["gated_delta_net"] == 4 * d * d + 4 * d * 4 + 2 * 2 * d + 2 * 2 + 2 * d * d + 2 * d * d + d
    assert counts["rwkv7"] == 4 * d * d + 3 * 2 * 32 * d + 6 * d + 5 * d + 2 * d
    assert states == {"delta_net": d * d // 2, "gated_delta_net": d * d, "rwkv7": 64 * d}
    assert 4 * (states["delta_net"] + 3 * d) == {64: 8960, 128: 34304}[d]


def test_initial_values():
    gated, rwkv = mixer_of("gated_delta_net", width=256, heads=128), mixer_of("rwkv7", width=64)
    step, rates = F.softplus(gated.dt_bias), gated.A_log.exp()
    assert 0.001 <= step.min() < 0.003
    assert 0.03 < step.max() <= 0.1
    assert abs(step.log().mean() - math.log(0.01)) < 0.4
    assert rates.max() <= 16
    assert abs(rates.mean() - 8) < 1.5
    kept = list(rwkv.keeps_init())
    assert len(kept) == 6
    assert all((layer.weight == 0).all() for layer in kept[::2])
    assert torch.allclose(kept[1].weight.T @ kept[1].weight, 0.01 * torch.eye(32, dtype=DOUBLE), atol=1e-7)


def test_in_half_precision_the_state_stays_single():
    q, k, v, beta, log_decay = (part.bfloat16() for part in sequences(70))
    with torch.autocast("cpu", torch.bfloat16):
        found = delta_rule(q, k, v, beta, log_decay)
    assert found.dtype == torch.float32
    expected = rule(*(part.double() for part in (q, k, v, beta, log_decay)))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    for name in SETTINGS:
        mixer = drawn(name, length=40).float()
        with torch.autocast("cpu", torch.bfloat16):
            assert mixer(inputs_of(mixer, length=40, dtype=torch.float32)).isfinite().all()


@pytest.mark.parametrize("bias", [False, True])
def test_the_short_convolution_steps_as_it_runs(bias):
    conv = ShortConvolution(6, 3, bias).double()
    inputs = torch.randn(2, 9, 6, dtype=DOUBLE)
    usual = F.conv1d(F.pad(inputs.mT, (2, 0)), conv.weight, conv.bias, groups=6).mT
    assert (conv(inputs) - usual).abs().max() < 1e-12
    seen = conv.begin(2)
    for t in range(9):
        output, seen = conv.step(inputs[:, t], seen)
        assert (output - usual[:, t]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("name", "settings"),
    [("delta_net", {"heads": 3}), ("gated_delta_net", {"heads": 3}), ("rwkv7", {"head_size": 3})],
)
def test_heads_must_divide_the_width(name, settings):
    with pytest.raises(UserError, match=f"{name}: .* is 3; it must divide the width, 8"):
        mixer_of(name, width=8, **settings)
