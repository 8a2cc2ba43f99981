"""Chunked scans of sequence mixers against the same recurrence as a Python loop over positions.

    OMP_NUM_THREADS=1 python perf/scans.py [--repeats 5] [--length 256]

Batches of 32 sequences of width 64, forward and backward, in turn in one process; CPU time, so that other work on the
machine counts little. loop: takes each position by its index, as is usual; unbound: takes all positions apart at once,
which has a cheaper gradient.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import common
import torch
from torch import Tensor

from net.sequences.mixers.delta import delta_rule, delta_step, generalised_delta_rule, generalised_delta_step

BATCH, WIDTH = 32, 64
Scan = Callable[[], Tensor]
Case = Callable[[int], tuple[Scan, Scan, Scan]]  # sequence length -> outputs with gradients: chunked, loop, unbound


def _loops(
    step: Callable[..., tuple[Tensor, Tensor]], parts: list[Tensor], keys: int, values: int
) -> tuple[Scan, Scan]:
    """The outputs of the step form of a mixer with a matrix state, in the two kinds of loop."""

    def outputs(positions: Iterable[Sequence[Tensor]]) -> Tensor:
        state, found = torch.zeros(BATCH, parts[0].shape[2], keys, values), []
        for position in positions:
            output, state = step(*position, state)
            found.append(output)
        return torch.stack(found, 1)

    length = parts[0].shape[1]
    by_index = lambda: outputs([part[:, t] for part in parts] for t in range(length))  # noqa: E731
    return by_index, lambda: outputs(zip(*(part.unbind(1) for part in parts), strict=True))


def _drawn(length: int, heads: int, *sizes: int) -> list[Tensor]:
    """Leaves [B, L, H, size] of norm 1, with gradients."""
    drawn = (torch.randn(BATCH, length, heads, size) for size in sizes)
    return [torch.nn.functional.normalize(part, dim=-1).requires_grad_() for part in drawn]


def _rates(length: int, heads: int) -> Tensor:
    return torch.rand(BATCH, length, heads, requires_grad=True)


def delta_net(length: int, heads: int = 2) -> tuple[Scan, Scan, Scan]:
    """Heads with keys and values of 64 / heads."""
    size = WIDTH // heads
    q, k, v = _drawn(length, heads, size, size, size)
    beta = _rates(length, heads)
    step = lambda q, k, v, beta, state: delta_step(q, k, v, beta, None, state)  # noqa: E731
    return lambda: delta_rule(q, k, v, beta), *_loops(step, [q, k, v, beta], size, size)


def gated_delta_net(length: int) -> tuple[Scan, Scan, Scan]:
    """Two heads with keys of 32 and values of 64."""
    q, k, v = _drawn(length, 2, 32, 32, 64)
    beta, decay = _rates(length, 2), _rates(length, 2)
    chunked = lambda: delta_rule(q, k, v, beta, decay.log())  # noqa: E731
    return chunked, *_loops(delta_step, [q, k, v, beta, decay], 32, 64)


def rwkv7(length: int) -> tuple[Scan, Scan, Scan]:
    """One head of 64."""
    r, k, v, a, b = _drawn(length, 1, *[WIDTH] * 5)
    log_decay = (-0.6 * torch.rand(BATCH, length, 1, WIDTH)).requires_grad_()
    chunked = lambda: generalised_delta_rule(r, log_decay, k, v, a, b)  # noqa: E731
    return chunked, *_loops(generalised_delta_step, [r, log_decay, k, v, a, b], WIDTH, WIDTH)


CASES: dict[str, Case] = {
    "DeltaNet, 1 head": lambda length: delta_net(length, 1),
    "DeltaNet, 2 heads": delta_net,
    "Gated DeltaNet, 2 heads": gated_delta_net,
    "RWKV-7, 1 head": rwkv7,
}


def seconds(scan: Scan) -> float:
    """CPU time of one forward and backward pass."""
    begin = time.process_time()
    scan().sum().backward()
    return time.process_time() - begin


def main() -> None:
    options = common.options(__doc__, repeats=5, length=256)
    print(f"Scans: ms, forward and backward. {common.title(torch.device('cpu'))}")
    common.line("", "chunked", "loop", "unbound", "loop over", "unbound over")
    for name, case in CASES.items():
        scans = case(options.length)
        for scan in scans:
            seconds(scan)
        columns = common.in_turn([lambda scan=scan: seconds(scan) for scan in scans], options.repeats)  # type: ignore[misc]
        cells = [f"{1000 * statistics.median(column):.0f}" for column in columns]
        common.line(name, *cells, *(f"{common.ratio(column, columns[0]):.1f}" for column in columns[1:]))


if __name__ == "__main__":
    main()
