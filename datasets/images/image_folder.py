"""A user's own images: train/<class>/... and test/<class>/... under one folder.

They are decoded in parallel into one array file under <data_dir>/cache, and decoded again when a file of the folder is
added, removed or changed.
"""

import contextlib
import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from datasets.config import DataConfig, class_name
from datasets.images.files import DECODER, SUFFIXES, decode_image, find_images, reasons
from datasets.images.settings import ClassSettings
from datasets.images.stream import ImageDataset, ImagePreprocess, Images, image_stream
from datasets.task import TEST, TaskStream
from utils.errors import UserError, expanded
from utils.files import read_tensors, tensor_bytes, write_bytes
from utils.settings import Range, setting

_SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class FolderSettings(ClassSettings):
    """Keys of the dataset YAML beside `dataset` and `tasks`."""

    root: str = setting(str, "the folder that holds train/ and test/, relative to --data_dir")
    image_size: int = setting(Range(8, 1024), "side of the square images, in pixels")
    augment: str = setting(("crop_flip", "crop", "none"), "how images are changed in training", default="crop_flip")


Files = list[tuple[Path, int]]  # image files with their class numbers


def image_folder(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """Tasks are sets of class names (folder names); images become RGB squares of `image_size` pixels."""
    settings: FolderSettings = config.settings
    root, size = config.data_dir / expanded(settings.root), settings.image_size
    try:
        names, files, skipped = _list(config, root)
    except OSError as error:
        raise UserError(f"{config.path}: root: {error.filename} cannot be read: {error.strerror}") from None
    train, *others = _decoded(config.data_dir, root, size, files)
    padding = 0 if settings.augment == "none" else min(size // 8, 4)
    preprocess = ImagePreprocess(padding, flip=settings.augment == "crop_flip")
    stream = image_stream(config, ImageDataset(train, lambda: others[0], names, preprocess, decode=None), seed, device)
    of_test = TEST if others else ""
    parts = [(part.rows.cpu(), split == of_test) for task in stream.tasks for split, part in task.splits.items()]
    used = len(torch.cat([rows + len(train.labels) * behind for rows, behind in parts]).unique())
    skipped["that no task uses"] = sum(map(len, files.values())) - used
    return replace(stream, notice=f"{used:,} used" + f"; not used: {reasons(skipped)}" * any(skipped.values()))


image_folder.Settings = FolderSettings  # type: ignore[attr-defined]


def _list(config: DataConfig, root: Path) -> tuple[list[str], dict[str, Files], Counter[str]]:
    """Class names, the files of each split, both sorted, and how many files are not looked at, by reason.

    With validation there is the split "train" alone.
    """
    yaml_path = config.path
    files: dict[str, list[tuple[Path, str]]] = {}
    skipped: Counter[str] = Counter()
    for split in _SPLITS[:1] if config.validation else _SPLITS:
        if not (root / split).is_dir():
            where = f"{root}/train/<class>/ and {root}/test/<class>/ (root is relative to --data_dir)"
            raise UserError(f"{yaml_path}: root: {root / split} is not a folder; images go to {where}")
        files[split] = []
        for entry in sorted((root / split).iterdir()):
            if entry.name.startswith(".") or not entry.is_dir():
                skipped["outside the folders of classes"] += 1
                continue
            images, others = find_images(entry)
            files[split] += [(path, class_name(entry.name)) for path in images]
            skipped += others
        if not files[split]:
            raise UserError(f"{yaml_path}: root: {root / split} has no images ({', '.join(sorted(SUFFIXES))})")
    beside = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in _SPLITS]
    skipped[f"outside {' and '.join(_SPLITS)}"] = sum(len(find_images(folder)[0]) for folder in beside)
    numbers = {name: i for i, name in enumerate(sorted({name for found in files.values() for _, name in found}))}
    return list(numbers), {split: [(path, numbers[name]) for path, name in files[split]] for split in files}, skipped


def _decoded(data_dir: Path, root: Path, size: int, files: dict[str, Files]) -> list[Images]:
    """The images of each split, from the array file if it was made of these files by this decoder."""
    everything = [file for split in _SPLITS for file in files.get(split, ())]
    key = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    part = "" if len(files) == len(_SPLITS) else f"-{'-'.join(files)}"
    cache = data_dir / "cache" / f"{root.name}-{size}x{size}-{key}{part}.safetensors"
    names = [path.relative_to(root).as_posix() for path, _ in everything]
    facts: list[object] = [DECODER, size]
    for name, (path, number) in zip(names, everything, strict=True):
        with contextlib.suppress(OSError):  # the decoder says what is wrong with it
            status = path.stat()
            facts.append((name, number, status.st_size, status.st_mtime_ns))
    fingerprint = torch.frombuffer(bytearray(hashlib.sha256(json.dumps(facts).encode()).digest()), dtype=torch.uint8)
    pixels = None
    with contextlib.suppress(OSError, SafetensorError, KeyError, RuntimeError):  # it is damaged, or there is none
        stored = read_tensors(cache)
        whole = stored["pixels"].shape == (len(everything), 3, size, size)
        pixels = stored["pixels"] if whole and torch.equal(stored["fingerprint"], fingerprint) else None
    if pixels is None:
        pixels = _decode_all([path for path, _ in everything], size)
        with contextlib.suppress(OSError):  # a read-only --data_dir only costs decoding again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(cache, tensor_bytes({"pixels": pixels, "fingerprint": fingerprint}))
    labels, border = torch.tensor([number for _, number in everything]), len(files["train"])
    parts = (slice(border), slice(border, None))[: len(files)]
    return [Images(pixels[part], labels[part], names[part]) for part in parts]


def _decode_all(paths: Sequence[Path], size: int) -> Tensor:
    """All images, uint8 [N, 3, size, size]; UserError names all that cannot be read.

    Threads run in parallel: Pillow decodes without the interpreter's lock.
    """
    pixels = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def decode(number: int) -> str | None:
        try:
            pixels[number] = torch.tensor(decode_image(paths[number], size)).permute(2, 0, 1)
        except UserError as error:
            return str(error)
        return None

    with warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of metadata that nothing here reads
        wrong = list(filter(None, pool.map(decode, range(len(paths)))))
    if wrong:
        count = "" if len(wrong) == 1 else f"{len(wrong):,} files: "
        raise UserError(f"{count}{'; '.join(wrong)}; repair or remove what is damaged")
    return pixels
