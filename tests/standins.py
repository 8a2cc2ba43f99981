"""Small stand-ins for the public data sets, written in the files' own formats; each writer returns what it wrote."""

import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from datasets import build_stream, settings_of
from datasets.config import DataConfig, TaskConfig
from datasets.task import TaskStream
from utils.settings import read


class Split(NamedTuple):
    """Images and labels in the order of the files."""

    pixels: np.ndarray  # uint8 [N, C, H, W]
    labels: np.ndarray  # int64 [N]


class Source(NamedTuple):
    """What a data set holds."""

    train: Split
    test: Split
    names: Sequence[str]


def random_split(count: int, classes: int, shape: Sequence[int], seed: int) -> Split:
    """Random images with labels in random order, as many of each class (one more of the first)."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(256, size=(count, *shape), dtype=np.uint8)
    return Split(pixels, rng.permutation(np.arange(count) % classes))


def write_file(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def idx(array: np.ndarray) -> bytes:
    """An IDX file: two zeros, 8 for bytes, the number of dimensions, each as a big-endian int32, the values."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_mnist(data_dir: Path, pack: Callable[[bytes], bytes] | None = None) -> Source:
    """60 + 30 images; `pack` compresses each file, whose name then ends in .gz."""
    source = Source(random_split(60, 10, (1, 28, 28), 1), random_split(30, 10, (1, 28, 28), 2), "0123456789")
    for part, split in (("train", source.train), ("t10k", source.test)):
        images, labels = idx(split.pixels[:, 0]), idx(split.labels.astype(np.uint8))
        for name, content in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            path = data_dir / "MNIST" / "raw" / (name + ".gz" if pack else name)
            write_file(path, pack(content) if pack else content)
    return source


def python2_pickle(value: Any) -> bytes:
    """`value` in the words of Python 2's pickle protocol 2: texts are byte strings, numpy's names are those of then.

    CIFAR was written so. Knows dictionaries, lists, tuples, texts, bytes, None, whole numbers and arrays.
    """
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case str() | bytes():
            raw = value.encode("latin1") if isinstance(value, str) else value
            return (b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw
        case int():
            return b"J" + struct.pack("<i", value)
        case tuple():
            return b"(" + b"".join(map(_python2, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_python2, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_python2(part) for item in value.items() for part in item) + b"u"
        case np.ndarray():
            kind = python2_dtype(value.dtype.str[1:], (3, value.dtype.str[0], None, None, None, -1, -1, 0))
            return python2_array(_python2(value.shape), kind, _python2(value.tobytes()))
    raise TypeError(f"no word for {type(value)}")


def python2_dtype(code: str, state: object) -> bytes:
    """The part of a pickle that makes a dtype and gives it a state; an honest one has eight entries."""
    return b"cnumpy\ndtype\n" + _python2((code, 0, 1)) + b"R" + _python2(state) + b"b"


def python2_array(shape: bytes, dtype: bytes, raw: bytes) -> bytes:
    """The part of a pickle that makes an empty array and gives it a state."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,)) + _python2("b") + b"tR"
    return empty + b"(" + _python2(1) + shape + dtype + b"\x89" + raw + b"tb"


def write_cifar10(data_dir: Path, dump: Callable[[Any], bytes] = python2_pickle) -> Source:
    """Five files of 12 images for training, one of 30 for testing, and the class names."""
    names = [f"thing {c}" for c in "abcdefghij"]
    source = Source(random_split(60, 10, (3, 32, 32), 3), random_split(30, 10, (3, 32, 32), 4), names)
    folder = data_dir / "cifar-10-batches-py"

    def batch(split: Split, rows: slice) -> bytes:
        pixels, labels = split.pixels[rows], split.labels[rows].tolist()
        files = [f"{label}_{i}.png" for i, label in enumerate(labels)]
        return dump({"data": pixels.reshape(-1, 3072), "batch_label": "a batch", "labels": labels, "filenames": files})

    for i in range(5):
        write_file(folder / f"data_batch_{i + 1}", batch(source.train, slice(12 * i, 12 * i + 12)))
    write_file(folder / "test_batch", batch(source.test, slice(None)))
    write_file(folder / "batches.meta", dump({"num_cases_per_batch": 12, "label_names": names, "num_vis": 3072}))
    return source


def write_cifar100(data_dir: Path, dump: Callable[[Any], bytes] = python2_pickle) -> Source:
    """One file of 4 images a fine class for training, one of 2 for testing, and the class names."""
    names = [f"thing {c:02d}" for c in range(100)]
    source = Source(random_split(400, 100, (3, 32, 32), 5), random_split(200, 100, (3, 32, 32), 6), names)
    folder = data_dir / "cifar-100-python"
    for file, split in (("train", source.train), ("test", source.test)):
        fine = split.labels.tolist()
        coarse = [label % 20 for label in fine]
        data = split.pixels.reshape(-1, 3072)
        write_file(folder / file, dump({"data": data, "fine_labels": fine, "coarse_labels": coarse}))
    coarse_names = [f"group {c}" for c in range(20)]
    write_file(folder / "meta", dump({"fine_label_names": names, "coarse_label_names": coarse_names}))
    return source


def write_mini_imagenet(
    data_dir: Path,
    classes: Sequence[int] = (64, 16, 20),
    images: int = 5,
    dump: Callable[[Any], bytes] = python2_pickle,
) -> Source:
    """Three files with so many classes each, `images` images a class in one block; the dictionary is not in order."""
    rng = np.random.default_rng(7)
    pixels = rng.integers(256, size=(sum(classes), images, 84, 84, 3), dtype=np.uint8)
    names = [f"n{number:08d}" for number in rng.permutation(len(pixels))]
    start = 0
    for part, count in zip(("train", "val", "test"), classes, strict=True):
        rows = {names[start + c]: list(range(c * images, (c + 1) * images)) for c in rng.permutation(count)}
        stored = pixels[start : start + count].reshape(-1, 84, 84, 3)
        path = data_dir / "mini_imagenet" / f"mini-imagenet-cache-{part}.pkl"
        write_file(path, dump({"image_data": stored, "class_dict": rows}))
        start += count
    first = images * 4 // 5
    splits = [
        Split(part.reshape(-1, 84, 84, 3).transpose(0, 3, 1, 2), np.repeat(np.arange(len(pixels)), part.shape[1]))
        for part in (pixels[:, :first], pixels[:, first:])
    ]
    return Source(splits[0], splits[1], names)


def write_image(path: Path, pixels: np.ndarray) -> None:
    """One image file of pixels [C, H, W]; the suffix decides the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)


@contextmanager
def pipe(path: Path) -> Iterator[None]:
    """A named pipe that is empty, so that reading it is wrong at once instead of waiting for ever."""
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"",))  # waits for a reader
    writer.start()
    try:
        yield
    finally:
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writer.join()
        os.close(reader)


def write_image_folder(root: Path, names: Sequence[str], side: int = 32) -> Source:
    """PNG files, 3 a class for training and 2 for testing."""
    names = sorted(names)
    splits = []
    for split, count in (("train", 3), ("test", 2)):
        labels = np.repeat(np.arange(len(names)), count)
        pixels = random_split(len(labels), 1, (3, side, side), 8 + count).pixels
        for i, label in enumerate(labels):
            write_image(root / split / names[label] / f"{i:04d}.png", pixels[i])
        splits.append(Split(pixels, labels))
    return Source(splits[0], splits[1], names)


def stream(
    dataset: str,
    tasks: Sequence[Sequence[int | str] | TaskConfig],
    data_dir: Path = Path("none"),
    folder: Mapping[str, Any] | None = None,
    **options: Any,
) -> TaskStream:
    """A stream on the CPU; `folder`: keys of image_folder; `options`: the seed and fields of DataConfig."""
    configs = tuple(task if isinstance(task, TaskConfig) else TaskConfig(tuple(task)) for task in tasks)
    seed = options.pop("seed", 0)
    own: Any = read(settings_of(dataset), "d.yaml", folder or {})
    config = DataConfig(dataset, configs, path="d.yaml", data_dir=data_dir, settings=own, **options)
    return build_stream(config, seed, torch.device("cpu"))
