"""CIFAR-10 and CIFAR-100, from the pickles of their "python version"."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.config import DataConfig
from datasets.images.download import fetch
from datasets.images.safe_pickle import loaded
from datasets.images.stream import ImageDataset, ImagePreprocess, Images, Label, image_stream
from datasets.task import TaskStream

_PREPROCESS = ImagePreprocess(padding=4, flip=True)


def cifar10(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Tasks are sets of the classes 0 to 9, in alphabetical order of their names."""
    folder, train = config.data_dir / "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)]
    splits = _load("CIFAR10", folder, [*train, "test_batch"], "labels", 10)
    names = _class_names(folder / "batches.meta", "label_names", 10)
    return image_stream(config, ImageDataset(*splits, names, _PREPROCESS), seed, device)


def cifar100(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Tasks are sets of the fine classes 0 to 99; c + 100 is class c with random training labels."""
    folder = config.data_dir / "cifar-100-python"
    splits = _load("CIFAR100", folder, ["train", "test"], "fine_labels", 100)
    names = _class_names(folder / "meta", "fine_label_names", 100)
    return image_stream(config, ImageDataset(*splits, names, _PREPROCESS, _fine_label), seed, device)


def _fine_label(entry: int) -> Label:
    if entry >= 200:
        raise ValueError("classes go from 0 to 99, and from 100 to 199 with random training labels")
    return Label(entry % 100, random=entry >= 100)


def _load(
    name: str, folder: Path, files: Sequence[str], label_key: str, classes: int
) -> tuple[Images, Callable[[], Images]]:  # fmt: skip
    """The two splits; the last of the files is the test split."""

    paths = [folder / file for file in files]

    def read(some: Sequence[Path]) -> Images:
        if not all(path.exists() for path in some):
            fetch(name, folder.parent, paths)
        parts = [_read_batch(path, label_key, classes) for path in some]
        return Images(torch.cat([part.pixels for part in parts]), torch.cat([part.labels for part in parts]))

    return read(paths[:-1]), lambda: read(paths[-1:])


def _read_batch(path: Path, label_key: str, classes: int) -> Images:
    """One file: `data` uint8 [N, 3072], the three colour planes in turn, and a list of N labels."""
    wanted = f"'data', bytes of shape [N, 3072], and N labels below {classes} under {label_key!r}"
    with loaded(path, wanted) as content:
        pixels, labels = torch.from_numpy(content["data"].copy()), torch.from_numpy(np.asarray(content[label_key]))
        counts = labels.bincount(minlength=classes)  # refuses negative labels
        if pixels.dtype != torch.uint8 or labels.shape != pixels.shape[:1] or len(counts) > classes:
            raise ValueError
        return Images(pixels.view(len(labels), 3, 32, 32), labels)


def _class_names(path: Path, key: str, count: int) -> Sequence[str]:
    if not path.exists():
        return [str(i) for i in range(count)]
    with loaded(path, f"{count} class names under {key!r}") as content:
        names: list[str] = content[key]
        if len(names) != count or not all(isinstance(name, str) for name in names):
            raise ValueError
        return names
