"""One way of training the conv net on MNIST-sized images; prints its images per second. Started by peers.py.

python perf/peer.py zoo|loader|avalanche IMAGES EPOCHS WORKERS
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from plain import PilImages, Plain, optimizer
from torch import nn

BATCH, CLASSES, WARM_UP = 16, 10, 160


def data(images: int) -> PilImages:
    """Images of noise; decoding costs nothing here, so it is not part of the comparison."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 1, 28, 28), generator=rng, dtype=torch.uint8)
    return PilImages(pixels, torch.arange(images) % CLASSES)


def network() -> nn.Module:
    """The plain net with one head."""
    plain = Plain((1, 28, 28), [CLASSES])
    return nn.Sequential(plain.trunk, plain.heads[0])


def loader(images: int, epochs: int, workers: int) -> float:
    """A DataLoader and a training loop."""
    net, loss_of = network(), nn.CrossEntropyLoss()
    steps = optimizer(net)

    def train(images: int, epochs: int) -> None:
        loader = torch.utils.data.DataLoader(
            data(images), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        for _ in range(epochs):
            for inputs, targets in loader:
                steps.zero_grad()
                loss = loss_of(net(inputs), targets)
                loss.backward()
                steps.step()

    train(WARM_UP, 1)
    begin = time.perf_counter()
    train(images, epochs)
    return images * epochs / (time.perf_counter() - begin)


def avalanche(images: int, epochs: int, workers: int) -> float:
    """The Naive strategy of avalanche-lib on one experience, without metrics and loggers."""
    warnings.simplefilter("ignore")
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    net = network()
    strategy = Naive(
        model=net, optimizer=optimizer(net), criterion=nn.CrossEntropyLoss(), train_mb_size=BATCH,
        train_epochs=epochs, evaluator=EvaluationPlugin(loggers=[]),
    )  # fmt: skip
    sets = [as_classification_dataset(data(count)) for count in (WARM_UP, images)]
    warm, experience = benchmark_from_datasets(train=sets).train_stream
    strategy.train(warm, num_workers=workers)
    begin = time.perf_counter()
    strategy.train(experience, num_workers=workers)
    return images * epochs / (time.perf_counter() - begin)


def zoo(images: int, epochs: int) -> float:
    """This project, by its command line."""
    from common import MNIST, run

    case = MNIST._replace(train=images)
    run(case._replace(train=WARM_UP), 1, "cpu", [range(CLASSES)])
    return run(case, epochs, "cpu", [range(CLASSES)])["images_per_second"]


def main() -> None:
    """Print one number."""
    name, images, epochs, workers = sys.argv[1], *map(int, sys.argv[2:5])
    if name == "zoo":
        print(zoo(images, epochs))
        return
    from utils.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    print({"loader": loader, "avalanche": avalanche}[name](images, epochs, workers))


if __name__ == "__main__":
    main()
