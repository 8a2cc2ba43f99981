"""What each change to the plain network gave, and the preparation of a batch against one image after the other.

    python perf/ablation.py [--device cuda] [--repeats 5]

First images per second of the bare loop, batch 16: each line has the changes of the lines before it. Then microseconds
a batch of 16; ours is measured for twenty batches at once, and divided. All lines of a table are measured in turn.
"""

import statistics
from collections.abc import Callable
from functools import partial

import common  # before torch: it decides how threads wait
import torch
import torch.nn.functional as F
from common import BATCH, CIFAR, CIFAR_WRN, CLASSES, DROPOUT, HEADS, MNIST, TASKS, Case, Step, network, step_of
from plain import Plain
from torch import Tensor, nn

from datasets.images.stream import ImagePreprocess
from datasets.mixture import Mixture
from datasets.task import Examples
from net import feature_size
from net.multihead import MultiHead

CHUNK = 20  # batches that are gathered and augmented together
Operation = Callable[[], object]


class PlainDropout(nn.Module):
    """ReLU and dropout as torch has them, in place of net.images.relu_dropout.ReluDropout."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), DROPOUT, self.training)


def conv(case: Case, device: torch.device) -> dict[str, Step]:
    """The small conv net, from the plain one to ours."""

    def stacked() -> MultiHead:
        trunk = Plain(case.shape, [CLASSES]).trunk
        return MultiHead(trunk, feature_size(trunk, "plain", case.shape), HEADS)

    usual = Plain(case.shape, [CLASSES] * TASKS)
    return {
        "as usually written": step_of(usual, case, device, fused=False, channels_last=False),
        "+ heads in one tensor": step_of(stacked(), case, device, fused=False, channels_last=False),
        "+ fused SGD": step_of(stacked(), case, device, channels_last=False),
        "+ channels last": step_of(stacked(), case, device),
        "+ pooling before ReLU, no idle bias": step_of(network(case), case, device),
    }


def residual(case: Case, device: torch.device) -> dict[str, Step]:
    """WRN-16-4."""
    *usual, ours = (network(case) for _ in range(4))
    for net in usual:
        for block in net.trunk.blocks:  # type: ignore[union-attr]
            block.dropout = PlainDropout()
    return {
        "torch's dropout and SGD": step_of(usual[0], case, device, fused=False, channels_last=False),
        "+ fused SGD": step_of(usual[1], case, device, channels_last=False),
        "+ channels last": step_of(usual[2], case, device),
        "+ ReLU and dropout in one": step_of(ours, case, device),
    }


def augmentation(preprocess: ImagePreprocess, device: torch.device) -> tuple[Operation, Operation]:
    """Augment and normalise, against a loop over images."""
    images = common.random_images(CIFAR, CHUNK * BATCH).pixels.to(device)
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
    store = common.random_images(CIFAR, CIFAR.train).pixels.to(device)
    rows = torch.randperm(len(store), device=device)[: CHUNK * BATCH]
    data, listed = Mixture([(1, Examples(store, rows, torch.zeros_like(rows)))]), rows.tolist()[:BATCH]
    return lambda: data.inputs(slice(0, len(rows))), lambda: torch.stack([store[row] for row in listed])


def main() -> None:
    options = common.options(__doc__, device="auto", repeats=5)
    device = options.device
    print(f"What each change gave: images/s, bare loop, batch {BATCH}. {common.title(device)}")
    for case, variants in ((MNIST, conv), (CIFAR, conv), (CIFAR_WRN, residual)):
        steps = variants(case, device)
        columns = common.in_turn([partial(common.rate, step, device, 1.0) for step in steps.values()], options.repeats)
        common.line(case.name)
        for name, column in zip(steps, columns, strict=True):
            speedup = common.ratio(column, columns[0])
            common.line(name, f"{statistics.median(column):,.0f}", f"{speedup:.2f}")
    common.line("microseconds a batch", "ours", "plain", "plain/ours")
    for name, operations in {
        "crop 32x32x3, normalise": augmentation(ImagePreprocess(4, flip=False), device),
        "flip, normalise": augmentation(ImagePreprocess(0, flip=True), device),
        "normalise": augmentation(ImagePreprocess(0, flip=False), device),
        "gather": gather(device),
    }.items():
        measures = [partial(common.seconds_a_call, operation, device, 0.2) for operation in operations]
        whole, usual = common.in_turn(measures, options.repeats)
        ours = [seconds / CHUNK for seconds in whole]
        medians = [f"{1e6 * statistics.median(column):,.1f}" for column in (ours, usual)]
        common.line(name, *medians, f"{common.ratio(usual, ours):.2f}")


if __name__ == "__main__":
    main()
