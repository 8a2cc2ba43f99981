"""How much of a run is arithmetic, and how fast the arithmetic is.

    python perf/step_efficiency.py [--device cuda] [--repeats 3]

run: images per second of training (images_trained / train_seconds) of a member of 20 epochs, started by the
command line. bare: forward, backward and optimizer step on one fixed batch in place, same net and precision.
naive: the same as it is usually written, see plain.py, with SGD one parameter after the other.
outside: share of the run's wall time outside training. On a GPU, eager: the bare loop without a CUDA graph.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import common  # noqa: F401  # before torch: it decides how threads wait
import torch
from common import (
    BATCH,
    CASES,
    CLASSES,
    DROPOUT,
    TASKS,
    Case,
    bare_step,
    captured,
    fixed_batch,
    in_turn,
    rate,
    ratio,
    run,
    title,
)
from plain import Plain
from torch import Tensor

from net import build_net, settings_class
from training.optimizers import make_optimizer
from training.recipe import Recipe
from utils.compute import keep_freed_memory, pick_device

EPOCHS = 20


def bare(case: Case, device: torch.device) -> Callable[[], Tensor]:
    """A step of our network."""
    heads = dict.fromkeys(range(1, TASKS + 1), CLASSES)
    net = build_net(case.model, case.shape, settings_class(case.model)(dropout=DROPOUT), heads).to(device)
    optimizer = make_optimizer(net, Recipe(batch=BATCH), 0.01)
    return bare_step(net, optimizer, fixed_batch(case, device), bf16=device.type == "cuda")


def naive(case: Case, device: torch.device) -> Callable[[], Tensor]:
    """A step of the plain network."""
    net = Plain(case.shape, [CLASSES] * TASKS).to(device)
    optimizer = torch.optim.SGD(
        net.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-5, foreach=False, fused=False
    )
    images, targets, task_ids = fixed_batch(case, device)
    return bare_step(net, optimizer, (images.contiguous(), targets, task_ids), bf16=device.type == "cuda")


def compare(case: Case, device: torch.device, repeats: int) -> str:
    """A line of the table."""
    if device.type == "cuda":  # as many images as take it some seconds
        case = case._replace(train=8000, test=1600)
    summaries = []

    def trained() -> float:
        summaries.append(run(case, EPOCHS, str(device)))
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
    columns = in_turn(measures, repeats)
    outside = statistics.median(1 - s["train_seconds"] / s["total_seconds"] for s in summaries)
    medians = [statistics.median(column) for column in columns]
    line = (
        f"{case.name:<16} {medians[0]:>9,.0f} {medians[1]:>9,.0f} {ratio(columns[0], columns[1]):>9.2f} {outside:>9.1%}"
    )
    if case.model == "conv":
        line += f" {medians[2]:>9,.0f} {ratio(columns[1], columns[2]):>11.2f}"
    if device.type == "cuda":
        line += f"   eager {medians[-1]:,.0f}, bare/eager {ratio(columns[1], columns[-1]):.2f}"
    return line


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto", help="as for modelzoo.py (default: auto)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of measurements (default: 3)")
    options = parser.parse_args()
    device = pick_device(options.device)
    keep_freed_memory()
    print(f"Step efficiency: images/s, batch {BATCH}. {title(device)}")
    print(f"{'':<16} {'run':>9} {'bare':>9} {'run/bare':>9} {'outside':>9} {'naive':>9} {'bare/naive':>11}")
    for case in CASES:
        print(compare(case, device, options.repeats), flush=True)


if __name__ == "__main__":
    main()
