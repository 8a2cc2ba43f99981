"""Kernels of flash-linear-attention in place of the pure forms of sequence mixers."""

import sys
from types import ModuleType

import pytest
import torch

from net.sequences.mixers import kernels
from tests.mixing import inputs_of, mixer_of

KINDS = ["gla", "mamba2", "delta_net", "gated_delta_net", "rwkv7"]
SIZES = {"rwkv7": {"head_size": 32}}  # whose heads would be wider than the network


def recurrence(q, k, v, scale, beta=None, g=None, gk=None, a=None, b=None, head_first=True, cu_seqlens=None):
    """What the package says that its kernels compute, one position at a time: every form of decay and removal."""
    assert not head_first
    state, outputs = v.new_zeros(*k[:, 0].shape, v.shape[-1]), []
    for t in range(k.shape[1]):
        key, value, old = k[:, t], v[:, t], state
        if g is not None:
            state = state * g[:, t].reshape(*g[:, t].shape, *(1,) * (4 - g[:, t].ndim)).exp()
        if gk is not None:
            state = state * gk[:, t].exp().unsqueeze(-1)
        if beta is not None:
            value = beta[:, t].unsqueeze(-1) * (value - torch.einsum("bhkv,bhk->bhv", state, key))
        if a is not None:
            state = state + torch.einsum("bhkv,bhk,bhj->bhjv", old, a[:, t], b[:, t])
        state = state + key.unsqueeze(-1) * value.unsqueeze(-2)
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return torch.stack(outputs, 1), None


@pytest.fixture
def stand_in(monkeypatch):
    """The package, of a version that can take the heads first, with kernels that run anywhere."""
    called = []
    for name, (path, function, _) in kernels.NAMES.items():
        module = ModuleType(path)

        def kernel(q, k, v, scale, beta=None, g=None, gk=None, a=None, b=None, head_first=True, cu_seqlens=None,
                   name=name):  # fmt: skip
            called.append(name)
            return recurrence(q, k, v, scale, beta, g, gk, a, b, head_first)

        setattr(module, function, kernel)
        monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    monkeypatch.setattr(kernels, "runs_on", lambda values: True)
    every = (torch.float32, torch.bfloat16)
    monkeypatch.setattr(kernels, "NAMES", {name: (*place, every) for name, (*place, _) in kernels.NAMES.items()})
    kernels.kernel_of.cache_clear()
    yield called
    kernels.kernel_of.cache_clear()


@pytest.mark.parametrize("name", KINDS)
def test_kernels_are_given_what_the_pure_form_computes_with(stand_in, monkeypatch, name):
    mixer = mixer_of(name, width=64, dtype=torch.float32, **SIZES.get(name, {}))
    inputs = inputs_of(mixer, length=20, dtype=torch.float32)
    with torch.no_grad():
        found = mixer(inputs)
        assert len(stand_in) == 1
        monkeypatch.setattr(kernels, "runs_on", lambda values: False)
        assert (found - mixer(inputs)).abs().max() < 1e-5 * found.abs().max()
    assert len(stand_in) == 1


def test_kernels_do_not_get_what_they_cannot_take(stand_in):
    for width, dtype in ((16, torch.float32), (64, torch.float64)):  # keys of 8 values, double precision
        mixer = mixer_of("gla", width=width, dtype=dtype)
        mixer(inputs_of(mixer, dtype=dtype))
    assert not stand_in


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", KINDS)
def test_kernels_are_the_pure_forms(name):
    pytest.importorskip("fla")
    mixer = mixer_of(name, width=64, dtype=torch.float32, **SIZES.get(name, {}))
    inputs = inputs_of(mixer, length=100, dtype=torch.float32)
    expected = mixer(inputs)
    expected_gradients = torch.autograd.grad(expected.sum(), mixer.parameters())
    with torch.autocast("cuda", torch.bfloat16):
        found = mixer.cuda()(inputs.cuda())
    gradients = torch.autograd.grad(found.float().sum(), mixer.parameters())
    assert (found.cpu() - expected).abs().max() < 0.05 * expected.abs().max()
    for one, other in zip(gradients, expected_gradients, strict=True):
        assert (one.cpu() - other).norm() < 0.1 * other.norm() + 1e-3
