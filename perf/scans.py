"""Chunked scans of sequence mixers, forward and backward, and the same recurrence in a Python loop over positions.

    python perf/scans.py [--length 256] [--batch 32] [--repeats 5]

Width 64, on the CPU; milliseconds, and how many times as long the loops take.
loop: reads position t of the inputs as inputs[:, t], as is usual; the gradient of each read is as large as the inputs.
split loop: the inputs are split into positions beforehand, the fastest of plain loops.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import common
import torch
from torch import Tensor

from net.sequences.mixers import delta, scans

WIDTH, STATE = 64, 16
Inputs = list[Tensor]  # [B, L, ...] each
Advance = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, Tensor]]


class Recurrence(NamedTuple):
    """A recurrence: its inputs, its chunked form, its first state and its step."""

    name: str
    inputs: Callable[[int, int], Inputs]  # batch, length
    chunked: Callable[..., Tensor]
    state: tuple[int, ...]  # its shape, without the batch
    step: Advance


RATES = -torch.arange(1.0, STATE + 1).repeat(2 * WIDTH, 1)


def mamba_inputs(batch: int, length: int) -> Inputs:
    steps, keys, queries = torch.rand(batch, length, 2 * WIDTH) / 10, *torch.randn(2, batch, length, STATE)
    return [steps, torch.randn(batch, length, 2 * WIDTH), keys, queries]


def mamba_step(state: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    step, x, key, query = inputs
    state = (step.unsqueeze(-1) * RATES).exp() * state + x.unsqueeze(-1) * key.unsqueeze(1)
    return state, (state @ query.unsqueeze(-1)).squeeze(-1)


def mamba2_inputs(batch: int, length: int) -> Inputs:
    heads = 2 * WIDTH // 64
    keys, queries = torch.randn(2, batch, length, STATE)
    return [-torch.rand(batch, length, heads), queries, keys, torch.randn(batch, length, heads, 64)]


def mamba2_step(state: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    log_decay, query, key, value = inputs
    state = log_decay.exp()[..., None, None] * state + key[:, None, :, None] * value.unsqueeze(2)
    return state, (query[:, None, None] @ state).squeeze(2)


def gla_inputs(batch: int, length: int) -> Inputs:
    queries, keys = torch.randn(2, batch, length, 1, WIDTH // 2)
    return [-torch.rand_like(keys) / 10, queries, keys, torch.randn(batch, length, 1, WIDTH)]


def gla_step(state: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    log_decay, query, key, value = inputs
    state = log_decay.exp().unsqueeze(-1) * state + key.unsqueeze(-1) * value.unsqueeze(-2)
    return state, (query.unsqueeze(-2) @ state).squeeze(-2)


def mamba_chunked(steps: Tensor, x: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    return scans.selective_scan(steps, x, RATES, keys, queries)


def normed(batch: int, length: int, heads: int, *sizes: int) -> Inputs:
    return [torch.nn.functional.normalize(torch.randn(batch, length, heads, size), dim=-1) for size in sizes]


def delta_inputs(batch: int, length: int) -> Inputs:
    return [*normed(batch, length, 2, 32, 32, 32), torch.rand(batch, length, 2)]


def delta_step(state: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    q, k, v, beta = inputs
    output, state = delta.delta_step(q, k, v, beta, None, state)
    return state, output


def gated_delta_inputs(batch: int, length: int) -> Inputs:
    return [*normed(batch, length, 2, 32, 32, 64), torch.rand(batch, length, 2), -torch.rand(batch, length, 2)]


def gated_delta_step(state: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    q, k, v, beta, log_decay = inputs
    output, state = delta.delta_step(q, k, v, beta, log_decay.exp(), state)
    return state, output


def rwkv7_inputs(batch: int, length: int) -> Inputs:
    r, k, v, a, b = normed(batch, length, 1, *[WIDTH] * 5)
    return [r, -0.6 * torch.rand(batch, length, 1, WIDTH), k, v, a, b]


def rwkv7_step(state: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    r, log_decay, k, v, a, b = inputs
    output, state = delta.generalised_delta_step(r, log_decay, k, v, a, b, state)
    return state, output


CASES = [
    Recurrence("Mamba, 16 states", mamba_inputs, mamba_chunked, (2 * WIDTH, STATE), mamba_step),
    Recurrence("Mamba-2, 16 states", mamba2_inputs, scans.scalar_scan, (2 * WIDTH // 64, STATE, 64), mamba2_step),
    Recurrence("GLA, one head", gla_inputs, scans.vector_scan, (1, WIDTH // 2, WIDTH), gla_step),
    Recurrence("DeltaNet, two heads", delta_inputs, delta.delta_rule, (2, 32, 32), delta_step),
    Recurrence("Gated DeltaNet, two heads", gated_delta_inputs, delta.delta_rule, (2, 32, 64), gated_delta_step),
    Recurrence("RWKV-7, one head", rwkv7_inputs, delta.generalised_delta_rule, (1, WIDTH, WIDTH), rwkv7_step),
]


def loop(case: Recurrence, inputs: Inputs, split: bool) -> Tensor:
    """The outputs of a loop over positions."""
    positions: Sequence[Sequence[Tensor]]
    length = inputs[0].shape[1]
    if split:
        positions = list(zip(*(part.unbind(1) for part in inputs), strict=True))
    state, outputs = torch.zeros(len(inputs[0]), *case.state), []
    for t in range(length):
        state, output = case.step(state, positions[t] if split else [part[:, t] for part in inputs])
        outputs.append(output)
    return torch.stack(outputs, 1)


def measured(case: Recurrence, options: argparse.Namespace) -> None:
    """A line of the table."""
    inputs = [part.requires_grad_() for part in case.inputs(options.batch, options.length)]
    forms: list[Callable[[], Tensor]] = [
        lambda: loop(case, inputs, split=False),
        lambda: loop(case, inputs, split=True),
        lambda: case.chunked(*inputs),
    ]
    with torch.no_grad():
        torch.testing.assert_close(forms[2](), forms[1](), rtol=1e-3, atol=1e-3)
    gradient = torch.randn_like(forms[2]())

    def timed(form: Callable[[], Tensor]) -> float:
        def once() -> None:
            torch.autograd.grad(form(), inputs, gradient)

        return 1000 * common.seconds_a_call(once, torch.device("cpu"), seconds=0.1)

    columns = common.in_turn([lambda form=form: timed(form) for form in forms], options.repeats)  # type: ignore[misc]
    ratios = [f"{common.ratio(column, columns[2]):.1f}" for column in columns[:2]]
    common.line(case.name, *(f"{statistics.median(column):.1f}" for column in columns), *ratios)


def main() -> None:
    options = common.options(__doc__, length=256, batch=32, repeats=5)
    print(f"Scans: {options.length} positions, batch {options.batch}. {common.title(torch.device('cpu'))}")
    common.line("", "loop", "split loop", "chunked", "over chunked", "split over it")
    for case in CASES:
        measured(case, options)


if __name__ == "__main__":
    main()
