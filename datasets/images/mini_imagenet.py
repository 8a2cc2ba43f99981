"""Split-Mini-ImageNet from the three Kaggle pickles.

100 classes of 600 images, 84x84: 0-63 in the file `train`, 64-79 in `val`, 80-99 in `test`. Of each class the first
480 images are for training and the last 120 for testing.
"""

from pathlib import Path

import numpy as np
import torch

from datasets.config import DataConfig
from datasets.images.safe_pickle import loaded
from datasets.images.stream import ImageDataset, ImagePreprocess, Images, image_stream
from datasets.task import TaskStream
from utils.errors import UserError

_SIDE = 84
_TRAIN_SHARE = 0.8


def mini_imagenet(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Tasks are sets of the classes 0 to 99 in the order of the files."""
    folder = config.data_dir / "mini_imagenet"
    paths = [folder / f"mini-imagenet-cache-{part}.pkl" for part in ("train", "val", "test")]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        put = f"put {', '.join(missing)} there (the three pickles from Kaggle)"
        raise UserError(f"Mini-ImageNet is not in {folder}; {put}, or use dataset: image_folder with your own images")
    classes = [entry for path in paths for entry in _read(path)]
    train = _join([images[: int(_TRAIN_SHARE * len(images))] for _, images in classes])

    def test() -> Images:
        return _join([images[int(_TRAIN_SHARE * len(images)) :] for _, images in classes])

    data = ImageDataset(train, test, [name for name, _ in classes], ImagePreprocess(padding=4, flip=True))
    return image_stream(config, data, seed, device)


def _read(path: Path) -> list[tuple[str, np.ndarray]]:
    """Name and images, uint8 [n, 84, 84, 3], of each class of a file, in the order of their images."""
    wanted = "'image_data', bytes of shape [N, 84, 84, 3], and 'class_dict', two or more image numbers for each class"
    with loaded(path, wanted) as content:
        images = content["image_data"]
        classes = {name: np.array(numbers) for name, numbers in content["class_dict"].items()}
        if images.dtype != np.uint8 or images.shape[1:] != (_SIDE, _SIDE, 3) or not classes:
            raise ValueError
        if any(numbers.ndim != 1 or len(numbers) < 2 or numbers.min() < 0 for numbers in classes.values()):
            raise ValueError
        return [(str(name), images[classes[name]]) for name in sorted(classes, key=lambda name: classes[name][0])]


def _join(classes: list[np.ndarray]) -> Images:
    """The images of all classes as one tensor, filled class by class so that only one class is in memory twice."""
    sizes = [len(images) for images in classes]
    pixels = torch.empty(sum(sizes), 3, _SIDE, _SIDE, dtype=torch.uint8)
    for part, images in zip(pixels.split(sizes), classes, strict=True):
        part.copy_(torch.from_numpy(images).permute(0, 3, 1, 2))
    return Images(pixels, torch.arange(len(classes)).repeat_interleave(torch.tensor(sizes)))
