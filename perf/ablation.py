"""What each change to the plain network gave: images per second of the bare loop, batch 16.

    python perf/ablation.py [--device cuda] [--repeats 5]

Each line has the changes of the lines before it; all lines are measured in turn.
"""

from __future__ import annotations

import statistics
from functools import partial

import common  # before torch: it decides how threads wait
import torch
import torch.nn.functional as F
from common import BATCH, CIFAR, CIFAR_WRN, CLASSES, DROPOUT, HEADS, MNIST, TASKS, Case, Step, fixed_batch, network
from plain import Plain, optimizer
from torch import Tensor, nn

from net import feature_size
from net.multihead import MultiHead
from training.optimizers import make_optimizer
from training.recipe import Recipe
from utils.compute import keep_freed_memory, pick_device


class PlainDropout(nn.Module):
    """ReLU and dropout as torch has them, in place of net.images.relu_dropout.ReluDropout."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), DROPOUT, self.training)


def step_of(net: nn.Module, case: Case, device: torch.device, fused: bool, channels_last: bool) -> Step:
    """The bare step of a network, with fused SGD or one that updates one parameter after the other."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = net.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    images, targets, task_ids = fixed_batch(case, device)
    sgd = make_optimizer(net, Recipe(), 0.01) if fused else optimizer(net, one_by_one=True)  # type: ignore[arg-type]
    return common.bare_step(net, sgd, (images.contiguous(memory_format=layout), targets, task_ids))


def conv(case: Case, device: torch.device) -> dict[str, Step]:
    """The small conv net, from the plain one to ours."""

    def stacked() -> MultiHead:
        trunk = Plain(case.shape, [CLASSES]).trunk
        return MultiHead(trunk, feature_size(trunk, "plain", case.shape), HEADS)

    return {
        "as usually written": step_of(Plain(case.shape, [CLASSES] * TASKS), case, device, False, False),
        "+ heads in one tensor": step_of(stacked(), case, device, False, False),
        "+ fused SGD": step_of(stacked(), case, device, True, False),
        "+ channels last": step_of(stacked(), case, device, True, True),
        "+ pooling before ReLU, no idle bias": step_of(network(case), case, device, True, True),
    }


def residual(case: Case, device: torch.device) -> dict[str, Step]:
    """WRN-16-4."""
    *plain, ours = (network(case) for _ in range(4))
    for net in plain:
        for block in net.trunk.blocks:  # type: ignore[union-attr]
            block.dropout = PlainDropout()
    return {
        "torch's dropout and SGD": step_of(plain[0], case, device, False, False),
        "+ fused SGD": step_of(plain[1], case, device, True, False),
        "+ channels last": step_of(plain[2], case, device, True, True),
        "+ ReLU and dropout in one": step_of(ours, case, device, True, True),
    }


def main() -> None:
    """Print one table per network."""
    options = common.options(__doc__, device="auto", repeats=5)
    device = pick_device(options.device)
    keep_freed_memory()
    print(f"What each change gave: images/s, bare loop, batch {BATCH}. {common.title(device)}")
    for case, variants in ((MNIST, conv), (CIFAR, conv), (CIFAR_WRN, residual)):
        steps = variants(case, device)
        columns = common.in_turn([partial(common.rate, step, device, 1.0) for step in steps.values()], options.repeats)
        common.line(case.name)
        for name, column in zip(steps, columns, strict=True):
            speedup = common.ratio(column, columns[0])
            common.line(name, f"{statistics.median(column):,.0f}", f"{speedup:.2f}")


if __name__ == "__main__":
    main()
