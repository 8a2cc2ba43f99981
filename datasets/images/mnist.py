"""MNIST: split, rotated and permuted, from the four IDX files, gzipped or not, where torchvision puts them."""

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.config import DataConfig
from datasets.images.download import fetch
from datasets.images.stream import ImageDataset, ImagePreprocess, Images, image_stream
from datasets.images.views import decode_view, permutations, rotations
from datasets.task import TaskStream
from utils.errors import UserError

_NAMES = tuple("0123456789")
_SIDE = 28
_LARGEST = 64 << 20  # bytes that are read: MNIST has 47 MB, but a small damaged .gz can unpack to gigabytes
_CROP = ImagePreprocess(padding=4, flip=False)
# Once the pixels are permuted, a shift is no longer a shift of the digit.
_NO_CROP = ImagePreprocess(padding=0, flip=False)


def split_mnist(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Tasks are sets of the digits 0 to 9."""
    return image_stream(config, ImageDataset(*_load(config.data_dir), _NAMES, _CROP), seed, device)


def rotated_mnist(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Label 10x + y is digit y rotated by 10x degrees, or by the x-th drawn angle."""
    views = rotations(config, seed, _SIDE)
    return image_stream(config, ImageDataset(*_load(config.data_dir), _NAMES, _CROP, decode_view, *views), seed, device)


def permuted_mnist(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Label 10x + y is digit y with its pixels permuted by the seed 1000x, x = 0 not at all; or all are drawn."""
    views = permutations(config, seed, _SIDE * _SIDE)
    data = ImageDataset(*_load(config.data_dir), _NAMES, _NO_CROP, decode_view, *views)
    return image_stream(config, data, seed, device)


def _load(data_dir: Path) -> tuple[Images, Callable[[], Images]]:
    return _split(data_dir, "train"), lambda: _split(data_dir, "t10k")


def _split(data_dir: Path, split: str) -> Images:
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    files = {part: [data_dir / "MNIST" / "raw" / f"{part}-{kind}" for kind in kinds] for part in ("train", "t10k")}
    if not all(path.exists() or _gzipped(path).exists() for path in files[split]):
        fetch("MNIST", data_dir, [*files["train"], *files["t10k"]], "each may be gzipped")
    images, labels = files[split]
    pixels, targets = read_idx(images), read_idx(labels)
    if pixels.shape[1:] != (_SIDE, _SIDE) or targets.shape != pixels.shape[:1] or not len(targets) or targets.max() > 9:
        raise UserError(f"{images} and {labels.name} must hold as many images of 28x28 as labels 0-9; get them again")
    return Images(pixels.unsqueeze(1), targets.long())


def _gzipped(path: Path) -> Path:
    return path.with_name(path.name + ".gz")


def read_idx(path: Path) -> Tensor:
    """The uint8 array of an IDX file, from `path` or, if that does not exist, from `path`.gz; UserError if damaged."""
    source = path if path.exists() else _gzipped(path)
    try:
        with gzip.open(source) if source.suffix == ".gz" else open(source, "rb") as file:
            content = file.read(_LARGEST)
        # Two zeros, 8 for unsigned bytes, the number of dimensions; then each dimension as a big-endian int32.
        if content[:3] != b"\0\0\x08":
            raise ValueError("it is not an IDX file of bytes")
        dims = content[3]
        shape = np.frombuffer(content, ">i4", dims, offset=4)
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy())
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        if getattr(error, "errno", None):  # it may be undamaged
            raise UserError(f"{source} cannot be read: {error}") from None
        raise UserError(f"{source} is damaged or cut short ({error}); delete it and get it again") from None
