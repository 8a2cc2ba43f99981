"""Readers of files: what was written is what is read, and what is damaged or hostile is one clear error."""

import errno
import gzip
import importlib
import io
import math
import os
import pickle
import re
import struct
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets import build_stream
from datasets.images.files import SUFFIXES, decode_image
from datasets.images.mnist import read_idx
from datasets.images.safe_pickle import load_pickle
from datasets.task import Examples, TaskStream
from modelzoo import main
from records.configuration import plain_config, saved_config
from records.invocation import configure, parse
from tests.standins import (
    Source,
    Split,
    idx,
    pipe,
    python2_array,
    python2_dtype,
    python2_pickle,
    random_split,
    stream,
    write_cifar10,
    write_cifar100,
    write_file,
    write_image,
    write_image_folder,
    write_mini_imagenet,
    write_mnist,
)
from utils.errors import UserError
from utils.files import read_tensors, tensor_bytes, yaml_bytes
from utils.torchvision_ops import declare_missing_operators
from utils.yaml_files import parse_yaml

REAL_MNIST = Path(__file__).parent.parent / "data"  # where --data_dir looks unless told otherwise

# The folder that hypothesis gets is the same for all its examples: each writes its file anew.
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def check_split(examples: Examples, split: Split) -> None:
    """A task of all classes has the split's images in the order of the files, with their labels."""
    assert np.array_equal(examples.store.numpy(), split.pixels)
    assert sorted(examples.rows.tolist()) == list(range(len(split.labels)))
    assert examples.targets.tolist() == split.labels[examples.rows.numpy()].tolist()


def check_read(made: TaskStream, source: Source) -> None:
    task = made.tasks[0]
    check_split(task.train_eval, source.train)
    check_split(task.test, source.test)
    assert task.classes == tuple(source.names)


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    """The error that a reader gives; None if it reads the file. Any other exception is a failure."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return None


# MNIST and its file format

ARRAYS = st.builds(
    lambda shape, seed: np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)


@in_one_folder
@given(array=ARRAYS, gzipped=st.booleans())
def test_an_idx_file_is_read_as_it_was_written(tmp_path, array, gzipped):
    path = tmp_path / ("zipped" if gzipped else "plain")
    write_file(path.with_name("zipped.gz") if gzipped else path, gzip.compress(idx(array)) if gzipped else idx(array))
    assert np.array_equal(read_idx(path).numpy(), array)


@pytest.mark.parametrize("pack", [None, gzip.compress], ids=["plain", "gzipped"])
def test_mnist_is_read_as_it_was_written(pack, tmp_path):
    source = write_mnist(tmp_path, pack)
    check_read(stream("mnist", [range(10)], tmp_path), source)


def test_torchvision_reads_the_same_from_the_same_mnist_files(tmp_path):
    declare_missing_operators()
    from torchvision.datasets import MNIST

    write_mnist(tmp_path)
    task = stream("mnist", [range(10)], tmp_path).tasks[0]
    for examples, train in ((task.train_eval, True), (task.test, False)):
        theirs = MNIST(str(tmp_path), train=train)
        assert torch.equal(examples.store[:, 0], theirs.data)
        assert torch.equal(examples.targets, theirs.targets[examples.rows])


GOOD_IDX = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


def test_an_idx_file_cut_short_anywhere_is_refused(tmp_path):
    path = tmp_path / "cut"
    for length in range(len(GOOD_IDX)):
        path.write_bytes(GOOD_IDX[:length])
        with pytest.raises(UserError, match="cut"):
            read_idx(path)


def test_a_gzipped_idx_file_cut_short_anywhere_is_refused(tmp_path):
    packed = gzip.compress(GOOD_IDX)
    for length in range(len(packed)):
        write_file(tmp_path / "cut.gz", packed[:length])
        with pytest.raises(UserError, match=r"cut\.gz"):
            read_idx(tmp_path / "cut")


WRONG_IDX = {
    "trailing byte": GOOD_IDX + b"\0",
    "another type of values": b"\0\0\x0d" + GOOD_IDX[3:],
    "no zeros at the beginning": b"PK" + GOOD_IDX[2:],
    "no dimensions": b"\0\0\x08\0",
    "a negative size": b"\0\0\x08\x02" + struct.pack(">2i", -3, -4) + bytes(12),
    "more than all memory": b"\0\0\x08\x04" + struct.pack(">4i", *[2**31 - 1] * 4) + bytes(12),
    "sizes whose product wraps around to zero": b"\0\0\x08\x03" + struct.pack(">3i", 2**30, 2**30, 16),
    "nothing": b"",
}


@pytest.mark.parametrize("content", WRONG_IDX.values(), ids=WRONG_IDX.keys())
@pytest.mark.parametrize("pack", [None, gzip.compress], ids=["plain", "gzipped"])
def test_a_wrong_idx_file_is_refused_by_name(content, pack, tmp_path):
    write_file(tmp_path / ("wrong.gz" if pack else "wrong"), pack(content) if pack else content)
    with pytest.raises(UserError, match=r"wrong.* get it again"):
        read_idx(tmp_path / "wrong")


@in_one_folder
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255), gzipped=st.booleans())
def test_a_damaged_idx_file_is_an_array_or_one_clear_error(tmp_path, position, flip, gzipped):
    content = bytearray(gzip.compress(GOOD_IDX) if gzipped else GOOD_IDX)
    content[position % len(content)] ^= flip
    path = tmp_path / ("zipped" if gzipped else "plain")
    write_file(path.with_name("zipped.gz") if gzipped else path, bytes(content))
    error = refusal(read_idx, path)
    assert path.name in error if error else math.prod(read_idx(path).shape) == 12


@pytest.mark.skipif(not (REAL_MNIST / "MNIST").is_dir(), reason="MNIST is not on this machine")
def test_the_real_mnist_has_its_published_counts():
    task = stream("mnist", [range(10)], REAL_MNIST).tasks[0]
    counts = {
        "train_eval": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    }
    for split, wanted in counts.items():
        assert torch.bincount(getattr(task, split).targets).tolist() == wanted
    assert (len(task.train_eval), len(task.test)) == (60000, 10000)
    # The first training image is the well-known 5; its mean is that of all who load it.
    assert task.train_eval.targets[task.train_eval.rows == 0].tolist() == [5]
    assert task.train_eval.store.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)


# CIFAR

DUMPS: dict[str, Callable[[Any], bytes]] = {
    "Python 2": python2_pickle,
    **{f"protocol {p}": partial(pickle.dumps, protocol=p) for p in range(2, 6)},
}
each_dump = pytest.mark.parametrize("dump", DUMPS.values(), ids=DUMPS.keys())


@each_dump
def test_cifar10_is_read_as_it_was_written(dump, tmp_path):
    source = write_cifar10(tmp_path, dump)
    check_read(stream("cifar10", [range(10)], tmp_path), source)


@each_dump
def test_cifar100_is_read_as_it_was_written(dump, tmp_path):
    source = write_cifar100(tmp_path, dump)
    check_read(stream("cifar100", [range(100)], tmp_path), source)


@pytest.mark.parametrize(("name", "write"), [("CIFAR10", write_cifar10), ("CIFAR100", write_cifar100)])
def test_torchvision_reads_the_same_from_the_same_cifar_files(name, write, tmp_path, monkeypatch):
    declare_missing_operators()
    from torchvision.datasets import cifar

    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # our files have other check sums
    source = write(tmp_path)
    task = stream(name.lower(), [range(len(source.names))], tmp_path).tasks[0]
    for examples, train in ((task.train_eval, True), (task.test, False)):
        theirs = getattr(cifar, name)(str(tmp_path), train=train)
        assert np.array_equal(examples.store.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert examples.targets.tolist() == [theirs.targets[row] for row in examples.rows]
        assert list(task.classes) == theirs.classes


def test_colours_are_planes_and_rows_run_from_left_to_right(tmp_path):
    write_cifar10(tmp_path)
    image = np.zeros(3072, np.uint8)
    image[0], image[1], image[32], image[1024], image[2048] = 1, 2, 3, 4, 5
    batch = {"data": np.tile(image, (10, 1)), "labels": list(range(10))}
    write_file(tmp_path / "cifar-10-batches-py" / "test_batch", python2_pickle(batch))
    read = stream("cifar10", [range(10)], tmp_path).tasks[0].test.store[0]
    where = {(0, 0, 0): 1, (0, 0, 1): 2, (0, 1, 0): 3, (1, 0, 0): 4, (2, 0, 0): 5}
    assert {place: int(read[place]) for place in where} == where
    assert int(read.sum()) == 1 + 2 + 3 + 4 + 5


@pytest.mark.parametrize(("write", "folder", "meta"), [(write_cifar10, "cifar-10-batches-py", "batches.meta")])
def test_without_the_file_of_names_classes_are_numbers(write, folder, meta, tmp_path):
    source = write(tmp_path)
    (tmp_path / folder / meta).unlink()
    check_read(stream("cifar10", [range(10)], tmp_path), source._replace(names="0123456789"))


IMAGES = np.zeros((2, 3072), np.uint8)
WRONG_BATCHES: dict[str, Any] = {
    "no dictionary": [IMAGES, [0, 1]],
    "no images": {"labels": [0, 1]},
    "no labels": {"data": IMAGES},
    "labels of CIFAR-100": {"data": IMAGES, "fine_labels": [0, 1]},
    "fewer labels than images": {"data": IMAGES, "labels": [0]},
    "images of another size": {"data": IMAGES[:, 1:], "labels": [0, 1]},
    "two images in a row": {"data": np.zeros((2, 6144), np.uint8), "labels": [0, 1]},
    "images that are no bytes": {"data": IMAGES.astype(np.float32), "labels": [0, 1]},
    "labels that are texts": {"data": IMAGES, "labels": ["cat", "dog"]},
    "labels beyond any integer": {"data": IMAGES, "labels": [0, 2**70]},
}


@pytest.mark.parametrize("content", WRONG_BATCHES.values(), ids=WRONG_BATCHES.keys())
def test_a_wrong_cifar_file_is_refused_by_name(content, tmp_path):
    write_cifar10(tmp_path)
    write_file(tmp_path / "cifar-10-batches-py" / "data_batch_4", pickle.dumps(content, protocol=4))
    with pytest.raises(UserError, match=r"data_batch_4 .*get the file again"):
        stream("cifar10", [range(10)], tmp_path)


@pytest.mark.parametrize("names", [None, ["cat"] * 9, list(range(10))])
def test_a_wrong_file_of_class_names_is_refused_by_name(names, tmp_path):
    write_cifar10(tmp_path)
    write_file(tmp_path / "cifar-10-batches-py" / "batches.meta", pickle.dumps({"label_names": names}))
    with pytest.raises(UserError, match=r"batches\.meta must hold 10 class names"):
        stream("cifar10", [range(10)], tmp_path)


@pytest.mark.parametrize(
    ("dataset", "name", "folder", "files"),
    [
        ("mnist", "MNIST", "MNIST/raw", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "gzipped"]),
        ("cifar10", "CIFAR10", "cifar-10-batches-py", ["data_batch_1", "data_batch_5", "test_batch"]),
        ("cifar100", "CIFAR100", "cifar-100-python", ["train, test"]),
    ],
)
def test_without_files_and_network_the_error_says_which_files_go_where(
    dataset, name, folder, files, tmp_path, monkeypatch
):
    declare_missing_operators()
    import torchvision

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(getattr(torchvision.datasets, name), "download", no_network)
    with pytest.raises(UserError) as error:
        stream(dataset, [[0, 1]], tmp_path)
    assert "\n" not in str(error.value)
    for word in (name, "no network", *files, f"into {tmp_path / folder}"):
        assert word in str(error.value)


# Mini-ImageNet


@each_dump
def test_mini_imagenet_has_the_classes_of_its_three_files_in_order(dump, tmp_path):
    source = write_mini_imagenet(tmp_path, classes=(5, 2, 3), dump=dump)
    check_read(stream("mini_imagenet", [range(10)], tmp_path), source)


def test_of_600_images_the_first_480_are_for_training_and_the_last_120_for_testing(tmp_path):
    source = write_mini_imagenet(tmp_path, classes=(1, 1, 1), images=600)
    assert (len(source.train.labels), len(source.test.labels)) == (3 * 480, 3 * 120)
    check_read(stream("mini_imagenet", [range(3)], tmp_path), source)


def write_one_class(data_dir: Path, images: np.ndarray, rows: Any) -> None:
    for part in ("train", "val", "test"):
        content = pickle.dumps({"image_data": images, "class_dict": rows}, protocol=4)
        write_file(data_dir / "mini_imagenet" / f"mini-imagenet-cache-{part}.pkl", content)


def test_channels_come_first_and_rows_are_not_columns(tmp_path):
    images = np.zeros((5, 84, 84, 3), np.uint8)
    images[:, 10, 20] = 1, 2, 3
    write_one_class(tmp_path, images, {"bird": [0, 1, 2, 3, 4]})
    task = stream("mini_imagenet", [[0, 1, 2]], tmp_path).tasks[0]
    for split in (task.train_eval, task.test):
        assert split.store.shape[1:] == (3, 84, 84)
        assert (split.store[:, :, 10, 20] == torch.tensor([1, 2, 3])).all()
        assert (split.store.flatten(1).long().sum(1) == 1 + 2 + 3).all()


WRONG_ROWS = {
    "none": None, "no classes": {}, "one image": {"a": [0]}, "too large": {"a": [0, 5]}, "negative": {"a": [-1, 0]},
    "texts": {"a": ["0", "1"]}, "fractions": {"a": [0.0, 1.0]}, "nested": {"a": [[0, 1]]},
    "ragged": {"a": [[0, 1], [2]]}, "beyond any integer": {"a": [0, 2**70]}, "a number": {"a": 3},
}  # fmt: skip


@pytest.mark.parametrize("rows", WRONG_ROWS.values(), ids=WRONG_ROWS.keys())
def test_wrong_image_numbers_are_refused_by_file(rows, tmp_path):
    write_one_class(tmp_path, np.zeros((5, 84, 84, 3), np.uint8), rows)
    with pytest.raises(UserError, match=r"mini-imagenet-cache-train\.pkl.*'class_dict'"):
        stream("mini_imagenet", [[0, 1]], tmp_path)


@pytest.mark.parametrize("images", [None, np.zeros((5, 3, 84, 84), np.uint8), np.zeros((5, 84, 84, 3), np.float32)])
def test_wrong_images_are_refused_by_file(images, tmp_path):
    write_one_class(tmp_path, images, {"a": [0, 1]})
    with pytest.raises(UserError, match=r"mini-imagenet-cache-train\.pkl must hold 'image_data'"):
        stream("mini_imagenet", [[0, 1]], tmp_path)


# Pickles that are data, and pickles that are programs

DATA = {
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 4), "columns first": np.asfortranarray(np.eye(3)[:, :2]),
    "numbers": np.array([1.5, -2.0]), "big-endian": np.array([1, 2], ">i4"), "texts": np.array(["a", "bc"]),
    "truths": np.array([True, False]), "one": np.array(7),
    "scalars": [np.float64(2.5), np.int32(-3), np.uint8(255), np.bool_(True), np.float32(0.5)],
    "plain": {"a": [1, 2**70, -1.5], 3: ("x", b"\0\xff", None, True), "é": {"deeper": []}},
}  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    """The same values in the same containers; arrays and scalars of numpy of the same kind, in any byte order."""
    if isinstance(other, np.ndarray):
        same_kind = isinstance(one, np.ndarray) and one.dtype.newbyteorder("=") == other.dtype.newbyteorder("=")
        return same_kind and np.array_equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(other, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in other)
    if isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_containers_are_let_through(protocol, tmp_path):
    write_file(tmp_path / "data", pickle.dumps(DATA, protocol))
    assert equal(load_pickle(tmp_path / "data"), DATA)


def test_texts_of_python_2_become_texts(tmp_path):
    data = {"name": "café", "labels": [0, 300, -1], "data": np.arange(256, dtype=np.uint8), "long": "x" * 300}
    write_file(tmp_path / "data", python2_pickle(data))
    assert equal(load_pickle(tmp_path / "data"), data)
    assert equal(pickle.loads(python2_pickle(data), encoding="latin1"), data)  # the stand-in is what it says


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def make_canary() -> None:
    Path("canary").touch()


HOSTILE = {
    "os.system": Call(os.system, "touch canary"),
    "eval": Call(eval, "open('canary', 'w').close()"),
    "exec": Call(exec, "open('canary', 'w').close()"),
    "open": Call(open, "canary", "w"),
    "os.mkdir": Call(os.mkdir, "canary"),
    "a function of the program": Call(make_canary),
    "numpy": Call(np.save, "canary.npy", [0]),
    "torch": Call(torch.save, [0], "canary"),
    "a method of an array": Call(np.ndarray.tofile, np.zeros(1), "canary"),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_pickle_that_calls_something_is_refused_before_the_call(hostile, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_file(Path("data"), pickle.dumps({"data": np.zeros(3), "labels": [hostile]}, protocol))
    with pytest.raises(UserError, match=r"data cannot be read: it wants to run .* not run"):
        load_pickle(Path("data"))
    assert list(Path().iterdir()) == [Path("data")]


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_same_pickle_does_call_it_where_it_is_let_through(hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(hostile))
    assert len(list(Path().iterdir())) == 1


NAMED = {
    "GLOBAL": b"cos\nsystem\n.",
    "INST": b"(S'touch canary'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch canary'\no.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(S'touch'\nS'canary'\nt\x81.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
    "a name within an admitted class": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
    "a name that does not exist": b"cno_such_module\nnothing\n.",
    "object": b"cbuiltins\nobject\n.",
    "getattr": b"cbuiltins\ngetattr\n.",
}


@pytest.mark.parametrize("content", NAMED.values(), ids=NAMED.keys())
def test_every_way_to_name_something_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_file(Path("data"), content)
    with pytest.raises(UserError, match="wants to run"):
        load_pickle(Path("data"))
    assert list(Path().iterdir()) == [Path("data")]


@pytest.mark.parametrize("codec", ["zip", "rot13", "idna"])
def test_no_codec_is_looked_up(codec, tmp_path):
    write_file(tmp_path / "data", b"c_codecs\nencode\n(S'abc'\nS'" + codec.encode() + b"'\ntR.")
    assert load_pickle(tmp_path / "data") == b"abc"


def memory_as_objects() -> bytes:
    """Eight bytes as an array; then its dtype is told that they are the address of an object."""
    objects = python2_dtype("O8", (3, "|", None, None, None, -1, -1, 63))
    record = b"(J\3\0\0\0U\1|N(U\1at}U\1a(" + objects + b"J\0\0\0\0ts" + b"J\x08\0\0\0J\1\0\0\0J\x1b\0\0\0tb"
    honest = python2_dtype("V8", (3, "|", None, None, None, 8, 1, 0)) + b"q\1"
    array = python2_array(b"(J\1\0\0\0t", honest, b"U\x08AAAAAAAA")
    return b"\x80\x02](" + array + b"h\1" + record + b"e."


def test_memory_cannot_be_passed_off_as_objects(tmp_path):
    write_file(tmp_path / "data", memory_as_objects())
    with pytest.raises(UserError, match="data cannot be read"):
        load_pickle(tmp_path / "data")


def test_a_short_file_cannot_ask_for_much_memory(tmp_path):
    write_file(tmp_path / "data", b"\x80\x02]r\xff\xff\xff\x7f.")  # an empty list, to be remembered as number 2**31 - 1
    assert load_pickle(tmp_path / "data") == []


GOOD_PICKLE = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 300], "mean": np.float64(2.5)}
GOOD_PICKLES = [
    *(pickle.dumps(GOOD_PICKLE, protocol) for protocol in range(6)),
    python2_pickle({"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 300]}),
]
WORDS = b"".join(
    struct.pack("B", opcode) for opcode in b"()NJKMGUTXRbtqhrj0123ualsed]}.\x85\x86\x87\x88\x89\x8c\x94\x93c"
)


def test_a_pickle_cut_short_anywhere_is_refused(tmp_path):
    for content in (GOOD_PICKLES[2], GOOD_PICKLES[-1]):
        for length in range(len(content)):
            write_file(tmp_path / "data", content[:length])
            with pytest.raises(UserError, match="data cannot be read"):
                load_pickle(tmp_path / "data")


@settings(in_one_folder, max_examples=500)
@given(
    content=st.sampled_from(GOOD_PICKLES),
    changes=st.lists(
        st.tuples(st.integers(0, 10_000), st.one_of(st.integers(0, 255), st.sampled_from(WORDS))),
        min_size=1,
        max_size=4,
    ),
    length=st.integers(1, 20_000),
)
def test_a_damaged_pickle_is_data_or_one_clear_error(tmp_path, content, changes, length):
    damaged = bytearray(content)
    for position, value in changes:
        damaged[position % len(damaged)] = value
    write_file(tmp_path / "data", bytes(damaged[:length]))
    error = refusal(load_pickle, tmp_path / "data")
    assert error is None or str(tmp_path / "data") in error


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-1, 9),
    st.sampled_from(["|", "<", "=", "", "u1", "O8", "names"]),
    st.tuples(),
    st.tuples(st.sampled_from(["a", "O8"])),
)


@settings(in_one_folder, max_examples=300)
@given(
    code=st.sampled_from(["u1", "f8", "U3", "O8", "V8", "u1,O8", "(2,3)u1", "u1,(", "m8", "i7", "", "u1\0"]),
    state=st.one_of(
        st.lists(VALUES, max_size=9).map(tuple),
        st.tuples(st.integers(-1, 5), VALUES, VALUES, VALUES, VALUES, VALUES, VALUES, VALUES),
        st.just((3, "|", None, None, None, -1, -1, 0)),
    ),
    shape=st.lists(st.integers(-1, 4), max_size=3).map(tuple),
    raw=st.binary(max_size=24),
)
def test_a_damaged_description_of_an_array_is_data_or_one_clear_error(tmp_path, code, state, shape, raw):
    def part(value: object) -> bytes:
        return python2_pickle(value)[2:-1]

    array = python2_array(part(shape), python2_dtype(code, state), part(raw))
    write_file(tmp_path / "data", b"\x80\x02" + array + b".")
    error = refusal(load_pickle, tmp_path / "data")
    assert error is None or str(tmp_path / "data") in error


def test_nobody_is_told_to_get_a_pickle_again_that_memory_is_too_short_for(tmp_path, monkeypatch):
    (tmp_path / "data").write_bytes(pickle.dumps(GOOD_PICKLE))
    monkeypatch.setattr(np, "frombuffer", lambda *given: bytes(1 << 60))
    assert refusal(load_pickle, tmp_path / "data") == f"{tmp_path}/data cannot be read: not enough memory"


def test_content_that_memory_is_too_short_for_is_not_called_wrong(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    monkeypatch.setattr(np, "asarray", lambda *given: bytes(1 << 60))
    with pytest.raises(MemoryError):
        stream("cifar10", [range(10)], tmp_path)


@pytest.mark.parametrize("read", [read_idx, load_pickle])
def test_nobody_is_told_to_delete_a_file_that_cannot_be_read_now(read, tmp_path, monkeypatch):
    def failing(*given: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    (tmp_path / "data").touch()
    monkeypatch.setattr("builtins.open", failing)
    assert refusal(read, tmp_path / "data") == f"{tmp_path}/data cannot be read: [Errno 24] Too many open files"


def test_a_folder_or_nothing_in_place_of_a_pickle_is_one_clear_error(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=f"{path} cannot be read"):
            load_pickle(path)


# A user's own images


def folder_stream(data_dir: Path, names: list[str], size: int = 16) -> TaskStream:
    return stream("image_folder", [names], data_dir, folder={"root": "mine", "image_size": size})


def test_images_of_the_right_size_are_read_as_they_are_in_the_order_of_their_names(tmp_path):
    names = ["dog", "cat", "bird 2", "Bird"]
    source = write_image_folder(tmp_path / "mine", names, side=16)
    check_read(folder_stream(tmp_path, sorted(names)), source)


def test_what_is_not_looked_at_is_counted_by_reason(tmp_path):
    """Notes, hidden files and folders, images outside the folders of classes or splits, and those of no task."""
    source = write_image_folder(tmp_path / "mine", ["a", "b"], side=16)
    train = tmp_path / "mine" / "train"
    for name in ("a/notes.txt", "README", "a/._0000.png", "b/.thumbnails/0000.png", ".checkpoints/0000.png", "0.png"):
        write_file(train / name, b"no image")
    for name in ("c/0.png", "c/1.png", "../val/a/0.png"):
        write_image(train / name, source.train.pixels[0])
    write_file(train / "../notes/notes.txt", b"no image")
    made = stream("image_folder", [["a", "b"], ["b", "a"]], tmp_path, folder={"root": "mine", "image_size": 16})
    check_split(made.tasks[0].test, source.test)
    assert len(made.tasks[0].train_eval) == len(source.train.labels)
    assert sorted(re.split("; not used: |, ", made.notice)) == [
        "1 outside train and test", "1 without the suffix of an image", "10 used", "2 hidden", "2 that no task uses",
        "3 outside the folders of classes",
    ]  # fmt: skip


def test_a_run_says_how_many_images_it_uses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_image_folder(Path("data/mine"), ["a", "b", "c"], side=16)
    write_file(Path("data/mine/train/a/.hidden.png"), b"no image")
    Path("d.yaml").write_text("{dataset: image_folder, root: mine, image_size: 16, tasks: [[a, b]]}")
    assert main(["--data_config", "d.yaml", "--continual", "--samples", "1", "--epochs", "1", "--run_dir", "run"]) == 0
    assert re.search(r"images +6 used; not used: 1 hidden, 9 that no task uses\n", capsys.readouterr().out)


def test_images_in_nested_and_linked_folders_are_used(tmp_path):
    """In an order by path; a folder that is linked into itself is looked at once."""
    source = write_image_folder(tmp_path / "mine", ["a", "b"], side=16)
    train = tmp_path / "mine" / "train"
    (train / "a" / "2020").mkdir()
    (tmp_path / "may").mkdir()
    (train / "a" / "0001.png").rename(tmp_path / "may" / "1.png")
    (train / "a" / "2020" / "may").symlink_to(tmp_path / "may")
    (train / "a" / "0002.png").rename(train / "a" / "2020" / "2.png")
    (train / "a" / "2020" / "back").symlink_to(train / "a")
    (train / "b").rename(tmp_path / "elsewhere")
    (train / "b").symlink_to(tmp_path / "elsewhere")
    check = Split(source.train.pixels[[0, 2, 1, 3, 4, 5]], source.train.labels)
    check_read(folder_stream(tmp_path, ["a", "b"]), source._replace(train=check))


def test_every_suffix_that_pillow_has_for_the_formats_is_looked_at():
    formats = {"PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM"}
    Image.init()
    assert {suffix for suffix, kind in Image.registered_extensions().items() if kind in formats} == SUFFIXES


def test_all_that_cannot_be_read_is_listed_at_once(tmp_path, monkeypatch):
    """A pipe, a damaged file, a link that leads nowhere, a folder that may not be read."""
    write_image_folder(tmp_path / "mine", ["a", "b"], side=16)
    train = tmp_path / "mine" / "train"
    write_file(train / "b" / "text.jpg", b"hello")
    (train / "b" / "link.png").symlink_to(tmp_path / "nothing.png")
    locked = train / "b" / "locked"
    locked.mkdir()
    scan = os.scandir

    def refusing(path):  # permissions do not bind the tests' user everywhere
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with (
        pipe(train / "a" / "pipe.png"),
        pytest.raises(UserError, match=r"4 files: .*; repair or remove what") as error,
    ):
        folder_stream(tmp_path, ["a", "b"])
    for word in ("a/pipe.png cannot be read as an image (neither a file", "b/text.jpg", "b/link.png", "b/locked"):
        assert word in str(error.value)


def test_names_of_classes_are_the_same_in_either_form_of_unicode(tmp_path):
    """A folder named in the decomposed form, as macOS writes it, and a YAML file in the composed one."""
    source = write_image_folder(tmp_path / "mine", ["caf\u00e9", "tea"], side=16)

    def held_out():
        (task,) = configured(tmp_path, "[[caf\u00e9, tea]]", hold_out=0.4).tasks
        return task.held_out.rows.tolist()

    before = held_out()
    (tmp_path / "mine" / "train" / "caf\u00e9").rename(tmp_path / "mine" / "train" / "cafe\u0301")
    check_read(configured(tmp_path, "[[cafe\u0301, tea]]"), source)
    assert held_out() == before
    with pytest.raises(UserError, match="twice"):
        configured(tmp_path, "[[caf\u00e9, cafe\u0301]]")


def configured(data_dir: Path, tasks: str, **options: Any) -> TaskStream:
    """The stream of a dataset YAML with these tasks."""
    path = data_dir / "d.yaml"
    path.write_text(f"dataset: image_folder\nroot: mine\nimage_size: 16\ntasks: {tasks}\n")
    config = configure(data_config=str(path), data_dir=data_dir, **options).config
    return build_stream(config.data, 0, torch.device("cpu"))


ODD = ["01", "1", "010", "8", "0_2", "2", "yes", "null", "1e3", "2020-01-01", "0x10", "12:30", "1.0", "~", "=", "-5"]


def test_a_class_is_the_folder_that_is_written(tmp_path):
    """YAML 1.1 would read 010 as 8, 0_2 as 2, 12:30 as 750 and yes as true."""
    write_image_folder(tmp_path / "mine", ODD, side=16)
    for made in (configured(tmp_path, f"[[{', '.join(ODD)}]]"),
                 configured(tmp_path, f"[{{name: odd, label_noise: 0, classes: [{', '.join(ODD)}]}}]")):  # fmt: skip
        (task,) = made.tasks
        assert task.classes == tuple(ODD)
        for target, name in enumerate(ODD):
            shown = task.test.store[task.test.rows[task.test.targets == target]].permute(0, 2, 3, 1).numpy()
            files = sorted((tmp_path / "mine" / "test" / name).iterdir())
            assert np.array_equal(shown, [decode_image(file, 16) for file in files])
    config = parse(["--data_config", str(tmp_path / "d.yaml"), "--set", "data.tasks=[[010, 8]]"]).config
    assert config.data.tasks[0].classes == ("010", 8)
    saved = yaml_bytes(plain_config(config)).decode()
    assert saved_config("c.yaml", parse_yaml("c.yaml", saved)).data.tasks == config.data.tasks


def test_folders_with_numbers_for_names_may_be_written_as_numbers(tmp_path):
    source = write_image_folder(tmp_path / "mine", ["7", "12"], side=16)
    task = stream("image_folder", [[7, 12]], tmp_path, folder={"root": "mine", "image_size": 16}).tasks[0]
    assert task.classes == ("7", "12")
    assert source.names == ["12", "7"]  # sorted as texts
    assert task.test.targets.tolist() == [1 - label for label in source.test.labels[task.test.rows.numpy()]]


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "tiff", "ppm"])
def test_decoding_is_that_of_pillow(suffix, tmp_path):
    path = tmp_path / f"image.{suffix}"
    random_image(16, 16).save(path)
    assert np.array_equal(decode_image(path, 16), np.asarray(Image.open(path)))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (64, 48), (48, 64), (40, 20), (20, 60), (8, 12), (5, 5)])
def test_the_shorter_side_is_scaled_and_the_middle_cut_as_torchvision_does(width, height, tmp_path):
    declare_missing_operators()
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    image = random_image(width, height)
    image.save(tmp_path / "image.png")
    wanted = center_crop(resize(image, 16, InterpolationMode.BICUBIC), 16)
    assert np.array_equal(decode_image(tmp_path / "image.png", 16), np.asarray(wanted))


@in_one_folder
@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(8, 40))
def test_images_of_any_shape_become_squares(tmp_path, width, height, size):
    Image.new("RGB", (width, height), (10, 20, 30)).save(tmp_path / "image.ppm")
    decoded = decode_image(tmp_path / "image.ppm", size)
    assert decoded.shape == (size, size, 3)
    assert (decoded == (10, 20, 30)).all()  # nothing is filled in


@pytest.mark.parametrize("upright", [False, True])
def test_the_middle_is_the_middle_of_the_longer_side(upright, tmp_path):
    stripes = np.zeros((40, 120, 3), np.uint8)  # red, green, blue from left to right, or from the top
    for colour in range(3):
        stripes[:, 40 * colour : 40 * colour + 40, colour] = 255
    Image.fromarray(stripes.transpose(1, 0, 2) if upright else stripes).save(tmp_path / "image.png")
    decoded = decode_image(tmp_path / "image.png", 20)
    inner = decoded[2:-2] if upright else decoded[:, 2:-2]
    assert (inner == (0, 255, 0)).all()


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def as_grey(colour: np.ndarray) -> np.ndarray:
    return np.stack([colour] * 3, axis=-1)


def test_grey_images_have_three_equal_channels(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    Image.fromarray(GREY > 100).save(tmp_path / "black and white.png")
    assert np.array_equal(decode_image(tmp_path / "grey.png", 16), as_grey(GREY))
    assert np.array_equal(decode_image(tmp_path / "black and white.png", 16), as_grey((GREY > 100) * np.uint8(255)))


def test_transparent_pixels_show_a_white_page(tmp_path):
    colours = np.asarray(random_image(16, 16))
    Image.fromarray(np.dstack([colours, GREY])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([GREY, GREY[::-1]])).save(tmp_path / "grey.png")
    Image.fromarray(GREY).save(tmp_path / "one colour.png", transparency=7)
    Image.fromarray(np.uint16(257) * GREY).save(tmp_path / "16 bits.png", transparency=257 * 7)

    def on_white(colours: np.ndarray, opacity: np.ndarray) -> np.ndarray:
        return 255 + (colours - 255.0) * (opacity[..., None] / 255)

    wanted = {"rgba": on_white(colours, GREY), "grey": on_white(as_grey(GREY), GREY[::-1]),
              "one colour": on_white(as_grey(GREY), np.uint8(255) * (GREY != 7))}  # fmt: skip
    wanted["16 bits"] = wanted["one colour"]
    for name, pixels in wanted.items():
        np.testing.assert_allclose(decode_image(tmp_path / f"{name}.png", 16), pixels, atol=1)
    np.testing.assert_allclose(decode_image(tmp_path / "grey.png", 16, grey=True), wanted["grey"][..., 0], atol=1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_photograph_is_turned_as_the_camera_says(suffix, tmp_path):
    """The eight orientations of EXIF: where the top row and the left column of the stored image are seen."""
    seen = np.zeros((16, 16, 3), np.uint8)
    seen[:8, :8], seen[:8, 8:] = 255, 80  # all eight turns of it differ
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.transpose(1, 0, 2),
        6: np.rot90(seen), 7: np.rot90(seen, 2).transpose(1, 0, 2), 8: np.rot90(seen, -1),
    }  # fmt: skip
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, quality=100)
        np.testing.assert_allclose(decode_image(path, 16), seen, atol=6)
        with Image.open(path) as opened:
            before = opened.tobytes()
            np.testing.assert_allclose(decode_image(opened, 16), seen, atol=6)
            assert opened.tobytes() == before  # a user's own image stays as it is


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_photograph_with_damaged_metadata_is_read(suffix, tmp_path):
    exif, image, rng = Image.Exif(), random_image(16, 16), np.random.default_rng(0)
    exif[0x0112], exif[0x010F] = 1, "a camera"
    image.save(tmp_path / f"plain.{suffix}")
    for _ in range(60):
        damaged = bytearray(exif.tobytes())
        for position in rng.integers(6, len(damaged), 3):
            damaged[position] = rng.integers(256)
        image.save(tmp_path / f"damaged.{suffix}", exif=bytes(damaged))
        decoded, wanted = (decode_image(tmp_path / f"{name}.{suffix}", 16) for name in ("damaged", "plain"))
        assert sorted(decoded.ravel()) == sorted(wanted.ravel())  # it may say that it is turned


def test_grey_of_more_than_eight_bits_is_scaled_not_clipped(tmp_path):
    """Grey from black to white with 12 and 16 bits and as floats; white is the highest value that fits."""
    grey = np.linspace(0, 1, 256).reshape(16, 16)
    sixteen, twelve = (np.rint(grey * most).astype(np.uint16) for most in (65535, 4095))
    for name in ("16.png", "16.tif"):
        Image.fromarray(sixteen).save(tmp_path / name)
    for name, values, most in (("16.pgm", sixteen, 65535), ("12.pgm", twelve, 4095)):
        write_file(tmp_path / name, b"P5 16 16 %d\n" % most + values.astype(">u2").tobytes())
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(sixteen).save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    high, low = twelve.reshape(-1, 2).T  # two values of 12 bits in three bytes
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], 1).astype(np.uint8).tobytes()
    tags = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 16), (279, len(packed))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(packed))
    write_file(tmp_path / "12.tif", header + packed + directory + bytes(4))
    for path in tmp_path.iterdir():
        wanted = 1 - grey if path.stem == "inverted" else grey
        for source in (path, Image.open(path)):
            np.testing.assert_allclose(decode_image(source, 16, grey=True), 255 * wanted, atol=1, err_msg=path.name)


@pytest.mark.parametrize(
    "values", [np.array([[0, white]], kind) for white, kind in ((2, "f4"), (math.nan, "f4"), (255, "i4"))]
)
def test_grey_without_a_known_white_is_refused(values, tmp_path):
    Image.fromarray(values).save(tmp_path / "grey.tif")
    for source in (tmp_path / "grey.tif", Image.fromarray(values)):
        with pytest.raises(UserError, match=r"cannot be read as an image .*(floats must be|what is white)"):
            decode_image(source, 8)


@pytest.mark.parametrize("shape", [(65_000, 1), (1, 4_000_000), (20_001, 4)])
def test_of_a_long_thin_image_the_middle_is_cut_out_before_it_is_scaled(shape, tmp_path, monkeypatch):
    """Black at the ends, white in the middle; nothing larger than a few squares may be made of it."""
    width, height = shape
    image = Image.new("L", shape)
    image.paste(255, (width // 2 - 40, height // 2 - 40, width // 2 + 40, height // 2 + 40))
    image.save(tmp_path / "thin.png")
    resize, sizes = Image.Image.resize, []
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *how: sizes.append(size) or resize(self, size, *how))
    assert (decode_image(tmp_path / "thin.png", 8) == 255).all()
    assert max(map(max, sizes)) <= 5 * 8


def test_an_image_that_needs_too_much_memory_is_named(tmp_path, monkeypatch):
    random_image(20, 20).save(tmp_path / "image.png")
    monkeypatch.setattr(Image.Image, "resize", lambda *given: bytes(1 << 60))
    with pytest.raises(UserError, match=r"image\.png cannot be read as an image \(not enough memory\)"):
        decode_image(tmp_path / "image.png", 8)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palettes_are_looked_up(suffix, tmp_path):
    palette = np.random.default_rng(0).integers(256, size=(256, 3), dtype=np.uint8)
    image = Image.fromarray(GREY[::-1].copy()).convert("P")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / f"image.{suffix}")
    assert np.array_equal(decode_image(tmp_path / f"image.{suffix}", 16), palette[GREY[::-1]])


DAMAGED_IMAGES = {"a text": b"hello", "nothing": b"", "cut short": None}


@pytest.mark.parametrize("content", DAMAGED_IMAGES.values(), ids=DAMAGED_IMAGES.keys())
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_that_cannot_be_read_is_named(content, suffix, tmp_path):
    write_image_folder(tmp_path / "mine", ["a", "b"], side=16)
    file = io.BytesIO()
    random_image(64, 64).save(file, "PNG" if suffix == "png" else "JPEG")
    path = tmp_path / "mine" / "train" / "b" / f"broken.{suffix}"
    write_file(path, file.getvalue()[:-400] if content is None else content)
    with pytest.raises(UserError, match=f"{path} cannot be read as an image.*repair or remove what"):
        folder_stream(tmp_path, ["a", "b"])


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    write_image_folder(tmp_path / "mine", ["a", "b"], side=16)
    link = tmp_path / "mine" / "test" / "a" / "link.png"
    link.symlink_to(tmp_path / "nothing.png")
    with pytest.raises(UserError, match=str(link)):
        folder_stream(tmp_path, ["a", "b"])


# The array file of decoded images


@pytest.fixture
def decoded(monkeypatch):
    """The files that are decoded, as they are."""
    paths = []

    def decode(path: Path, size: int) -> np.ndarray:
        paths.append(path)
        return decode_image(path, size)

    monkeypatch.setattr(importlib.import_module("datasets.images.image_folder"), "decode_image", decode)
    return paths


@pytest.fixture
def mine(tmp_path):
    """A folder of images, decoded once."""
    source = write_image_folder(tmp_path / "mine", ["a", "b"], side=16)
    folder_stream(tmp_path, ["a", "b"])
    return source


def cache_files(data_dir: Path) -> list[Path]:
    return sorted((data_dir / "cache").iterdir())


def test_images_are_decoded_once(tmp_path, mine, decoded):
    check_read(folder_stream(tmp_path, ["a", "b"]), mine)
    assert decoded == []


def test_another_order_of_classes_needs_no_decoding(tmp_path, mine, decoded):
    task = folder_stream(tmp_path, ["b", "a"]).tasks[0]
    assert task.test.targets.tolist() == [1 - label for label in mine.test.labels[task.test.rows.numpy()]]
    assert decoded == []


def test_another_size_is_decoded_and_kept_beside_the_first(tmp_path, mine, decoded):
    assert folder_stream(tmp_path, ["a", "b"], size=8).spec.input_shape == (3, 8, 8)
    assert len(decoded) == 10
    check_read(folder_stream(tmp_path, ["a", "b"]), mine)
    assert len(decoded) == 10


def test_an_image_that_changes_is_seen(tmp_path, mine, decoded):
    path = tmp_path / "mine" / "test" / "b" / "0003.png"
    write_image(path, 255 - mine.test.pixels[3])
    mine.test.pixels[3] = 255 - mine.test.pixels[3]
    check_read(folder_stream(tmp_path, ["a", "b"]), mine)
    assert path in decoded


def test_a_change_that_keeps_the_size_of_the_file_is_seen(tmp_path, mine, decoded):
    path = tmp_path / "mine" / "train" / "a" / "0000.png"
    os.utime(path, (0, 0))
    folder_stream(tmp_path, ["a", "b"])
    assert path in decoded


def test_an_image_that_is_added_or_removed_is_seen(tmp_path, mine):
    path = tmp_path / "mine" / "test" / "b" / "new.png"
    write_image(path, mine.train.pixels[0])
    longer = Split(np.concatenate([mine.test.pixels, mine.train.pixels[:1]]), np.array([*mine.test.labels, 1]))
    check_read(folder_stream(tmp_path, ["a", "b"]), mine._replace(test=longer))
    path.unlink()
    check_read(folder_stream(tmp_path, ["a", "b"]), mine)


def test_an_image_that_moves_to_another_class_is_seen(tmp_path, mine):
    (tmp_path / "mine" / "train" / "a" / "0002.png").rename(tmp_path / "mine" / "train" / "b" / "0002.png")
    labels = mine.train.labels.copy()
    labels[2] = 1
    check_read(folder_stream(tmp_path, ["a", "b"]), mine._replace(train=Split(mine.train.pixels, labels)))


def test_a_new_class_before_the_others_shifts_their_labels(tmp_path, mine):
    for split, images in (("train", mine.train), ("test", mine.test)):
        write_image(tmp_path / "mine" / split / "0" / "0.png", images.pixels[0])
    wanted = [
        Split(np.concatenate([s.pixels[:1], s.pixels]), np.array([0, *(s.labels + 1)])) for s in (mine.train, mine.test)
    ]
    check_read(folder_stream(tmp_path, ["0", "a", "b"]), Source(wanted[0], wanted[1], ["0", "a", "b"]))


def test_two_folders_of_one_name_are_not_confused(tmp_path):
    options = {"root": "mine", "image_size": 16}
    sources = [write_image_folder(tmp_path / name / "mine", ["a", "b"], side=16) for name in "xy"]
    write_image(tmp_path / "y" / "mine" / "train" / "a" / "0000.png", 255 - sources[1].train.pixels[0])
    roots = [{**options, "root": f"{name}/mine"} for name in "xy"]
    first, second, again = (stream("image_folder", [["a", "b"]], tmp_path, folder=roots[i]) for i in (0, 1, 0))
    check_read(first, sources[0])
    check_read(again, sources[0])
    assert not torch.equal(first.tasks[0].train_eval.store, second.tasks[0].train_eval.store)
    assert len(cache_files(tmp_path)) == 2


def test_another_version_of_the_decoder_decodes_anew(tmp_path, mine, decoded, monkeypatch):
    monkeypatch.setattr(importlib.import_module("datasets.images.image_folder"), "DECODER", "another")
    check_read(folder_stream(tmp_path, ["a", "b"]), mine)
    assert len(decoded) == 10


@pytest.mark.parametrize("damage", ["cut short", "another file", "empty", "of fewer images"])
def test_a_damaged_array_file_is_made_anew(damage, tmp_path, mine, decoded):
    (cache,) = cache_files(tmp_path)
    fewer = {name: tensor[:5] if name == "pixels" else tensor for name, tensor in read_tensors(cache).items()}
    content = {"cut short": cache.read_bytes()[:-1], "another file": b"hello", "empty": b"",
               "of fewer images": tensor_bytes(fewer)}[damage]  # fmt: skip
    cache.write_bytes(content)
    check_read(folder_stream(tmp_path, ["a", "b"]), mine)
    assert len(decoded) == 10
    check_read(folder_stream(tmp_path, ["a", "b"]), mine)
    assert len(decoded) == 10


def test_without_a_place_for_the_array_file_images_are_decoded_every_time(tmp_path, decoded):
    source = write_image_folder(tmp_path / "mine", ["a", "b"], side=16)
    write_file(tmp_path / "cache", b"a file where the folder should be")
    for times in (1, 2):
        check_read(folder_stream(tmp_path, ["a", "b"]), source)
        assert len(decoded) == 10 * times


def test_the_image_fixtures_differ():
    """Tests that compare images would see nothing if these were alike."""
    images = [image.tobytes() for image in random_split(20, 10, (3, 16, 16), 0).pixels]
    assert all(one != other for one, other in pairwise(sorted(images)))


def test_a_cifar10_label_beyond_nine_is_refused(tmp_path):
    write_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}))
    with pytest.raises(UserError, match=r"data_batch_3 must hold .* labels below 10"):
        stream("cifar10", [[0, 1]], tmp_path)
