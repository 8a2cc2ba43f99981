"""Data on the disk -> a stream of tasks on the device.

To add a data set: one file with a function RunConfig, device -> TaskStream, and one line in STREAMS.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from datasets.images.cifar import cifar10, cifar100
from datasets.images.digits import rotated_digits, split_digits
from datasets.images.image_folder import image_folder
from datasets.images.mini_imagenet import mini_imagenet
from datasets.images.mnist import permuted_mnist, rotated_mnist, split_mnist
from datasets.task import TaskStream
from utils.config import RunConfig
from utils.errors import UserError, unknown

STREAMS: dict[str, Callable[[RunConfig, torch.device], TaskStream]] = {
    "digits": split_digits,
    "rotated_digits": rotated_digits,
    "mnist": split_mnist,
    "rotated_mnist": rotated_mnist,
    "permuted_mnist": permuted_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "mini_imagenet": mini_imagenet,
    "image_folder": image_folder,
}


def check_dataset(config: RunConfig) -> None:
    """Raises UserError if the dataset YAML names a data set that does not exist."""
    if config.dataset.dataset not in STREAMS:
        raise UserError(f"{config.dataset.path}: dataset: {unknown('dataset', config.dataset.dataset, STREAMS)}")


def build_stream(config: RunConfig, device: torch.device) -> TaskStream:
    """The stream that the dataset YAML describes.

    Raises:
        UserError: unknown classes, missing or damaged files; names the file and the key.
    """
    check_dataset(config)
    return STREAMS[config.dataset.dataset](config, device)
