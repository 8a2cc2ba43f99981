"""How much of a run's training is arithmetic: its images per second over those of a bare loop.

    python perf/step_efficiency.py [--device cuda] [--repeats 5]

The bare loop repeats forward, backward and optimizer step on one batch that already lies in place, with the
same network, optimizer and precision. Run and loop alternate in one process, so that a change in the
machine's speed meets both; the table shows medians and the median of the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import torch  # noqa: E402

from datasets.images import ImagePreprocess  # noqa: E402
from datasets.objectives import CrossEntropy  # noqa: E402
from datasets.task import Examples, StreamSpec, Table  # noqa: E402
from methods.training import Batch, Compute, make_optimizer, train_member, training_step  # noqa: E402
from net import build_net  # noqa: E402
from utils.compute import pick_device  # noqa: E402
from utils.config import HyperConfig  # noqa: E402
from utils.monitor import Console  # noqa: E402
from utils.seeding import seeded  # noqa: E402

TASKS, CLASSES, BATCH = 5, 5, 16


class Case(NamedTuple):
    """A network and what it is trained on."""

    name: str
    model: str
    shape: tuple[int, int, int]
    preprocess: ImagePreprocess
    images: int  # trained on between two looks at the clock


CASES = [
    Case("digits, conv", "conv", (1, 8, 8), ImagePreprocess(1, flip=False), 8000),
    Case("MNIST, conv", "conv", (1, 28, 28), ImagePreprocess(4, flip=False), 3200),
    Case("CIFAR, conv", "conv", (3, 32, 32), ImagePreprocess(4, flip=True), 3200),
    Case("CIFAR, WRN-16-4", "wrn16_4", (3, 32, 32), ImagePreprocess(4, flip=True), 480),
]


def compare(case: Case, compute: Compute, repeats: int) -> tuple[float, float, float]:
    """Median images per second of training and of the bare loop, and the median ratio."""
    device, images = compute.device, case.images
    spec = StreamSpec("perf", case.shape, CrossEntropy(), case.preprocess)
    store = torch.randint(0, 256, (images, *case.shape), dtype=torch.uint8, device=device)
    targets = torch.randint(0, CLASSES, (images,), device=device)
    rows = torch.arange(images, device=device).chunk(TASKS)
    sources = [(task, Table(Examples(store, part, targets[part]))) for task, part in enumerate(rows, 1)]
    hyper = HyperConfig(case.model, epochs=1, batch=BATCH, dropout=0.2)
    with seeded(0, "perf"):
        net = build_net(case.model, case.shape, hyper.dropout, dict.fromkeys(range(1, TASKS + 1), CLASSES))
    net.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(net, hyper)
    fixed = Batch(
        spec.preprocess(store[:BATCH]),
        targets[:BATCH],
        torch.randint(1, TASKS + 1, (BATCH,), device=device),
    )

    def bare() -> float:
        net.train()
        begin = time.perf_counter()
        for _ in range(images // BATCH):
            loss = training_step(net, optimizer, spec, compute, fixed)
        loss.item()
        return images / (time.perf_counter() - begin)

    def training() -> float:
        stats = train_member(net, sources, spec, hyper, compute, 0, ("perf",), Console(quiet=True), augment=True)
        return stats.images / stats.seconds

    bare(), training()
    pairs = [(training(), bare()) for _ in range(repeats)]
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return medians[0], medians[1], statistics.median(a / b for a, b in pairs)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto", help="as for modelzoo.py (default: auto)")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements (default: 5)")
    options = parser.parse_args()
    device = pick_device(options.device)
    compute = Compute(device, bf16=device.type == "cuda")
    print(f"{'':<16} {'training':>10} {'bare loop':>10} {'ratio':>7}   images/s, batch {BATCH}, {device}")
    for case in CASES:
        run, bare, ratio = compare(case, compute, options.repeats)
        print(f"{case.name:<16} {run:>10,.0f} {bare:>10,.0f} {ratio:>7.2f}", flush=True)


if __name__ == "__main__":
    main()
