"""The part of compare_derpp.py that runs in the environment of avalanche-lib: train its DER on the tasks in a file.

python docs/derpp_of_avalanche.py FILE    # prints the final accuracy in %
"""

# ruff: noqa: E402 (torchvision needs its operators before avalanche-lib loads it)
import math
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from utils.torchvision_ops import declare_missing_operators

declare_missing_operators()
warnings.simplefilter("ignore")

from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, make_avalanche_dataset
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import DER

from net import build_net, settings_class


class Tasked(nn.Module):
    """The conv net with a head for each task; the last channel of an image holds the number of its task."""

    def __init__(self, shape: tuple[int, int, int], heads: dict[int, int]) -> None:
        super().__init__()
        self.net = build_net("conv", shape, settings_class("conv")(), heads)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images[:, :-1], images[:, -1, 0, 0].long())  # type: ignore[no-any-return]


class Cosine(SupervisedPlugin):  # type: ignore[misc]
    """A new optimizer for each task, and a rate that falls to zero."""

    def before_training_exp(self, strategy: Any, **_: Any) -> None:
        strategy.optimizer.state.clear()
        self.done, self.steps = 0, strategy.train_epochs * len(strategy.dataloader)
        self.rate = strategy.optimizer.defaults["lr"]

    def before_update(self, strategy: Any, **_: Any) -> None:
        factor = 0.5 * (1 + math.cos(math.pi * self.done / self.steps))
        strategy.optimizer.param_groups[0]["lr"] = self.rate * factor
        self.done += 1


def data_set(images: Tensor, targets: Tensor) -> AvalancheDataset:
    """A task's examples; its memory has as many of each class of each task, because no two tasks share a class."""
    classes = targets + 1000 * images[:, -1, 0, 0].long()
    labels = DataAttribute([0] * len(targets), "targets_task_labels", use_in_getitem=True)
    known = [DataAttribute(classes.tolist(), "targets"), labels]
    return make_avalanche_dataset(TensorDataset(images, targets), data_attributes=known)


def main() -> None:
    torch.set_num_threads(1)
    given = torch.load(sys.argv[1], weights_only=True)
    torch.manual_seed(given["seed"])
    channels, *sides = given["train"][0][0].shape[1:]
    net = Tasked((channels - 1, *sides), given["heads"])
    sgd = torch.optim.SGD(net.parameters(), given["lr"], momentum=0.9, nesterov=True, weight_decay=given["l2_reg"])
    strategy = DER(
        model=net, optimizer=sgd, mem_size=given["memory"], batch_size_mem=given["replay_batch"], alpha=given["alpha"],
        beta=given["beta"], train_mb_size=given["batch"], train_epochs=given["epochs"], plugins=[Cosine()],
        evaluator=EvaluationPlugin(loggers=[]),
    )  # fmt: skip
    for experience in benchmark_from_datasets(train=[data_set(*task) for task in given["train"]]).train_stream:
        strategy.train(experience)
    net.eval()
    with torch.no_grad():
        right = [(net(images).argmax(1) == targets).float().mean() for images, targets in given["test"]]
    print(100 * float(torch.stack(right).mean()))


main()
