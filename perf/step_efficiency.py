"""How much of a run is arithmetic, and how fast the arithmetic is.

    python perf/step_efficiency.py [--device cuda] [--repeats 3]

run: images per second of training (images_trained / train_seconds) of a member of 20 epochs, started by the
command line. bare: forward, backward and optimizer step on one fixed batch in place, same net and precision.
naive: the same as it is usually written, see plain.py, with SGD one parameter after the other.
outside: share of the run's wall time outside training. On a GPU, eager: the bare loop without a CUDA graph.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import common  # before torch: it decides how threads wait
import torch
from common import BATCH, CASES, CLASSES, TASKS, Case, bare_step, captured, fixed_batch, network, rate, ratio
from plain import Plain, optimizer
from torch import Tensor

from training.optimizers import make_optimizer
from training.recipe import Recipe
from utils.compute import keep_freed_memory, pick_device

EPOCHS = 20


def bare(case: Case, device: torch.device) -> Callable[[], Tensor]:
    """A step of the project's network."""
    net = network(case).to(device)
    sgd = make_optimizer(net, Recipe(batch=BATCH), 0.01)
    return bare_step(net, sgd, fixed_batch(case, device), bf16=device.type == "cuda")


def naive(case: Case, device: torch.device) -> Callable[[], Tensor]:
    """A step of the plain network."""
    net = Plain(case.shape, [CLASSES] * TASKS).to(device)
    images, *others = fixed_batch(case, device)
    sgd = optimizer(net, one_by_one=True)
    return bare_step(net, sgd, (images.contiguous(), *others), bf16=device.type == "cuda")  # type: ignore[arg-type]


def compare(case: Case, device: torch.device, repeats: int) -> str:
    """A line of the table."""
    if device.type == "cuda":  # enough images for some seconds
        case = case._replace(train=8000, test=1600)
    summaries = []

    def trained() -> float:
        summaries.append(common.run(case, EPOCHS, str(device)))
        return summaries[-1]["images_per_second"]

    eager = bare(case, device)
    step = captured(bare(case, device)) if device.type == "cuda" else eager
    measures = [trained, lambda: rate(step)]
    if case.model == "conv":
        plain = naive(case, device)
        measures.append(lambda: rate(plain))
    if device.type == "cuda":
        measures.append(lambda: rate(eager))
    for measure in measures:
        measure()  # the first time, libraries are loaded and algorithms chosen
    summaries.clear()
    columns = common.in_turn(measures, repeats)
    outside = statistics.median(1 - s["train_seconds"] / s["total_seconds"] for s in summaries)
    medians = [statistics.median(column) for column in columns]
    line = f"{case.name:<16} {medians[0]:>9,.0f} {medians[1]:>9,.0f} "
    line += f"{ratio(columns[0], columns[1]):>9.2f} {outside:>9.1%}"
    if case.model == "conv":
        line += f" {medians[2]:>9,.0f} {ratio(columns[1], columns[2]):>11.2f}"
    if device.type == "cuda":
        line += f"   eager {medians[-1]:,.0f}, bare/eager {ratio(columns[1], columns[-1]):.2f}"
    return line


def main() -> None:
    """Print one table."""
    options = common.parser(__doc__).parse_args()
    device = pick_device(options.device)
    keep_freed_memory()
    print(f"Step efficiency: images/s, batch {BATCH}. {common.title(device)}")
    print(f"{'':<16} {'run':>9} {'bare':>9} {'run/bare':>9} {'outside':>9} {'naive':>9} {'bare/naive':>11}")
    for case in CASES:
        print(compare(case, device, options.repeats), flush=True)


if __name__ == "__main__":
    main()
