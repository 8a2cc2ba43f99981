"""Linear recurrences over the positions of a sequence, computed chunk by chunk.

    S_t = decay_t S_{t-1} + (what position t writes),   output_t = (what position t reads of S_t)

Decays are at most 1 and enter as products of those between two positions, or as the exponential of a sum that is at
most 0: nothing overflows, however fast a state decays.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LOG2_E = math.log2(math.e)  # exp x = exp2(x log_2 e): on a processor a quarter of the time
LEAST_DECAY = -64  # log_2 of what a position keeps, at least: no state notices, but sums of such logs stay exact
BLOCK = 4  # positions between which `vector_scan` has a decay for each pair and value of a key
CHUNK = 32  # positions of a chunk in the forms of matrix products
TILE = 2**19  # numbers of a chunk of `selective_scan` (2 MB): more leave the cache of a processor
LEAST_ROWS = 8  # its positions at least: the state before each chunk is kept for the gradients


def exact(scan: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The scan at least in single precision, whatever its tensors have: a state is a sum over many positions."""

    @wraps(scan)
    def computed(*parts: Tensor, **more: int) -> Tensor:
        with torch.autocast(parts[0].device.type, enabled=False):
            kind = torch.promote_types(parts[0].dtype, torch.float32)
            return scan(*(part.to(kind) for part in parts), **more).to(parts[1].dtype)

    return computed


def recurrence_(decays: Tensor, values: Tensor, *, doubling: bool, backwards: bool = False) -> None:
    """values_t += decays_t values_{t-1} for t = 1.., both [c, ...], in place; backwards += decays_{t+1} values_{t+1}.

    Doubling takes log2 c operations on all positions, for GPUs. On a processor a fused operation for each row, while it
    is in the cache, is the least work.
    """
    if not doubling:
        a, rows = decays.unbind(), values.unbind()
        if backwards:
            a, rows = (a[0], *a[:0:-1]), rows[::-1]
        for t in range(1, len(rows)):
            rows[t].addcmul_(a[t], rows[t - 1])
    elif backwards:
        reverse = values.flip(0)
        recurrence_(decays.flip(0).roll(1, 0), reverse, doubling=True)
        values.copy_(reverse.flip(0))
    else:
        span = 1
        while span < len(values):
            values[span:] += decays[span:] * values[:-span]
            decays = torch.cat([decays[:span], decays[span:] * decays[:-span]])
            span *= 2


@exact
def selective_scan(steps: Tensor, inputs: Tensor, rates: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """The scan of Mamba: y_t,i = sum_n C_t,n h_t,i,n with h_t,i,n = exp(D_t,i A_i,n) h_{t-1},i,n + B_t,n u_t,i.

    States exist for one chunk of positions at a time, and the gradients compute them again if there are several.
    Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces" (2023), section 3.

    Args:
        steps: D >= 0, [B, L, d].
        inputs: u, [B, L, d].
        rates: A <= 0, [d, N].
        keys: B, [B, L, N].
        queries: C, [B, L, N].

    Returns:
        y, [B, L, d].
    """
    rates = rates.mT.contiguous()
    block = len(steps)
    if steps.device.type == "cpu":  # so many sequences at a time that LEAST_ROWS positions of them fit into the cache
        block = min(block, max(1, TILE // (LEAST_ROWS * rates.numel())))
    parts = zip(*(part.split(block) for part in (steps, inputs, keys, queries)), strict=True)
    outputs = [_SelectiveScan.apply(d, u, rates, k, q) for d, u, k, q in parts]
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]


class _SelectiveScan(Function):
    """`selective_scan` with rates [N, d]; inside, positions come first and channels last, [c, B, N, d]."""

    @staticmethod
    def forward(ctx: Any, steps: Tensor, inputs: Tensor, rates: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
        batch, length, _ = steps.shape
        parts = [part.transpose(0, 1).contiguous() for part in (steps, inputs, keys, queries)]
        chunk = min(length, max(LEAST_ROWS, TILE // (batch * rates.numel())))
        outputs, state = torch.empty_like(parts[1]), rates.new_zeros(batch, *rates.shape)
        buffers, before = rates.new_empty(2, chunk, *state.shape), []
        for start in range(0, length, chunk):
            here = slice(start, min(start + chunk, length))
            d, u, k, q = (part[here] for part in parts)
            decays, states = buffers[:, : len(d)]
            before.append(state)
            _states(decays, states, state, rates, d, u, k)
            _products(q, states, out=outputs[here])
            state = states[-1].clone()
        ctx.save_for_backward(rates, *parts, *before)
        ctx.chunk, ctx.states = chunk, buffers if len(before) == 1 else None
        return outputs.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        rates, steps, inputs, keys, queries, *before = ctx.saved_tensors
        parts = steps, inputs, keys, queries, gradient.transpose(0, 1).contiguous()
        found = [torch.empty_like(part) for part in parts[:4]]
        of_rates, carry = torch.zeros_like(rates), torch.zeros_like(before[0])
        buffers = rates.new_empty(4 if ctx.states is None else 2, ctx.chunk, *carry.shape)
        for number in reversed(range(len(before))):
            here = slice(number * ctx.chunk, min((number + 1) * ctx.chunk, len(steps)))
            d, u, k, q, y = (part[here] for part in parts)
            of_d, of_u, of_k, of_q = (part[here] for part in found)
            grads, spare = buffers[:2, : len(d)]
            decays, states = (buffers[2:] if ctx.states is None else ctx.states)[:, : len(d)]
            if ctx.states is None:
                _states(decays, states, before[number], rates, d, u, k)
            torch.mul(y.unsqueeze(2), q.unsqueeze(3), out=grads)  # dL/dh_t, first by way of y_t alone
            grads[-1] += carry
            recurrence_(decays, grads, doubling=d.device.type != "cpu", backwards=True)
            _products(y, states.mT, out=of_q)
            _products(u, grads.mT, out=of_k)
            _products(k, grads, out=of_u)
            carry.copy_(grads.mul_(decays)[0])
            grads[1:] *= states[:-1]
            grads[0] *= before[number]  # now dL/d(D_t A)
            torch.sum(torch.mul(grads, rates, out=spare), 2, out=of_d)
            of_rates += torch.mul(grads, d.unsqueeze(2), out=spare).sum((0, 1))
        of_d, of_u, of_k, of_q = (part.transpose(0, 1) for part in found)
        return of_d, of_u, of_rates, of_k, of_q


def _products(rows: Tensor, matrices: Tensor, out: Tensor) -> None:
    """Products of rows and matrices: [c, B, k] and [c, B, k, n] -> [c, B, n]."""
    torch.bmm(rows.flatten(0, 1).unsqueeze(1), matrices.flatten(0, 1), out=out.view(-1, 1, out.shape[-1]))


def _states(
    decays: Tensor, states: Tensor, before: Tensor, rates: Tensor, steps: Tensor, inputs: Tensor, keys: Tensor
) -> None:
    """Fill in the decays and states of a chunk, [c, B, N, d], from the state before it."""
    torch.mul(steps.unsqueeze(2), rates * LOG2_E, out=decays).exp2_()
    torch.mul(inputs.unsqueeze(2), keys.unsqueeze(3), out=states)
    states[0].addcmul_(decays[0], before)
    recurrence_(decays, states, doubling=steps.device.type != "cpu")


@exact
def scalar_scan(log_decay: Tensor, queries: Tensor, keys: Tensor, values: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """The scan of Mamba-2: o_t = S_t^T C_t with S_t = exp(g_t) S_{t-1} + B_t v_t^T, for each head.

    Inside a chunk o = (C B^T * M) v with M_ts = exp(g_{s+1} + .. + g_t) for s <= t.
    Source: Dao and Gu, "Transformers are SSMs" (2024), section 6.

    Args:
        log_decay: g <= 0, [B, L, H].
        queries: C, [B, L, N], the same for all heads.
        keys: B, [B, L, N], likewise.
        values: v, [B, L, H, P].
        chunk: positions of a chunk.

    Returns:
        o, [B, L, H, P].
    """
    length = values.shape[1]
    chunk = min(chunk, length)
    sums, queries, keys, values = (_chunks(part, chunk) for part in (log_decay, queries, keys, values))
    sums, values = (
        _log2_decays(sums, 2).transpose(2, 3),
        values.transpose(2, 3),
    )  # [B, chunks, H, c], [B, chunks, H, c, P]
    between = _decays_between(sums)
    outputs = ((queries @ keys.mT).unsqueeze(2) * between) @ values
    written = (keys.unsqueeze(2) * between[..., -1, :].unsqueeze(-1)).mT @ values
    states = _before(sums[..., -1:, None].exp2(), written)
    outputs = outputs + (queries.unsqueeze(2) @ states) * sums.exp2().unsqueeze(-1)
    return outputs.transpose(2, 3).flatten(1, 2)[:, :length]


@exact
def vector_scan(log_decay: Tensor, queries: Tensor, keys: Tensor, values: Tensor, *, chunk: int = CHUNK) -> Tensor:
    """The scan of gated linear attention: o_t = S_t^T q_t with S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, for each head.

    Source: Yang et al., "Gated linear attention transformers with hardware-efficient training" (2023), section 4.

    Args:
        log_decay: g <= 0, [B, L, H, K].
        queries: q, [B, L, H, K].
        keys: k, [B, L, H, K].
        values: v, [B, L, H, V].
        chunk: positions of a chunk, a power of 2.

    Returns:
        o, [B, L, H, V].
    """
    length = values.shape[1]
    chunk = min(chunk, 1 << (length - 1).bit_length())
    sums, queries, keys, values = (
        _chunks(part, chunk).transpose(2, 3) for part in (log_decay, queries, keys, values)
    )  # [B, chunks, H, c, K]
    sums = _log2_decays(sums, -2)
    last = sums[..., -1:, :]
    states = _before(last.exp2().mT, (keys * (last - sums).exp2()).mT @ values)
    outputs = _halves(sums, queries, keys, values) + (queries * sums.exp2()) @ states
    return outputs.transpose(2, 3).flatten(1, 2)[:, :length]


def _halves(sums: Tensor, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """What the positions of a chunk read of what the chunk has written, [..., c, V]; c is a power of 2.

    The second half of a block reads what the first has written, decayed from there to the end of the first half and
    from there on: two factors of at most 1. Each half is then a block of its own.
    """
    size = sums.shape[-2]
    half = min(BLOCK, size)
    s, q, k, v = (part.unflatten(-2, (-1, half)) for part in (sums, queries, keys, values))
    between = _decays_between(s.movedim(-2, -1)).movedim(-3, -1)
    outputs = (((q.unsqueeze(-2) * between) * k.unsqueeze(-3)).sum(-1) @ v).flatten(-3, -2)
    while half < size:
        (s1, s2), (_, q), (k, _), (v, _) = (
            part.unflatten(-2, (-1, 2, half)).unbind(-3) for part in (sums, queries, keys, values)
        )
        middle = s1[..., -1:, :]
        read = (q * (s2 - middle).exp2()) @ (k * (middle - s1).exp2()).mT @ v
        outputs.unflatten(-2, (-1, 2, half))[..., 1, :, :] += read
        half *= 2
    return outputs


def _log2_decays(log_decay: Tensor, positions: int) -> Tensor:
    """Sums over positions of the logarithms to base 2."""
    return (log_decay * LOG2_E).clamp(min=LEAST_DECAY).cumsum(positions)


def _decays_between(sums: Tensor) -> Tensor:
    """From sums of log_2 decays, [..., c]: how much of what position s wrote is left at t >= s, [..., c, c]; else 0."""
    later = torch.ones(sums.shape[-1], sums.shape[-1], dtype=torch.bool, device=sums.device).triu(1)
    # Masked before the exponential, which could overflow above the diagonal.
    return (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(later, -torch.inf).exp2()


def _before(decays: Tensor, written: Tensor) -> Tensor:
    """The states before each chunk: [B, chunks, ...] decays over a chunk and what it writes -> [B, chunks, ...]."""
    states = [torch.zeros_like(written[:, 0])]
    for decay, new in zip(decays[:, :-1].unbind(1), written[:, :-1].unbind(1), strict=True):
        states.append(decay * states[-1] + new)
    return torch.stack(states, 1)


def _chunks(part: Tensor, chunk: int) -> Tensor:
    """[B, L, ...] -> [B, chunks, c, ...], with zeros behind the last position: they write nothing."""
    missing = -part.shape[1] % chunk
    if missing:
        part = torch.cat([part, part.new_zeros(len(part), missing, *part.shape[2:])], 1)
    return part.unflatten(1, (-1, chunk))
