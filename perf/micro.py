"""Parts of a training step against the plain version of each, on a batch of 16.

    python perf/micro.py [--device cuda]

Times are microseconds a batch. Work that is done for many batches at once is measured so and divided.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import common  # before torch: it decides how threads wait
import plain
import torch
import torch.nn.functional as F
from common import BATCH, CIFAR, CIFAR_WRN, CLASSES, TASKS, Case, random_images
from torch import Tensor

from datasets.images.stream import ImagePreprocess
from datasets.mixture import Mixture
from datasets.task import Examples
from net.images.relu_dropout import ReluDropout
from training.optimizers import make_optimizer
from training.recipe import Recipe
from utils.compute import keep_freed_memory, pick_device

CHUNK = 20  # batches that are gathered and augmented together
Operation = Callable[[], object]


def head(device: torch.device) -> tuple[Operation, Operation]:
    """Outputs of five heads for a mixed batch, and their gradients."""
    ours = common.network(CIFAR, 0.0).to(device)
    usual = plain.Plain(CIFAR.shape, [CLASSES] * TASKS).to(device)
    features = torch.randn(BATCH, 320, device=device, requires_grad=True)
    task_ids = torch.arange(BATCH, device=device) % TASKS + 1
    ours.trunk, usual.trunk = torch.nn.Identity(), torch.nn.Sequential()
    return lambda: ours(features, task_ids).sum().backward(), lambda: usual(features, task_ids).sum().backward()


def augmentation(preprocess: ImagePreprocess, device: torch.device) -> tuple[Operation, Operation]:
    """Augment and normalise, against a loop over images."""
    images = random_images(CIFAR, CHUNK * BATCH).pixels.to(device)
    rng = torch.Generator().manual_seed(0)

    def ours() -> None:
        choices = preprocess.draw(len(images), rng)
        preprocess(images, choices if choices is None else choices.to(device))

    def one_by_one() -> None:
        batch = []
        for image in images[:BATCH]:
            if preprocess.padding:
                top, left = torch.randint(9, (2,), generator=rng).tolist()
                image = F.pad(image, [4] * 4)[:, top : top + 32, left : left + 32]
            if preprocess.flip and torch.rand((), generator=rng) < 0.5:
                image = image.flip(-1)
            batch.append((image / 255 - 0.5) / 0.25)
        torch.stack(batch)

    return ours, one_by_one


def gather(device: torch.device) -> tuple[Operation, Operation]:
    """Images of shuffled examples as one tensor, against stacking them."""
    store = random_images(CIFAR, CIFAR.train).pixels.to(device)
    rows = torch.randperm(len(store), device=device)[: CHUNK * BATCH]
    data, listed = Mixture([(1, Examples(store, rows, torch.zeros_like(rows)))]), rows.tolist()[:BATCH]
    return lambda: data.inputs(slice(0, len(rows))), lambda: torch.stack([store[row] for row in listed])


def optimizer(case: Case, device: torch.device) -> tuple[Operation, Operation]:
    """A step of fused SGD, against updating one parameter after the other."""
    nets = [common.network(case, 0.0).to(device) for _ in range(2)]
    for parameter in [parameter for net in nets for parameter in net.parameters()]:
        parameter.grad = torch.randn_like(parameter)
    return make_optimizer(nets[0], Recipe(), 0.01).step, plain.optimizer(nets[1], one_by_one=True).step


def dropout(device: torch.device) -> tuple[Operation, Operation]:
    """ReLU and dropout of the widest activation of a WRN-16-4, and their gradient."""
    ours, values = ReluDropout(0.2), torch.randn(BATCH, 64, 32, 32, device=device)
    values = values.contiguous(memory_format=torch.channels_last).requires_grad_()
    ones = torch.ones_like(values)

    def differentiate(function: Callable[[Tensor], Tensor]) -> Operation:
        return lambda: torch.autograd.grad(function(values * 1), values, ones)

    return differentiate(ours), differentiate(lambda x: F.dropout(F.relu(x), 0.2))


def main() -> None:
    """Print one table."""
    device = pick_device(common.options(__doc__, device="auto").device)
    keep_freed_memory()
    rows = [
        ("five heads, forward and backward", head(device), 1),
        ("crop 32x32x3, normalise", augmentation(ImagePreprocess(4, flip=False), device), CHUNK),
        ("flip, normalise", augmentation(ImagePreprocess(0, flip=True), device), CHUNK),
        ("normalise", augmentation(ImagePreprocess(0, flip=False), device), CHUNK),
        ("gather", gather(device), CHUNK),
        ("optimizer step, conv", optimizer(CIFAR, device), 1),
        ("optimizer step, WRN-16-4", optimizer(CIFAR_WRN, device), 1),
        ("ReLU and dropout, 16x64x32x32", dropout(device), 1),
    ]
    print(f"Parts of a step: microseconds a batch of {BATCH}. {common.title(device)}")
    common.line("", "ours", "plain", "plain/ours")
    for name, operations, batches in rows:
        measures = [partial(common.seconds_a_call, operation, device, 0.2) for operation in operations]
        common.in_turn(measures, 1)
        ours, usual = common.in_turn(measures, 5)
        ours = [seconds / batches for seconds in ours]
        medians = [f"{1e6 * statistics.median(column):,.1f}" for column in (ours, usual)]
        common.line(name, *medians, f"{common.ratio(usual, ours):.2f}")


if __name__ == "__main__":
    main()
