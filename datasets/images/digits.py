"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn: no download."""

from collections.abc import Callable

import numpy as np
import torch

from datasets.config import DataConfig
from datasets.images.stream import ImageDataset, ImagePreprocess, Images, image_stream
from datasets.images.views import decode_view, rotations
from datasets.task import TaskStream

_NAMES = tuple("0123456789")
# A digit fills its 8x8 pixels: a shift by more than one pixel would cut it.
_PREPROCESS = ImagePreprocess(padding=1, flip=False)


def split_digits(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Tasks are sets of the digits 0 to 9."""
    return image_stream(config, ImageDataset(*load(), _NAMES, _PREPROCESS), seed, device)


def rotated_digits(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Label 10x + y is digit y rotated by 10x degrees, or by the x-th drawn angle."""
    views = rotations(config, seed, 8)
    return image_stream(config, ImageDataset(*load(), _NAMES, _PREPROCESS, decode_view, *views), seed, device)


def load() -> tuple[Images, Callable[[], Images]]:
    """The same halves for training and testing in every run, with equal shares of each digit."""
    from sklearn.datasets import load_digits  # slow to import
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    halves = train_test_split(np.arange(len(labels)), test_size=0.5, stratify=digits.target, random_state=0)
    train, test = (torch.from_numpy(half) for half in halves)
    return Images(pixels[train], labels[train]), lambda: Images(pixels[test], labels[test])
