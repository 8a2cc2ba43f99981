"""The delta rule: a matrix state that drops what a key held before it stores the key's new value.

    S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T,   o_t = S_t q_t

S is kept transposed, [B, H, d_k, d_v]. The parallel forms split the positions into chunks. Inside a chunk, what a
position writes depends on what the ones before it wrote: a triangular system, solved for all chunks at once and for any
state before them. Only these states are then computed one after the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16  # of 8, 16, 32 and 64 the fastest on a CPU, or as fast, for heads of 16, 32 and 64


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None = None, chunk: int = CHUNK
) -> Tensor:
    """The outputs o, [B, L, H, d_v], from a state of 0; in float32 or better, under autocast too.

    Source: Yang et al., "Parallelizing linear transformers with the delta rule over sequence length" (2024), section
    3.2; with decay Yang et al., "Gated delta networks" (2024), section 3.3.

    Args:
        q, k: [B, L, H, d_k]; no k longer than 1.
        v: [B, L, H, d_v].
        beta: [B, L, H], from 0 to 1.
        log_decay: log alpha, [B, L, H], at most 0; without it alpha is 1.
        chunk: positions of a chunk.
    """
    shape = v.shape
    with torch.autocast(q.device.type, enabled=False):
        q, k, v, beta = (_chunks(part, chunk) for part in (q, k, v, beta.unsqueeze(-1)))
        met, read, kept = beta * k, q, None
        held, scores = met @ k.mT, (q @ k.mT).tril()
        if log_decay is not None:
            logs = _chunks(log_decay.unsqueeze(-1), chunk).cumsum(-2)
            later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
            between = (logs - logs.mT).masked_fill(later, -torch.inf).exp()  # masked first: exp could overflow
            held, scores = held * between, scores * between
            since, k = logs.exp(), k * between[..., -1:, :].mT
            met, read, kept = met * since, q * since, since[..., -1:, :]
        stored, states = _scan(_solved(held, beta * v, met), k, kept)
        return _positions(scores @ stored + read @ states, shape)


def delta_step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of `delta_rule`: tensors without L, alpha, state [B, H, d_k, d_v] -> o, the state after it."""
    if decay is not None:
        state = state * decay[..., None, None]
    held = (k.unsqueeze(-2) @ state).squeeze(-2)
    state = state + k.unsqueeze(-1) * (beta.unsqueeze(-1) * (v - held)).unsqueeze(-2)
    return (q.unsqueeze(-2) @ state).squeeze(-2), state


def generalised_delta_rule(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, chunk: int = CHUNK
) -> Tensor:
    """The outputs o, [B, L, H, d_v], of S_t = S_{t-1} (diag(w_t) - a_t b_t^T) + v_t k_t^T, o_t = S_t r_t, from 0.

    Keys are divided by the decay since their chunk began: -log_decay times chunk must stay below 80, for float32.

    Args:
        r, k, a, b: [B, L, H, d_k].
        log_decay: log w, [B, L, H, d_k], at most 0.
        v: [B, L, H, d_v].
        chunk: positions of a chunk.
    """
    shape = v.shape
    with torch.autocast(r.device.type, enabled=False):
        r, log_decay, k, v, a, b = (_chunks(part, chunk) for part in (r, log_decay, k, v, a, b))
        logs = log_decay.cumsum(-2)
        since, inverse = logs.exp(), (-logs).exp()
        met, read = a * (logs - log_decay).exp(), r * since  # a meets the state before its own position decays it
        written = torch.cat([b * inverse, k * inverse], -2)
        seen = torch.cat([met, read], -2) @ written.mT * _earlier(logs)
        (of_b, of_k), scores = seen[..., : logs.shape[-2], :].chunk(2, -1), seen[..., logs.shape[-2] :, :]
        kept = since[..., -1:, :]
        stored, states = _scan(_solved(of_b, -of_k @ v, met), written * kept, kept, v)
        return _positions(scores @ stored + read @ states, shape)


def generalised_delta_step(
    r: Tensor, log_decay: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One position of `generalised_delta_rule`: tensors without L, state [B, H, d_k, d_v] -> o, the state after it."""
    held = a.unsqueeze(-2) @ state
    state = log_decay.exp().unsqueeze(-1) * state - b.unsqueeze(-1) * held + k.unsqueeze(-1) * v.unsqueeze(-2)
    return (r.unsqueeze(-2) @ state).squeeze(-2), state


def _chunks(tensor: Tensor, size: int) -> Tensor:
    """[B, L, H, e] -> [B H, chunks, positions, e], in float32 at least; 0 beyond L, which leaves the state as it is."""
    length = tensor.shape[1]
    size = min(size, length)
    if length % size:
        tensor = F.pad(tensor, (0, 0, 0, 0, 0, -length % size))
    return (
        tensor.unflatten(1, (-1, size))
        .permute(0, 3, 1, 2, 4)
        .flatten(0, 1)
        .to(torch.promote_types(tensor.dtype, torch.float32))
    )


def _positions(chunks: Tensor, shape: torch.Size) -> Tensor:
    """[B H, chunks, positions, e] -> [B, L, H, e]."""
    return chunks.flatten(1, 2).unflatten(0, (shape[0], -1)).transpose(1, 2)[:, : shape[1]]


def _earlier(logs: Tensor) -> Tensor:
    """[2 C, 2 C]: rows of `met` see the columns of positions before theirs, rows of `read` also those of theirs."""
    all = logs.new_ones(logs.shape[-2], logs.shape[-2])
    return torch.cat([all.tril(-1), all.tril()]).repeat(1, 2)


def _solved(held: Tensor, own: Tensor, met: Tensor) -> tuple[Tensor, Tensor]:
    """The x, y of u = x - y S, for what positions write to the state S before the chunk: u = own - met S - held u.

    Of held only what is below the diagonal counts.
    """
    # From the right, which has the order in memory that LAPACK wants.
    sides = torch.cat([own, met], -1).mT
    solved = torch.linalg.solve_triangular(held.mT, sides, upper=True, left=False, unitriangular=True).mT
    return solved[..., : own.shape[-1]], solved[..., own.shape[-1] :]


def _scan(
    solved: tuple[Tensor, Tensor], written: Tensor, kept: Tensor | None, more: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What chunks store, u and then `more`, [B H, chunks, C or 2 C, d_v], and the states before them, [..., d_k, d_v].

    written: keys of what is stored, with the decay until the chunk ends; kept: decay of the whole chunk.
    """
    own, met = (part.unbind(1) for part in solved)  # not by index, whose gradient is as large as all chunks
    keys = written.mT.unbind(1)
    decays = [None] * len(own) if kept is None else kept.mT.unbind(1)
    others = [None] * len(own) if more is None else more.unbind(1)
    state, stored, states = own[0].new_zeros(own[0].shape[0], met[0].shape[-1], own[0].shape[-1]), [], []
    for x, y, key, decay, other in zip(own, met, keys, decays, others, strict=True):
        states.append(state)
        values = torch.baddbmm(x, y, state, alpha=-1)
        stored.append(values if other is None else torch.cat([values, other], -2))
        state = torch.baddbmm(state if decay is None else decay * state, key, stored[-1])
    return torch.stack(stored, 1), torch.stack(states, 1)
