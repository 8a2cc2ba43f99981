"""What each change to the plain network gave: images per second of the bare loop, batch 16.

    python perf/ablation.py [--device cuda] [--repeats 5]

Each line has the changes of the lines before it; all lines are measured in turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import common  # noqa: F401  # before torch: it decides how threads wait
import torch
import torch.nn.functional as F
from common import (
    CIFAR,
    CIFAR_WRN,
    CLASSES,
    DROPOUT,
    MNIST,
    TASKS,
    Case,
    bare_step,
    fixed_batch,
    in_turn,
    rate,
    ratio,
    title,
)
from plain import Plain
from torch import Tensor, nn

from net import build_net, feature_size, settings_class
from net.multihead import MultiHead
from training.optimizers import make_optimizer
from training.recipe import Recipe
from utils.compute import keep_freed_memory, pick_device

HEADS = dict.fromkeys(range(1, TASKS + 1), CLASSES)
Step = Callable[[], Tensor]


class PlainDropout(nn.Module):
    """What takes the place of net.relu_dropout.ReluDropout."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), DROPOUT, self.training)


def step_of(net: nn.Module, case: Case, device: torch.device, fused: bool, channels_last: bool) -> Step:
    """The bare step of a network, with SGD one parameter after the other or fused."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    images, targets, task_ids = fixed_batch(case, device)
    optimizer = make_optimizer(net, Recipe(), 0.01)  # type: ignore[arg-type]
    if not fused:
        optimizer = torch.optim.SGD(
            net.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-5, foreach=False, fused=False
        )
    batch = (images.contiguous(memory_format=layout), targets, task_ids)
    return bare_step(net, optimizer, batch, bf16=device.type == "cuda")


def stacked(case: Case) -> nn.Module:
    """The plain trunk with all heads in one tensor."""
    trunk = Plain(case.shape, [CLASSES]).trunk
    return MultiHead(trunk, feature_size(trunk, "plain", case.shape), HEADS)


def conv(case: Case, device: torch.device) -> list[tuple[str, Step]]:
    """The small conv net, from the plain one to ours."""
    ours = build_net("conv", case.shape, settings_class("conv")(dropout=DROPOUT), HEADS)
    return [
        ("as usually written", step_of(Plain(case.shape, [CLASSES] * TASKS), case, device, False, False)),
        ("+ heads in one tensor", step_of(stacked(case), case, device, False, False)),
        ("+ fused SGD", step_of(stacked(case), case, device, True, False)),
        ("+ channels last", step_of(stacked(case), case, device, True, True)),
        ("+ pooling before ReLU, no idle bias", step_of(ours, case, device, True, True)),
    ]


def residual(case: Case, device: torch.device) -> list[tuple[str, Step]]:
    """WRN-16-4."""
    nets = [build_net(case.model, case.shape, settings_class(case.model)(dropout=DROPOUT), HEADS) for _ in range(4)]
    for net in nets[:3]:
        for block in net.trunk.blocks:  # type: ignore[union-attr]
            block.dropout = PlainDropout()
    return [
        ("torch's dropout and SGD", step_of(nets[0], case, device, False, False)),
        ("+ fused SGD", step_of(nets[1], case, device, True, False)),
        ("+ channels last", step_of(nets[2], case, device, True, True)),
        ("+ ReLU and dropout in one", step_of(nets[3], case, device, True, True)),
    ]


def main() -> None:
    """Print one table per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto", help="as for modelzoo.py (default: auto)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of measurements (default: 5)")
    options = parser.parse_args()
    device = pick_device(options.device)
    keep_freed_memory()
    print(f"What each change gave: images/s, bare loop, batch 16. {title(device)}")
    for case, variants in ((MNIST, conv), (CIFAR, conv), (CIFAR_WRN, residual)):
        rows = variants(case, device)
        columns = in_turn([lambda step=step: rate(step, 1.0) for _, step in rows], options.repeats)  # type: ignore[misc]
        for (name, _), column in zip(rows, columns, strict=True):
            median = statistics.median(column)
            print(f"{case.name:<16} {name:<36} {median:>8,.0f} {ratio(column, columns[0]):>6.2f}", flush=True)


if __name__ == "__main__":
    main()
