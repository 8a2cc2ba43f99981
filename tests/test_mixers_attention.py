"""Softmax attention: against its equation, one position at a time."""

import math

import torch

from tests.mixing import check_causal, check_forms_agree, check_gradients, inputs_of, mixer_of


def test_attention_is_causal_and_its_forms_agree():
    check_causal(mixer_of("attention", heads=2))
    check_forms_agree(mixer_of("attention", heads=2))
    check_gradients("attention", heads=2)


def test_attention_is_its_equation():
    mixer = mixer_of("attention", heads=2)
    inputs = inputs_of(mixer)
    q, k, v = (mixer.qkv_proj(inputs).view(3, 24, 3, 2, 4)[:, :, part] for part in range(3))
    expected = torch.zeros(3, 24, 2, 4, dtype=torch.float64)
    for t in range(24):
        for head in range(2):
            scores = torch.stack([(q[:, t, head] * k[:, s, head]).sum(-1) / math.sqrt(4) for s in range(t + 1)], -1)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            expected[:, t, head] = sum(weights[:, s, None] * v[:, s, head] for s in range(t + 1))
    assert (mixer(inputs) - mixer.out_proj(expected.flatten(2))).abs().max() < 1e-10
