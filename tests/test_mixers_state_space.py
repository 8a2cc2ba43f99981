"""Mamba, Mamba-2 and gated linear attention: against their equations, one position at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from net.sequences.mixers import MIXERS
from net.sequences.mixers.scans import recurrence_, scalar_scan, selective_scan, vector_scan
from tests.mixing import check_causal, check_forms_agree, check_gradients, mixer_of
from utils.errors import UserError
from utils.settings import read

KINDS = [
    ("mamba", {"state": 3}), ("mamba", {"kernel": 0}), ("mamba", {"kernel": 1}), ("mamba2", {"state": 5}),
    ("mamba2", {"head_size": 4, "kernel": 0}), ("gla", {}), ("gla", {"heads": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_mixers_are_causal_and_their_forms_agree(name, settings):
    check_causal(mixer_of(name, **settings))
    check_forms_agree(mixer_of(name, **settings))
    check_gradients(name, **settings)


def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def normed(values, norm):
    return values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight


def convolved(conv, values):
    """The causal convolution of each channel, then SiLU."""
    padded = F.pad(values, (0, 0, 3, 0))
    found = sum(padded[:, j : j + values.shape[1]] * conv.weight[:, 0, j] for j in range(4)) + conv.bias
    return found * found.sigmoid()


def test_mamba_is_its_equation():
    mixer, inputs = mixer_of("mamba", state=3), drawn(2, 50, 8)
    x, z = (inputs @ mixer.in_proj.weight.T).split(16, -1)
    x = convolved(mixer.conv, x)
    r, keys, queries = (x @ mixer.x_proj.weight.T).split([1, 3, 3], -1)
    steps = (1 + (r @ mixer.dt_proj.weight.T + mixer.dt_proj.bias).exp()).log()
    state, outputs = torch.zeros(2, 16, 3, dtype=torch.float64), []
    for t in range(50):
        for n in range(3):
            decay = (-steps[:, t] * mixer.A_log[:, n].exp()).exp()
            state[:, :, n] = decay * state[:, :, n].clone() + steps[:, t] * x[:, t] * keys[:, t, n, None]
        read = (state * queries[:, t, None]).sum(-1) + mixer.D * x[:, t]
        outputs.append((read * z[:, t] * z[:, t].sigmoid()) @ mixer.out_proj.weight.T)
    assert (mixer(inputs) - torch.stack(outputs, 1)).abs().max() < 1e-10


def test_mamba2_is_its_equation():
    mixer, inputs = mixer_of("mamba2", state=3, head_size=8), drawn(2, 50, 8)
    z, mixed, r = (inputs @ mixer.in_proj.weight.T).split([16, 22, 2], -1)
    x, keys, queries = convolved(mixer.conv, mixed).split([16, 3, 3], -1)
    steps = (1 + (r + mixer.dt_bias).exp()).log()
    state, outputs = torch.zeros(2, 2, 3, 8, dtype=torch.float64), []
    for t in range(50):
        read = []
        for h in range(2):
            head = x[:, t, 8 * h : 8 * h + 8]
            decay = (-steps[:, t, h] * mixer.A_log[h].exp()).exp()[:, None, None]
            state[:, h] = decay * state[:, h].clone() + keys[:, t, :, None] * (steps[:, t, h, None] * head)[:, None]
            read.append((state[:, h] * queries[:, t, :, None]).sum(1) + mixer.D[h] * head)
        gated = torch.cat(read, -1) * z[:, t] * z[:, t].sigmoid()
        outputs.append(normed(gated, mixer.norm) @ mixer.out_proj.weight.T)
    assert (mixer(inputs) - torch.stack(outputs, 1)).abs().max() < 1e-10


def test_gated_linear_attention_is_its_equation():
    mixer, inputs = mixer_of("gla", heads=2), drawn(2, 50, 8)
    q, k, v, r = (inputs @ mixer.in_proj.weight.T).split([4, 4, 8, 8], -1)
    gates = (mixer.gate[1].weight @ mixer.gate[0].weight @ inputs.mT).mT + mixer.gate[1].bias
    decays = gates.sigmoid() ** (1 / 16)
    state, outputs = torch.zeros(2, 2, 2, 4, dtype=torch.float64), []
    for t in range(50):
        read = []
        for h in range(2):
            keys, values = slice(2 * h, 2 * h + 2), slice(4 * h, 4 * h + 4)
            written = k[:, t, keys, None] * v[:, t, None, values]
            state[:, h] = decays[:, t, keys, None] * state[:, h].clone() + written
            read.append(normed((state[:, h] * q[:, t, keys, None]).sum(1) / math.sqrt(2), mixer.norm))
        gated = torch.cat(read, -1) * r[:, t] * r[:, t].sigmoid()
        outputs.append(gated @ mixer.out_proj.weight.T)
    assert (mixer(inputs) - torch.stack(outputs, 1)).abs().max() < 1e-10


def looped(name, decay, *parts):
    """A scan as a loop over positions, from its decays, not their logarithms."""
    outputs, state = [], 0.0
    for t in range(parts[0].shape[1]):
        a, *rest = (part[:, t] for part in (decay, *parts))
        if name == "selective":
            u, keys, queries = rest
            state = a * state + torch.einsum("bd,bn->bdn", u, keys)
            outputs.append(torch.einsum("bdn,bn->bd", state, queries))
        else:
            queries, keys, values = rest
            if name == "scalar":  # the heads share queries and keys, and a head has one decay
                queries, keys = (part.unsqueeze(1).expand(-1, 2, -1) for part in (queries, keys))
                a = a.unsqueeze(-1)
            state = a.unsqueeze(-1) * state + keys.unsqueeze(-1) * values.unsqueeze(-2)
            outputs.append((state * queries.unsqueeze(-1)).sum(-2))
    return torch.stack(outputs, 1)


SCANS = {"scalar": scalar_scan, "vector": vector_scan}


def scanned(name, spread, length, dtype=torch.float64, batch=2, width=6, state=3):
    """Decays of which the logarithms spread widely, the scan's inputs, and its outputs."""
    if name == "selective":
        steps, rates = (drawn(batch, length, width) * spread).exp(), -(1 + drawn(width, state).abs())
        parts = [steps, drawn(batch, length, width) + 1, rates, *drawn(2, batch, length, state)]
        parts = [part.to(dtype).requires_grad_() for part in parts]
        decay = (parts[0].unsqueeze(-1) * parts[2]).exp()
        return parts, (decay, parts[1], *parts[3:]), selective_scan(*parts)
    key = (5,) if name == "scalar" else (2, 5)
    logs = -(drawn(batch, length, *((2,) if name == "scalar" else key)) * spread).exp()
    parts = [logs, *drawn(2, batch, length, *key), drawn(batch, length, 2, 4)]
    parts = [part.to(dtype).requires_grad_() for part in parts]
    return parts, (parts[0].exp(), *parts[1:]), SCANS[name](*parts)


def check_scan(found, parts, expected):
    """Outputs and gradients are those of the loop."""
    assert (found - expected).abs().max() < 1e-10
    weights = drawn(*found.shape)
    pairs = zip(*(torch.autograd.grad(y, parts, weights, retain_graph=True) for y in (found, expected)), strict=True)
    assert all((one - other).abs().max() < 1e-9 for one, other in pairs)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100])
@pytest.mark.parametrize("name", ["selective", "scalar", "vector"])
def test_scans_are_loops_over_positions(name, length):
    parts, looping, found = scanned(name, 1.0, length)
    check_scan(found, parts, looped(name, *looping))


def test_the_scan_of_mamba_in_several_chunks_and_parts_of_the_batch():
    parts, looping, found = scanned("selective", 1.0, 20, batch=5, width=256, state=64)
    check_scan(found, parts, looped("selective", *looping))


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_doubling_is_the_recurrence(length):
    decays, values = drawn(2, length, 3)
    for backwards in (False, True):
        found = [values.clone(), values.clone()]
        for doubling in (False, True):
            recurrence_(decays, found[doubling], doubling=doubling, backwards=backwards)
        assert (found[0] - found[1]).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["selective", "scalar", "vector"])
def test_extreme_decays_neither_overflow_nor_lose_the_state(name):
    parts, looping, found = scanned(name, 6.0, 100, torch.float32)  # logarithms from about -1e8 to -1e-8
    assert (found - looped(name, *looping)).abs().max() < 1e-2
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), parts))


def test_half_precision_is_computed_in_single():
    parts, _, found = scanned("scalar", 1.0, 40, torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, scalar_scan(*(part.float() for part in parts)).bfloat16())


@pytest.mark.parametrize("width", [32, 64])
def test_parameters_and_state_are_counted(width):
    def count(name, **settings):
        mixer = mixer_of(name, width=width, **settings)
        return sum(parameter.numel() for parameter in mixer.parameters()), mixer.state_size(1000)

    d, n, rank, heads = width, 16, width // 16, max(1, 2 * width // 64)
    rest = 2 * d * (rank + 2 * n) + 2 * d * (rank + 1) + 2 * d * n + 2 * d + 2 * d * d
    assert count("mamba") == (4 * d * d + 2 * d * 5 + rest, 2 * d * n)
    assert count("mamba", kernel=0) == (4 * d * d + rest, 2 * d * n)
    assert count("mamba", kernel=1) == (4 * d * d + 2 * d * 2 + rest, 2 * d * n)
    mamba2 = d * (4 * d + 2 * n + heads) + (2 * d + 2 * n) * 5 + 3 * heads + 2 * d + 2 * d * d
    assert count("mamba2") == (mamba2, 2 * d * n)
    assert count("mamba2", state=8)[1] == 2 * d * 8
    gla = 4 * d * d + 16 * d + 16 * d // 2 + d // 2
    assert count("gla") == (gla + d, d * d // 2)
    assert count("gla", heads=2) == (gla + d // 2, d * d // 4)


def test_initial_values():
    mamba = mixer_of("mamba", width=64, step_min=0.01, step_max=0.2)
    assert list(mamba.keeps_init()) == [mamba.dt_proj]
    mamba2 = mixer_of("mamba2", width=256, head_size=8, step_min=0.01, step_max=0.2)
    for bias in (mamba.dt_proj.bias, mamba2.dt_bias):  # 128 and 64 steps
        steps = F.softplus(bias).log()
        assert math.log(0.0099) < steps.min() < math.log(0.013)
        assert math.log(0.16) < steps.max() < math.log(0.201)
        assert abs(steps.mean() - math.log(0.01 * 0.2) / 2) < 0.4  # half of them below the geometric mean
    assert mamba.dt_proj.weight.abs().max() <= 0.5 < mamba.dt_proj.weight.abs().max() + 0.05
    assert torch.allclose(mamba.A_log.exp(), torch.arange(1.0, 17).double().expand(128, 16))
    rates = mamba2.A_log.exp()
    assert 1 <= rates.min() < 3 < 14 < rates.max() <= 16
    assert (mamba.D == 1).all()
    assert (mamba2.D == 1).all()


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("mamba", {"step_min": 0.5}, "step_min"),
        ("mamba2", {"head_size": 3}, "head_size"),
        ("gla", {"heads": 3}, "heads"),
    ],
)
def test_bad_settings_are_one_line(name, settings, word):
    kind = MIXERS[name]
    with pytest.raises(UserError, match=f"{name}: {word} is [^\n]*; it must [^\n]*$"):
        kind(8, 24, read(kind.Settings, name, {"mixer": name, **settings}))
