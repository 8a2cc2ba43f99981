"""A user's own images: train/<class>/... and test/<class>/... under one folder.

They are decoded in parallel into one array file under <data_dir>/cache, and decoded again when a file of the folder is
added, removed or changed.
"""

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from torch import Tensor

from datasets.config import DataConfig
from datasets.images.stream import ImageDataset, ImagePreprocess, Images, Label, image_stream
from datasets.task import TaskStream
from utils.errors import UserError, expanded
from utils.files import read_tensors, tensor_bytes, write_bytes
from utils.settings import Range, setting

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow knows others, some of which start programs
_MOST_PIXELS = 1 << 26
_SPLITS = ("train", "test")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would print its errors on stderr too


@dataclass(frozen=True)
class FolderSettings:
    """Keys of the dataset YAML beside `dataset` and `tasks`."""

    root: str = setting(str, "the folder that holds train/ and test/, relative to --data_dir")
    image_size: int = setting(Range(8, 1024), "side of the square images, in pixels")
    augment: str = setting(("crop_flip", "crop", "none"), "how images are changed in training", default="crop_flip")


def image_folder(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Tasks are sets of class names (folder names); images become RGB squares of `image_size` pixels."""
    settings: FolderSettings = config.settings
    root, size = config.data_dir / expanded(settings.root), settings.image_size
    names, files = _list(config.path, root)
    train, test = _decoded(config.data_dir, root, size, files)
    padding = 0 if settings.augment == "none" else min(size // 8, 4)
    preprocess = ImagePreprocess(padding, flip=settings.augment == "crop_flip")
    data = ImageDataset(train, test, names, preprocess, partial(_folder_number, names))
    return image_stream(config, data, seed, device)


image_folder.Settings = FolderSettings  # type: ignore[attr-defined]


def _folder_number(names: Sequence[str], entry: int) -> Label:
    """The class of a folder whose name YAML has read as a number."""
    if str(entry) not in names:
        known = ", ".join(names[:10]) + "..." * (len(names) > 10)
        raise ValueError(f"there is no folder of that name (there are {known})")
    return Label(names.index(str(entry)))


def _list(yaml_path: str, root: Path) -> tuple[list[str], dict[str, list[tuple[Path, int]]]]:
    """Class names, and the files of each split with their class numbers, all sorted."""
    for split in _SPLITS:
        if not (root / split).is_dir():
            where = f"{root}/train/<class>/ and {root}/test/<class>/ (root is relative to --data_dir)"
            raise UserError(f"{yaml_path}: root: {root / split} is not a folder; images go to {where}")
    names = sorted({folder.name for split in _SPLITS for folder in (root / split).iterdir() if folder.is_dir()})
    files = {
        split: [
            (path, number)
            for number, name in enumerate(names)
            for path in sorted((root / split / name).glob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        for split in _SPLITS
    }
    for split, found in files.items():
        if not found:
            raise UserError(f"{yaml_path}: root: {root / split} has no images ({', '.join(sorted(SUFFIXES))})")
    return names, files


def _decoded(data_dir: Path, root: Path, size: int, files: dict[str, list[tuple[Path, int]]]) -> list[Images]:
    """The images of the two splits, from the array file if it matches the folder."""
    everything = files["train"] + files["test"]
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    cache = data_dir / "cache" / f"{root.name}-{size}x{size}-{key}.safetensors"
    fingerprint = torch.frombuffer(bytearray(_fingerprint(root, everything)), dtype=torch.uint8)
    labels = torch.tensor([number for _, number in everything])
    pixels = _stored(cache, fingerprint, (len(labels), 3, size, size))
    if pixels is None:
        pixels = _decode_all([path for path, _ in everything], size)
        with contextlib.suppress(OSError):  # a read-only --data_dir only costs decoding again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(cache, tensor_bytes({"pixels": pixels, "labels": labels, "fingerprint": fingerprint}))
    parts = len(files["train"]), len(files["test"])
    names = [[path.relative_to(root).as_posix() for path, _ in files[split]] for split in _SPLITS]
    return [Images(*split) for split in zip(pixels.split(parts), labels.split(parts), names, strict=True)]


def _stored(cache: Path, fingerprint: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """The pixels in the array file; None if it is damaged or those of other images."""
    try:
        stored = read_tensors(cache) if cache.is_file() else {}
        pixels, same = stored["pixels"], torch.equal(stored["fingerprint"], fingerprint)
    except (OSError, SafetensorError, KeyError, RuntimeError):
        return None
    return pixels if same and pixels.shape == shape and pixels.dtype == torch.uint8 else None


def _fingerprint(root: Path, files: Sequence[tuple[Path, int]]) -> bytes:
    """A SHA-256 that changes when a file is added, removed, renamed or written."""
    facts = []
    for path, number in files:
        if not path.is_file():
            raise UserError(f"{path} is not a file; remove it")
        status = path.stat()
        facts.append((path.relative_to(root).as_posix(), number, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(facts).encode()).digest()


def _decode_all(paths: Sequence[Path], size: int) -> Tensor:
    """All images, uint8 [N, 3, size, size]. Threads run in parallel: Pillow decodes without the interpreter's lock."""
    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of metadata that nothing here reads
        pixels = np.stack(list(pool.map(partial(decode_image, size=size), paths)))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def decode_image(path: Path | Image.Image, size: int, grey: bool = False) -> np.ndarray:
    """An image as uint8 [size, size, 3] (grey: [size, size]): the shorter side scaled to `size`, the middle cut out.

    Raises:
        UserError: the file is not an image that can be read; names it.
    """
    try:
        with nullcontext(path) if isinstance(path, Image.Image) else Image.open(path, formats=_FORMATS) as file:
            if file.width * file.height > _MOST_PIXELS:  # a damaged size asks for gigabytes
                raise ValueError(f"{file.width}x{file.height} pixels are too many: make it smaller")
            # Pillow clips 16-bit grey instead of scaling it, which would turn nearly everything white.
            deep = file.mode.startswith("I;16")
            image = Image.fromarray((np.asarray(file) >> 8).astype(np.uint8)) if deep else file
            image = image.convert("L" if grey else "RGB")
    except (OSError, Image.DecompressionBombError, SyntaxError, TypeError, ValueError, MemoryError) as error:
        reason = {UnidentifiedImageError: "not an image", MemoryError: "not enough memory"}.get(type(error), error)
        raise UserError(f"{path} cannot be read as an image ({reason}); repair or remove it") from None
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.asarray(image)
