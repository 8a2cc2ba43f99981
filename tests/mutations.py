"""Thousands of damaged and hostile inputs: each is read, or refused in one line, and does nothing else.

    python tests/mutations.py [--cases 10000] [--kind idx] [--seed 17]

Tiny valid inputs of every kind are mutated, one at a time, and given to the programs. A case is a pure function of
its kind and seed. Cases run in processes forked from one that has everything imported; one that
fails is run again in a process of its own, and is printed so that it can be repeated.
"""

from __future__ import annotations

import argparse
import binascii
import contextlib
import csv
import gc
import gzip
import hashlib
import importlib
import io
import json
import os
import pickle
import random
import re
import resource
import select
import shutil
import signal
import stat
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:1] = [str(Path(__file__).parent.parent)]

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image

import benchmark
import distill
import export
import forget
import modelzoo
import predict
import report
import utils.compute
from records.checkpoints import RunCheckpoints
from records.manifest import MANIFEST, Entry, Manifest
from tests.test_bad_input import (
    CIFAR,
    FOLDER,
    HOSTILE,
    HOSTILE_TEXT,
    MINI,
    MNIST,
    NOTHING_THERE,
    POINTERS,
    Hostile,
    Objects,
    Pointers,
    idx,
)
from training.checkpoints import Checkpoints

SECONDS = 10  # a case may take
BYTES = 2 << 30  # a case may need, all in all
BATCH = 50  # cases in one process
STEPS = 40  # of training; who has come so far was accepted
CANARY = "canary"

# Cases that were not refused as they should have been.
REGRESSIONS = [
    ("grid", 83), ("cifar", 85), ("idx", 1), ("idx", 27), ("image", 12), ("image", 15), ("image", 25),
    ("image", 32), ("cache", 4), ("cache", 5), ("cache", 20), ("state", 3), ("state", 5), ("state", 9), ("state", 11),
    ("state", 34), ("hostile_run", 11), ("hostile_run", 29), ("hostile_run", 35), ("hostile_run", 56), ("manifest", 73),
    ("links", 71), ("links", 85), ("store", 6), ("store", 45), ("store", 52), ("store", 53), ("store", 65),
    ("store", 1159), ("argv", 332), ("argv", 1154), ("image", 525), ("image", 1443),
    ("store", 107), ("store", 259), ("store", 1349), ("store", 1495), ("links", 1495), ("report", 10), ("report", 61),
    ("report", 72), ("report", 82), ("report", 99), ("report", 119),
    ("predict", 4), ("export", 7), ("distill", 7), ("distill", 9), ("distill", 135), ("forget", 37), ("forget", 55),
    ("forget", 82), ("extend", 44), ("forget", 5449),
]  # fmt: skip


@dataclass(frozen=True)
class Link:
    """A symbolic link in place of a file."""

    target: str


@dataclass(frozen=True)
class Folder:
    """A folder in place of a file."""


Files = dict[Any, Any]  # path, text or bytes, in the folder of the case -> bytes, Link or Folder


@dataclass
class Case:
    """A command and the files that it finds."""

    kind: str
    seed: int
    arguments: list[str]
    files: Files
    program: str = "modelzoo"
    told: str = ""  # what was changed
    writes: tuple[str, ...] | None = None  # what may be written; None: the run


@dataclass(frozen=True)
class Answer:
    """What came of a case."""

    kind: str
    seed: int
    code: int | str  # "accepted" if it was training
    wrong: str  # "" if nothing is
    seconds: float = 0.0
    bytes: int = 0
    line: str = ""  # stderr


# Valid inputs, tiny.

TINY = {"h.yaml": b"model: conv\nbatch: 8\nepochs: 1\nlr: 0.01\nl2_reg: 1.0e-5\ndropout: 0.1\n"}
OPTIONS = ["--data_config", "d.yaml", "--hp_config", "h.yaml", "--run_dir", "run", "--threads", "1"]
CONTINUAL = [*OPTIONS, "--continual"]
YAML = {
    "digits": b"dataset: digits\ntasks: [[0, 1], [2, 3]]\n",
    "rotated": b"dataset: rotated_digits\ntasks: [[0, 1], {classes: [12, 13], name: turned, label_noise: 0.1}]\n",
    "cifar": b"dataset: cifar10\ntasks: [[0, 1], [2, 3]]\n",
    "mnist": b"dataset: mnist\ntasks: [[0, 1], [2, 3]]\n",
    "mini": b"dataset: mini_imagenet\ntasks: [[0, 1], [2, 3]]\n",
    "images": b"dataset: image_folder\nroot: animals\nimage_size: 8\naugment: crop\ntasks: [[cat, dog], [cat, eel]]\n",
}
METHODS = {
    "finetune": b"bn: shared\n",
    "ewc": b"strength: 100.0\nfisher: exact\nfisher_examples: 20\nbn: shared\nstreams:\n  d: {strength: 10.0}\n",
    "er": b"memory_per_class: 2\nbuffer: balanced\nreplay_batch: 4\nreplay_loss: mean\nbn: shared\n",
    "der": b"memory_per_class: 2\nbuffer: balanced\nreplay_batch: 4\nalpha: 0.3\nbn: shared\n",
    "gem": b"memory_per_class: 2\nbuffer: balanced\nreplay_batch: 4\nmargin: 0.5\nbn: shared\n",
    "gpm": b"threshold: 0.97\nthreshold_step: 0.003\nbasis_examples: 8\nbn: freeze_after_first\n",
    "packnet": b"tasks: 2\nbn: per_task\nstreams:\n  d: {tasks: 2}\n",
    "wsn": b"share: 0.5\nscore_rate: 10.0\nbn: per_task\n",
    "stable_sgd": b"decay: 0.85\nfloor: 5e-5\nmomentum: 0.8\nbn: shared\n",
}
GRID = b"""streams: [d.yaml]
hyperparams: [h.yaml]
seeds: 1
samples: 4
methods:
  - isolated
  - {method: zoo, label: "zoo, 2 a class", memory_per_class: 2}
  - {method: er, memory_per_class: 2, method_config: m.yaml}
"""


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def cifar_batch() -> dict[str, Any]:
    return {"data": pixels(8, 3072), "labels": [0, 1, 2, 3] * 2, "batch_label": "of 8", "filenames": ["a.png"] * 8}


def mini_part() -> dict[str, Any]:
    return {"image_data": pixels(8, 84, 84, 3), "class_dict": {"bird": [0, 1, 2, 3], "cat": [4, 5, 6, 7]}}


def image(suffix: str = "png", side: int = 8, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    made = Image.fromarray(pixels(side, side + 1, 3)).convert(mode)
    made.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    return file.getvalue()


def image_files() -> Files:
    return {
        f"{FOLDER}/{split}/{name}/{number}.png": image()
        for split in ("train", "test") for name in ("cat", "dog", "eel") for number in (1, 2)
    }  # fmt: skip


def idx_files() -> Files:
    digits, labels = idx(pixels(8, 28, 28)), idx(np.arange(8, dtype=np.uint8) % 4)
    return {
        f"{MNIST}/train-images-idx3-ubyte.gz": gzip.compress(digits, mtime=0),
        f"{MNIST}/train-labels-idx1-ubyte": labels,
        f"{MNIST}/t10k-images-idx3-ubyte": digits,
        f"{MNIST}/t10k-labels-idx1-ubyte.gz": gzip.compress(labels, mtime=0),
    }


# What is put in the place of something else.

HUGE = [0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 16**5000]
REAL = [0.5, -0.0, 1e-320, 1e300, 1e308, float("inf"), float("-inf"), float("nan"), 1.5, 1e19]
TEXTS = [
    "", " ", "0", "1", "-1", "nan", "inf", "1e400", "null", "true", "../x", "/proc/self/mem", "/dev/null", "~", "a/b",
    ".", "..", "a\0b", "a\nb", "a\r\x85\u2028b", "\x1b[31mred", "é", "日本語", "\u202eabc", "\U0001f600", "e\u0301",
    "\ufeff",
    "\ufffe", "x" * 300, "y" * 5000, "%s%n", "{0}", "$(touch canary)", "`touch canary`", "; touch canary", "٣",
    "timm/resnet18", "timm/", "timm/x", "cuda", "mps", "cpu:1", "cuda:99999999999999999999", "conv", "zoo", "run",
    "d.yaml", "h.yaml", ".lock", "manifest.json", "--epochs", "١٢", "1_000", "0x10", "1:30", "2020-01-01",
]  # fmt: skip
SURROGATES = ["\ud800", "a\udcff", "\udc80.yaml"]


def nested(depth: int, around: Callable[[Any], Any], core: Any = 0) -> Any:
    for _ in range(depth):
        core = around(core)
    return core


def odd_value(rng: random.Random) -> Any:
    """Plain values of every type."""
    pick = rng.randrange(9)
    if pick < 2:
        return rng.choice(HUGE)
    if pick == 2:
        return rng.choice(REAL)
    if pick < 5:
        return rng.choice(TEXTS + SURROGATES)
    if pick == 5:
        return rng.choice([None, True, False, [], {}, [[]], {"a": 1}, [None], {"": ""}, [{}], [[], []]])
    if pick == 6:
        return nested(rng.choice([5, 40, 200]), rng.choice([lambda x: [x], lambda x: {"a": x}]))
    if pick == 7:
        return [rng.randrange(10) for _ in range(rng.choice([1, 3, 1000]))]
    return rng.randrange(-5, 300)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all nodes of a tree of dictionaries and lists."""
    found = [path]
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    for key, value in pairs:
        found += places(value, (*path, key))
    return found


def changed(tree: Any, rng: random.Random, value: Callable[[random.Random], Any] = odd_value) -> tuple[Any, str]:
    """A copy in which one node is another one, is missing, is there twice, or has another key; and where."""
    paths = places(tree)
    path = rng.choice(paths)
    how = rng.choice(["replace"] * 5 + ["remove", "rename", "double", "wrap", "text", "swap"])
    if not path:
        how = rng.choice(["replace", "wrap"])
    old = tree
    for key in path:
        old = old[key]
    new = {"wrap": [old], "text": shown(old), "double": old}.get(how)
    if how in ("replace", "rename"):
        new = value(rng) if how == "replace" else rng.choice(TEXTS)
    if how == "swap":
        new = tree
        for key in rng.choice(paths):
            new = new[key]
    return _put(tree, path, how, new), f"{how} {'/'.join(map(str, path))}"[:200] + f" {shown(new)}" * (how != "remove")


def shown(value: Any) -> str:
    """For people."""
    try:
        return f"{value!r:.60}"
    except (ValueError, RecursionError):  # a number of too many digits
        return type(value).__name__


def _put(tree: Any, path: tuple, how: str, new: Any) -> Any:
    if not path:
        return new
    here, *rest = path
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    made = []
    for key, old in items:
        if key != here or type(key) is not type(here):
            made.append((key, old))
        elif rest:
            made.append((key, _put(old, tuple(rest), how, new)))
        elif how == "rename":
            made.append((new, old))
        elif how == "double":
            made += [(key, old), (f"{key}2", old)]
        elif how != "remove":
            made.append((key, new))
    return dict(made) if isinstance(tree, dict) else type(tree)(value for _, value in made)


# Bytes and texts.

OTHER_FILES = [
    b"", b"\0", b"<html><body>404 Not Found</body></html>", b"PK\x03\x04" + bytes(60), b"\x7fELF" + bytes(200),
    b"\x1f\x8b\x08" + bytes(20), HOSTILE, HOSTILE_TEXT, POINTERS, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    b"(canary) (w) file closefile showpage\n%%EOF\n", b"\xff\xfe" + "a: 1".encode("utf-16-le"), b"{}", b"[]", b"null",
    b"\x93NUMPY\x01\x00", b"\x89HDF\r\n\x1a\n", b"version https://git-lfs.github.com/spec/v1\n",
]  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bits flipped, cut, doubled, overwritten."""
    size = len(content)
    at, length = rng.randrange(size + 1), rng.choice([1, 2, 4, 8, 64, 1024])
    how = rng.choice(
        ["flip", "flip", "flip", "head", "truncate", "cut", "insert", "number", "number", "double", "other"]
    )
    data = bytearray(content)
    if how in ("flip", "head"):
        for _ in range(rng.choice([1, 1, 2, 8])):
            if size:
                data[rng.randrange(min(size, 64) if how == "head" else size)] ^= 1 << rng.randrange(8)
    elif how == "truncate":
        del data[at:]
    elif how == "cut":
        del data[at : at + length]
    elif how == "insert":
        data[at:at] = rng.choice([bytes(length), rng.randbytes(length), b"\xff" * length])
    elif how == "number":
        at = rng.choice([at, rng.randrange(min(size, 32) + 1)])
        number = rng.choice([0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 2**40])
        width = rng.choice([1, 2, 4, 8])
        data[at : at + width] = (number % 256**width).to_bytes(width, rng.choice(["big", "little"]))
    elif how == "double":
        data += rng.choice([content, content[at:], rng.randbytes(length)])
    else:
        data = bytearray(rng.choice(OTHER_FILES))
    return bytes(data), f"{how} at {at} of {size}"


YAML_PIECES = [
    "!!python/object/apply:os.system [touch canary]", "!!python/name:os.system", "!!python/object/new:type [z]",
    "!!binary aGVsbG8=", "!!set {0, 1}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp 2020-01-01", "!!float 0x1",
    "!!int 1.5", "!!null x", "!!bool maybe", "!!map []", "!!seq {}", "!!str 1", "!!merge x", "!x y", "!<tag:x> 1",
    "{<<: {a: 1}}", "{<<: [1, 2]}", "{[1]: 2}", "{{a: 1}: 2}", "{? [0] : 1}", "&a [*a]", "*a", "&a 1", "2020-01-01",
    "2020-01-01 25:61:61", "1e400", "-1e400", ".nan", ".inf", "-.inf", "0x" + "f" * 5000, "0b" + "1" * 40000,
    "1" * 5000, "9:" * 2000 + "9", "1_0", "0o17", "017", "08", "~", "yes", "off", "=", "<<", "'", '"', '"\\uD800"',
    '"\\x00"', '"\\U0010FFFF"', '"\\UFFFFFFFF"', "[" * 30 + "]" * 30, "[" * 5000, "{a: " * 40 + "1" + "}" * 40,
    "- " * 3000 + "1", "? " * 3000 + "1", "|\n  text", ">-\n  text", "@", "`", "%YAML 9.9", "---", "...", "\t", "#",
    "\ufeff", "\x07", "\x00", "\x85", "\u2028", "日本", "\U0001f600", "a: b: c", "[,]", "{,}", "[[0, 1], [0, 1]]",
]  # fmt: skip


def mistyped(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Words of a text exchanged for others, lines moved, another encoding."""
    text = content.decode(errors="replace")
    how = rng.choice(["word"] * 6 + ["line", "insert", "insert", "encoding", "damage", "damage"])
    if how == "word":
        words = list(re.finditer(r"[\w.\"'-]+", text)) or [*re.finditer("$", text)]
        word = rng.choice(words)
        value = odd_value(rng)
        new = rng.choice(
            [rng.choice(YAML_PIECES), json.dumps(value) if depth(value) < 100 and value != HUGE[-1] else "[" * 500]
        )
        text = text[: word.start()] + new + text[word.end() :]  # type: ignore[union-attr]
        told = f"{word[0]!r} -> {new!r:.60}"  # type: ignore[index]
    elif how == "line":
        lines = text.splitlines(keepends=True)
        a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
        move = rng.choice(["swap", "remove", "double", "indent"])
        if move == "swap":
            lines[a], lines[b] = lines[b], lines[a]
        elif move == "remove":
            del lines[a]
        elif move == "double":
            lines.insert(a, lines[b])
        else:
            lines[a] = rng.choice(["  ", "\t", "- ", "    "]) + lines[a]
        text, told = "".join(lines), f"{move} lines {a}, {b}"
    elif how == "insert":
        at, piece = rng.randrange(len(text) + 1), rng.choice(YAML_PIECES)
        text, told = text[:at] + piece + text[at:], f"{piece!r:.60} at {at}"
    elif how == "encoding":
        codec = rng.choice(["utf-16", "utf-32", "utf-8-sig", "utf-16-be"])
        return text.encode(codec), codec
    else:
        return damaged(content, rng)
    return text.encode("utf-8", "surrogatepass"), told


def depth(tree: Any) -> int:
    level, here = 0, [tree]
    while here := [child for node in here if isinstance(node, (list, dict))
                   for child in (node.values() if isinstance(node, dict) else node)]:  # fmt: skip
        level += 1
    return level


def affordable(content: bytes) -> bytes:
    """Images of a size that is allowed, but would keep a network busy for minutes, become small."""
    return re.sub(rb"(image_size\W{1,8})([0-9]{3,4})\b", lambda match: match[1] + match[2][:2], content)


def text_or_tree(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A YAML file with a word or a value changed."""
    if rng.random() < 0.6:
        new, told = mistyped(content, rng)
    else:
        tree, told = changed(yaml.safe_load(content), rng)
        try:
            new = yaml.safe_dump(tree, sort_keys=False, allow_unicode=rng.random() < 0.5).encode(
                "utf-8", "surrogatepass"
            )
        except (RecursionError, ValueError):  # ValueError: a number of too many digits
            new = b"tasks: " + b"[" * 3000
    return affordable(new), told


def valid(rng: random.Random) -> Case:
    """Nothing is mutated: all of these are accepted."""
    data = {"cifar": pickle.dumps(cifar_batch(), protocol=2), "mini": pickle.dumps(mini_part(), protocol=2)}
    names = [f"{CIFAR}/{name}" for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))]
    files = {**TINY, "m.yaml": METHODS["er"], "g.yaml": GRID, "d.yaml": YAML["digits"], "run": Folder()}
    files |= {**dict.fromkeys(names, data["cifar"]), **idx_files(), **image_files()}
    files |= {f"{MINI}-{part}.pkl": data["mini"] for part in ("train", "val", "test")}
    what = rng.choice([*YAML, *METHODS, "grid"])
    told = f"{what}, not mutated"
    if what == "grid":
        return Case("", 0, ["--config", "g.yaml", "--store", "run", "--tables_only"], files, "benchmark", told)
    arguments = [*CONTINUAL, "--samples", "1" if what in YAML and what not in ("digits", "rotated") else "4"]
    if what in METHODS:
        files["m.yaml"] = METHODS[what]
        return Case("", 0, [*arguments, "--method", what, "--method_config", "m.yaml"], files, told=told)
    return Case("", 0, arguments, {**files, "d.yaml": YAML[what]}, told=told)


# The kinds of inputs: each takes the random generator and returns a case without kind and seed.


def dataset_yaml(rng: random.Random) -> Case:
    which = rng.choice(["digits", "rotated", "mnist", "images"])
    content, told = text_or_tree(YAML[which], rng)
    files = {**TINY, "d.yaml": content, **(idx_files() if which == "mnist" else image_files())}
    arguments = rng.choice([CONTINUAL, OPTIONS]) + ["--samples", "2"] * (rng.random() < 0.7)
    return Case("", 0, arguments, files, told=f"d.yaml ({which}): {told}")


def hyper_yaml(rng: random.Random) -> Case:
    content, told = text_or_tree(TINY["h.yaml"], rng)
    files = {"h.yaml": content, "d.yaml": YAML["digits"]}
    return Case("", 0, [*rng.choice([CONTINUAL, OPTIONS]), "--samples", "4"], files, told=f"h.yaml: {told}")


def method_yaml(rng: random.Random) -> Case:
    name = rng.choice(list(METHODS))
    content, told = text_or_tree(METHODS[name], rng)
    files = {**TINY, "d.yaml": YAML["digits"], "m.yaml": content}
    arguments = [*CONTINUAL, "--samples", "4", "--method", name, "--method_config", "m.yaml"]
    return Case("", 0, arguments, files, told=f"m.yaml ({name}): {told}")


def grid_yaml(rng: random.Random) -> Case:
    content, told = text_or_tree(GRID, rng)
    files = {**TINY, "d.yaml": YAML["digits"], "m.yaml": METHODS["er"], "g.yaml": content, "run": Folder()}
    return Case("", 0, ["--config", "g.yaml", "--store", "run", "--tables_only"], files, "benchmark", f"g.yaml: {told}")


VALUED = [
    "--data_config", "--hp_config", "--samples", "--data_dir", "--method", "--method_config", "--tasks_per_round",
    "--replay_frac", "--memory", "--memory_per_class", "--selection", "--rounds", "--epochs", "--seed", "--run_dir",
    "--checkpoint_minutes", "--verify", "--isolated", "--device", "--precision", "--threads",
]  # fmt: skip
SWITCHES = ["--continual", "--warm_start", "--no_augment", "--overwrite", "--resume", "--quiet", "-h", "--", "-", "-x"]
VALUES = [
    "d.yaml", "h.yaml", "m.yaml", "run", ".", "missing", "data", "zoo", "er", "finetune", "joint", "packnet", "auto",
    "cpu", "bf16", "fp32", "uniform", "0", "1", "2", "7", "-1", "1.5", "1e3", "1e400", "nan", "inf", "9" * 19, "9" * 30,
    "9" * 4000, "9" * 5000, "1_0", "٣", " 1 ", "0x10", "", "\udcff", "\udc80x", "é", "日本", "x" * 255, "x" * 256,
    "x" * 5000,
    "a\nb", "\x1b[2J", "d.yaml/x", "run/", "run/x/y", "../run", "/dev/null", "/dev/zero", "/dev/stdin",
    "/proc/self/mem",
    "/proc/self/environ", "/nonexistent", "/", "~", "$(touch canary)", "d.yaml\0", "a\0b", "4611686018427387904",
    "9223372036854775807", "100000", "65536", "-0", "+1", "--", "fifo",
]  # fmt: skip


def command_line(rng: random.Random) -> Case:
    arguments = [*CONTINUAL, "--samples", "4"]
    told = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        how = rng.choice(["value", "value", "value", "switch", "remove", "replace", "equals", "text"])
        at = rng.randrange(len(arguments) + 1)
        option, value = rng.choice(VALUED), rng.choice(VALUES + TEXTS[:30])
        if option in ("--run_dir", "--data_dir") and value.startswith("/"):
            value = "run" + value.replace("/dev", "").rstrip("/")  # nothing outside is to be written, were it valid
        if how == "value":
            arguments += [option, value]
        elif how == "equals":
            arguments.append(f"{option}={value}")
        elif how == "switch":
            arguments.append(rng.choice(SWITCHES))
        elif how == "text":
            arguments.insert(at, rng.choice(VALUES))
        elif arguments:
            at %= len(arguments)
            if how == "remove":
                del arguments[at]
            else:
                arguments[at] = rng.choice([v for v in VALUES if not v.startswith("/")])
        told.append(how)
    files = {**TINY, "d.yaml": YAML["digits"], "m.yaml": METHODS["er"]}
    return Case("", 0, arguments, files, told=", ".join(told))


# Pickles.


class Gadget:
    """Calls something when it is unpickled."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple:
        return self.reduced


_TOUCH = f"open({CANARY!r}, 'w').close()"


def gadgets() -> list[Any]:
    import builtins
    import subprocess

    return [
        Hostile(), Pointers(), Objects(), Gadget(os.system, (f"touch {CANARY}",)), Gadget(eval, (_TOUCH,)),
        Gadget(exec, (_TOUCH,)), Gadget(builtins.open, (CANARY, "w")), Gadget(subprocess.Popen, (["touch", CANARY],)),
        Gadget(subprocess.check_output, (["touch", CANARY],)),
        Gadget(partial, (os.system, f"touch {CANARY}")), Gadget(reduce, (os.system, [f"touch {CANARY}"])),
        Gadget(os.mkdir, (CANARY,)), Gadget(importlib.import_module, ("antigravity",)),
        Gadget(np.fromfile, (CANARY,)), Gadget(np.save, (CANARY + ".npy", [1])), Gadget(np.load, (CANARY,)),
        Gadget(np.zeros, ((1 << 16, 1 << 16),)), Gadget(bytearray, (1 << 33,)), Gadget(list, (range(10**10),)),
        Gadget(np.dtype, ("O", False, True)), Gadget(np.ndarray, ((10,), "O")), Gadget(np.ndarray, ((1 << 34,), "u1")),
        Gadget(io.open, (CANARY, "w")), Gadget(Path, (CANARY,)), Gadget(Path.touch, (Path(CANARY),)),
        Gadget(torch.load, (CANARY,)), Gadget(type, ("X", (), {})), Gadget(globals, ()), Gadget(__import__, ("os",)),
        complex(1, 2), {1, 2}, frozenset({1}), bytearray(b"x"), range(3), slice(1), Ellipsis, 1.5, 10**400, "\ud800",
        np.zeros(3, "O"), np.zeros(3, "M8[s]"), np.zeros(2, [("a", "u1")]), np.zeros((0, 3072), np.uint8),
        np.zeros((2, 0), np.uint8), np.float64(1), np.array(3), np.zeros((8, 3072), np.int8),
        np.zeros((8, 3072), "<f4"), np.asfortranarray(pixels(8, 3072)), pixels(8, 3072)[:, ::-1], pixels(7, 3072),
        np.zeros((8, 84, 84, 3), ">u2"), np.array(["a", "b"]), np.array([b"a"]), np.array([2**63], np.uint64),
    ]  # fmt: skip


def odd_object(rng: random.Random) -> Any:
    """Something for a pickle."""
    pick = rng.random()
    if pick < 0.5:
        return rng.choice(gadgets())
    if pick < 0.6:
        return rng.choice([[0, 1, 2, 3] * 2, [True] * 8, [0.0] * 8, ["0"] * 8, [10**400] * 8, [-1] * 8, [10] * 8,
                           (0, 1, 2, 3, 0, 1, 2, 3), np.arange(8), [np.int64(0)] * 8, [[0]] * 8,
                           [None] * 8])  # fmt: skip
    return odd_value(rng)


def raw_pickles(rng: random.Random) -> tuple[bytes, str]:
    """Written by hand: what no Python object would give."""
    many = rng.choice([100, 10**5])
    text = b"X" + struct.pack("<I", many) + b"a" * many
    doubled = b"".join(b"(h%ch%c\x86q%ct" % (i, i, i + 1) for i in range(40))
    made: dict[str, Callable[[], bytes]] = {
        "lists in lists": lambda: b"]" * many + b"a" * (many - 1) + b".",
        "empty dictionaries": lambda: b"(" + b"}" * (10 * many) + b"l.",
        "empty sets": lambda: b"\x80\x04(" + b"\x8f" * (10 * many) + b"l.",
        "marks": lambda: b"(" * many + b".",
        "tuple of tuples": lambda: b")q\x00" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(60)) + b"h<.",
        "tuple as key": lambda: b"}(" + b")q\x00" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
        + b"K\x01u.",
        "tuple as name": lambda: _named_by_tuples(),
        "text again and again": lambda: b"}" + b"".join(
            b"c_codecs\nencode\n" + (text + b"q\x01" if not i else b"h\x01") + b"X\x06\x00\x00\x00latin1\x86R0"
            for i in range(2000 if many > 1000 else 20)) + b".",
        "huge string": lambda: b"\x80\x04\x8e" + struct.pack("<Q", rng.choice([2**31, 2**40, 2**63])) + b"x.",
        "huge text": lambda: b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"x.",
        "huge frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "huge number": lambda: b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
        "long number": lambda: b"\x80\x02\x8b" + struct.pack("<i", 10 * many) + b"\x01" * (10 * many) + b".",
        "number in digits": lambda: b"I" + b"9" * 10 * many + b"\n.",
        "huge memo": lambda: b"Nr" + struct.pack("<I", rng.choice([2**31 - 1, 2**32 - 1])) + b".",
        "memo": lambda: b"N" + b"".join(b"r" + struct.pack("<I", 2**20 * i) for i in range(100)) + b".",
        "persistent": lambda: b"Pos.system\n.",
        "extension": lambda: b"\x80\x02\x82\x01.",
        "instance": lambda: b"(S'touch canary'\nios\nsystem\n.",
        "object": lambda: b"(cos\nsystem\nS'touch canary'\no.",
        "stack global": lambda: b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch canary\x85R.",
        "new object": lambda: b"\x80\x02csubprocess\nPopen\n(]S'touch'\naS'canary'\natR.",
        "dotted": lambda: b"\x80\x04\x8c\x05numpy\x8c\x18ndarray.__class__.__mro__\x93.",
        "through dtype": lambda: b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        "build": lambda: b"cnumpy\ndtype\n(S'u1'\ntR}S'__class__'\ncnumpy\nndarray\nsb.",
        "build attributes": lambda: b"cnumpy\nndarray\n)R}S'__setstate__'\nNsb.",
        "build function": lambda: b"c_codecs\nencode\n}S'__code__'\nNsb.",
        "build class": lambda: b"cnumpy\nndarray\n}S'__setstate__'\nc_codecs\nencode\nsb.",
        "append to array": lambda: b"cnumpy\nndarray\n)R(K\x01K\x02e.",
        "array of shape": lambda: _array(b"(" + rng.choice([b"J\xff\xff\xff\x7f", b"K\x00"]) + b"J\xff\xff\xff\x7ft"),
        "array of text": lambda: _array(b"(K\x01t", b"S99999"),
        "deep": lambda: b"(" * 10**5 + b"t" * 10**5 + b".",
        "itself": lambda: b"]q\x00h\x00a.",
        "itself as value": lambda: b"}q\x00(X\x04\x00\x00\x00datah\x00X\x06\x00\x00\x00labelsh\x00u.",
        "no stop": lambda: b"N" * many,
        "doubled": lambda: b")q\x00" + doubled + b".",
    }  # fmt: skip
    name = rng.choice(list(made))
    return made[name](), name


def _array(shape: bytes, kind: bytes = b"u1") -> bytes:
    return (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00tS'b'\ntR(K\x01" + shape
            + b"cnumpy\ndtype\n(S'" + kind + b"'\nK\x00K\x01tRI00\nS'abcd'\ntb.")  # fmt: skip


def _named_by_tuples() -> bytes:
    """A Mini-ImageNet file with a class whose name would take 2**60 characters."""
    plain = pickle.dumps({"image_data": pixels(8, 84, 84, 3)}, protocol=2)[:-1]
    name = b")q\xa0" + b"".join(b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(160, 220))
    return plain + b"X\x0a\x00\x00\x00class_dict}" + name + b"](K\x00K\x01ess."


def pickled(value: Any, rng: random.Random) -> bytes:
    """In some protocol; what cannot be pickled becomes something hostile."""
    try:
        return pickle.dumps(value, protocol=rng.randrange(6))
    except Exception:
        return HOSTILE


def mutated_pickle(valid: Any, rng: random.Random) -> tuple[bytes, str]:
    pick = rng.random()
    if pick < 0.4:
        return damaged(pickle.dumps(valid, protocol=rng.choice([0, 2, 4])), rng)
    if pick < 0.55:
        return raw_pickles(rng)
    with contextlib.suppress(RecursionError):
        tree, told = changed(valid, rng, odd_object)
        return pickled(tree, rng), told
    return HOSTILE, "hostile"


def cifar_pickle(rng: random.Random) -> Case:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    valid = pickle.dumps(cifar_batch(), protocol=2)
    files = {**TINY, "d.yaml": YAML["cifar"], **{f"{CIFAR}/{name}": valid for name in names}}
    name, content = rng.choice(names), cifar_batch()
    if rng.random() < 0.15:
        name, content = "batches.meta", {"label_names": list("abcdefghij"), "num_cases_per_batch": 8}
    files[f"{CIFAR}/{name}"], told = mutated_pickle(content, rng)
    return Case("", 0, [*CONTINUAL, "--samples", "2"], files, told=f"{name}: {told}")


def mini_pickle(rng: random.Random) -> Case:
    valid = pickle.dumps(mini_part(), protocol=2)
    files = {**TINY, "d.yaml": YAML["mini"], **{f"{MINI}-{part}.pkl": valid for part in ("train", "val", "test")}}
    name = rng.choice(("train", "val", "test"))
    files[f"{MINI}-{name}.pkl"], told = mutated_pickle(mini_part(), rng)
    return Case("", 0, [*CONTINUAL, "--samples", "2"], files, told=f"{name}: {told}")


# IDX files and images.


def bomb(size: int) -> bytes:
    """Zeros, deflated, without an end."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packer.compress(bytes(1 << 20))
    packer.flush(zlib.Z_FULL_FLUSH)
    return (packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)) * (size >> 20)


def idx_file(rng: random.Random) -> Case:
    files = {**TINY, "d.yaml": YAML["mnist"], **idx_files()}
    path = rng.choice([path for path in files if "ubyte" in path])
    zipped, content = path.endswith(".gz"), files[path]
    plain = gzip.decompress(content) if zipped else content
    how = rng.choice(["damage", "damage", "header", "header", "inside", "bomb", "labels", "link"])
    told = how
    if how == "header":
        sides = [0, 1, 7, 8, 28, 2**16, 2**31 - 1, 2**31, 2**32 - 1]
        shape = [rng.choice(sides) for _ in range(rng.choice([1, 2, 3, 3, 4, 5, 255]))]
        plain = bytes([0, 0, rng.choice([8, 8, 8, 9, 11, 14]), len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        plain += bytes(rng.choice([0, 8, 8 * 784]))
        told = f"header {shape[:5]}"
    elif how == "inside":
        plain, told = damaged(plain, rng)
    elif how == "labels":
        plain = plain[:8] + rng.randbytes(len(plain) - 8)
    content = gzip.compress(plain, mtime=0) if zipped or how == "bomb" else plain
    if how == "damage":
        content, told = damaged(content, rng)
    if how == "bomb":
        head = idx(np.zeros((0, 28, 28), np.uint8))[:4] + struct.pack(">3I", rng.choice([8, 10**6, 5 * 10**6]), 28, 28)
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        begin = gzip.compress(b"", mtime=0)[:10] + packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
        content = begin + bomb(rng.choice([64 << 20, 4 << 30]))
        files.pop(path)
        path = path.removesuffix(".gz") + ".gz"
    files[path] = (
        Link(rng.choice(["/dev/zero", "/dev/null", "missing", Path(path).name, "/"])) if how == "link" else content
    )
    return Case("", 0, [*CONTINUAL, "--samples", "1"], files, told=f"{Path(path).name}: {told}")


def png_claiming(width: int, height: int, data: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file whose header and data need not agree."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", binascii.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def large_image(rng: random.Random) -> tuple[bytes, str]:
    """A few bytes that ask for gigabytes."""
    width, height = rng.choice([(30000, 30000), (13000, 13000), (9000, 9000), (65535, 65535), (2**31 - 1, 1),
                                (1, 10**8), (10**6, 100), (0, 8), (1, 1), (8, 0), (300000, 1),
                                (1, 300000)])  # fmt: skip
    how = rng.choice(["png", "grey", "bmp", "ppm", "pgm", "gif", "tif", "jpg", "webp"])
    small = {"grey": "png", "pgm": "ppm"}.get(how, how)
    content = bytearray(image(small, mode="L" if small == "gif" else "RGB"))
    if how in ("png", "grey"):
        rows = min(height, 5000) * (1 + min(width, 30000) * (3 if how == "png" else 1) // (1 if how == "png" else 8))
        full = rng.random() < 0.5
        data = zlib.compress(bytes(min(rows, 200 << 20)) if full else b"")
        return png_claiming(width, height, data, *((8, 2) if how == "png" else (1, 0))), f"{how} {width}x{height}"
    if how in ("ppm", "pgm"):
        return b"P%d %d %d 255\n" % (6 if how == "ppm" else 5, width, height) + bytes(100), f"{how} {width}x{height}"
    places = {"bmp": (18, "<II"), "gif": (6, "<HH"), "tif": None, "jpg": None, "webp": (26, "<HH")}[how]
    if places:
        wide = 2**32 if places[1] == "<II" else 2**16
        content[places[0] : places[0] + struct.calcsize(places[1])] = struct.pack(
            places[1], width % wide, height % wide
        )
        return bytes(content), f"{how} {width}x{height}"
    if how == "jpg":
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", height % 2**16, width % 2**16)
        return bytes(content), f"{how} {width}x{height}"
    for tag, value in ((256, width), (257, height)):
        at = content.index(struct.pack("<H", tag))
        content[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(content), f"{how} {width}x{height}"


def image_file(rng: random.Random) -> Case:
    files = {**TINY, "d.yaml": YAML["images"], **image_files()}
    path = rng.choice([path for path in files if FOLDER in path])
    suffix = rng.choice(["png", "png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
    how = rng.choice(["damage", "damage", "damage", "damage", "large", "large", "mode", "name", "place", "place"])
    told = how
    if how == "mode":
        mode, suffix = rng.choice([("1", "png"), ("LA", "png"), ("RGBA", "png"), ("P", "gif"), ("I;16", "png"),
                                   ("CMYK", "tif"), ("F", "tif"), ("LAB", "tif"), ("YCbCr", "jpg"),
                                   ("I", "tif")])  # fmt: skip
        raw = io.BytesIO()
        source = Image.fromarray(pixels(9, 9, 3))
        made = (
            Image.fromarray(pixels(9, 9).astype("<u2") * 200)
            if mode == "I;16"
            else source.convert("L" if mode in ("F", "I") else mode if mode != "LAB" else "RGB").convert(
                mode if mode != "LAB" else "RGB"
            )
        )
        made.save(raw, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
        content, told = raw.getvalue(), f"mode {mode}"
        if rng.random() < 0.7:
            content, more = damaged(content, rng)
            told += f", {more}"
    elif how == "large":
        content, told = large_image(rng)
    else:
        content = image(suffix, side=rng.choice([1, 8, 64]), mode="L" if suffix == "gif" else "RGB")
        if how == "damage":
            content, told = damaged(content, rng)
            told = f"{suffix} {told}"
    files[path] = content
    if how == "name":
        folder, odd = (
            Path(path).parent,
            rng.choice(
                [
                    b"\xff.png",
                    b"\xc3\xa9.png",
                    b"a\nb.png",
                    b"\x1b[31m.png",
                    b"x" * 250 + b".png",
                    b".png",
                    b"a.PNG",
                    b"-.png",
                ]
            ),
        )
        del files[path]
        where = rng.choice([os.fsencode(folder) + b"/" + odd, f"{FOLDER}/train/".encode() + odd + b"/1.png"])
        files[where], told = rng.choice([content, b"no image"]), f"name {odd!r:.30}"
    elif how == "place":
        what = rng.choice(
            ["/dev/zero", "/dev/null", "missing", "/", "../../../../../d.yaml", Path(path).name, "folder", "cycle"]
        )
        files[path] = Folder() if what == "folder" else Link("/dev/zero" if what == "cycle" else what)
        if what == "cycle":
            files[f"{FOLDER}/train/loop"] = Link("..")
            files[path] = content
        told = f"place {what}"
    return Case("", 0, [*CONTINUAL, "--samples", "1"], files, told=f"{path}: {told}")


# safetensors.


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined_safetensors(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def mutated_tensors(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A safetensors file with another header, other data, or another tree in its metadata."""
    how = rng.choice(["damage", "damage", "header", "tree", "tree", "tree", "size", "numbers", "hostile"])
    header, data = split_safetensors(content)
    tree = header.get("__metadata__", {}).get("tree")
    if how == "tree" and tree is not None:
        new, told = changed(json.loads(tree), rng)
        if rng.random() < 0.1:
            new, told = nested(500, lambda x: {"list": [x]}), "nested tree"
        try:
            header["__metadata__"]["tree"] = json.dumps(new)
        except (RecursionError, ValueError):
            header["__metadata__"]["tree"] = "[" * 10**5
        return joined_safetensors(header, data), f"tree: {told}"
    if how == "header" or how == "tree":
        new, told = changed(header, rng)
        with contextlib.suppress(RecursionError, ValueError):
            return joined_safetensors(new, data), f"header: {told}"
    if how == "size":
        length = rng.choice([0, 1, 2**31, 2**40, 2**63, 2**64 - 1, len(content) - 8, len(content)])
        return joined_safetensors(header, data, length), f"header of {length}"
    if how == "numbers" and data:
        kind = rng.choice([b"\xff", b"\x7f", b"\x80", b"\0"])
        return joined_safetensors(header, kind * len(data)), f"all {kind!r}"
    if how == "hostile":
        return rng.choice([HOSTILE, HOSTILE_TEXT, pickle.dumps(rng.choice(gadgets()[:12]), 2)]), "hostile"
    return damaged(content, rng)


# Runs, prepared once: a finished one, one of --method isolated, one that was interrupted while it trained.

PREPARED: dict[str, Files] = {}
STREAM = {**TINY, "d.yaml": YAML["digits"]}
MADE_WITH = {
    "finished": [*CONTINUAL, "--samples", "4"],
    "isolated": [*CONTINUAL, "--samples", "4", "--method", "isolated"],
    "interrupted": [*CONTINUAL, "--samples", "8"],
    "between": [*CONTINUAL, "--samples", "8", "--memory_per_class", "2"],
    "interrupted er": [*CONTINUAL, "--samples", "8", "--method", "er", "--memory_per_class", "2"],
    "interrupted ewc": [*CONTINUAL, "--samples", "8", "--method", "ewc"],
    "interrupted packnet": [*CONTINUAL, "--samples", "8", "--method", "packnet"],
    "interrupted joint": [*OPTIONS, "--samples", "8", "--method", "joint"],
    "interrupted gpm": [*CONTINUAL, "--samples", "8", "--method", "gpm"],
}
UNFINISHED = [name for name in MADE_WITH if name not in ("finished", "isolated")]


def prepare(name: str) -> None:
    """A run in the current folder, stopped in its second episode if it is to be an interrupted one."""
    if name in DERIVED_WITH:
        return derive(name)
    write(SAVED_STREAM if name in SAVED_WITH else STREAM)
    if name in ("finished", "isolated", *SAVED_WITH):
        stops = 0
    else:
        stops = {"interrupted": 4, "between": 2, "interrupted joint": 2}.get(name, 3)
    due, seen = RunCheckpoints.due, [0]

    def counted(self: RunCheckpoints, *, epoch_ends: bool = False) -> bool:
        seen[0] += not epoch_ends
        if seen[0] == stops:
            self._signal = 15
        return due(self, epoch_ends=epoch_ends)

    RunCheckpoints.due = counted  # type: ignore[method-assign]
    code = modelzoo.main([*(MADE_WITH | SAVED_WITH)[name], "--quiet"])
    if code != (143 if stops else 0):
        raise RuntimeError(f"{name}: exit code {code}")


def prepare_and_tell(name: str, send: Callable[[object], None]) -> None:
    prepare(name)
    send(name)


def prepared(name: str) -> Files:
    """Its files, in the folder `run`."""
    return {**STREAM, **PREPARED[name]}


def fitted(files: Files, manifest: Manifest, run: str = "run") -> bytes:
    """manifest.json for the files as they are now, as one would write it who wants them to be taken."""
    entries = {
        name: Entry(len(files[f"{run}/{name}"]), hashlib.sha256(files[f"{run}/{name}"]).hexdigest())
        for name in manifest.files if isinstance(files.get(f"{run}/{name}"), bytes)
    }  # fmt: skip
    return Manifest(manifest.episode, manifest.members, manifest.seconds, entries).content()


def manifest_of(files: Files, run: str = "run") -> Manifest:
    content = json.loads(files[f"{run}/{MANIFEST}"])
    entries = {name: Entry(*entry) for name, entry in content["files"].items()}
    return Manifest(content["episode"], content["members"], content["seconds"], entries)


def mutated_json(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damaged(content, rng)
    new, told = changed(json.loads(content), rng)
    if rng.random() < 0.1:
        return rng.choice([b"[" * 10**5, b'{"a":' * 10**5, b"[" * 10**5 + b"]" * 10**5]), "nested"
    try:
        return json.dumps(new).encode("utf-8", "surrogatepass"), told
    except (RecursionError, ValueError):
        return b"9" * 5000, "digits"


def mutated_csv(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    if rng.random() < 0.3:
        return damaged(content, rng)
    rows = list(csv.reader(io.StringIO(content.decode())))
    how = rng.choice(["cell", "cell", "cell", "row", "column", "header", "huge", "double", "empty", "quote"])
    at = rng.randrange(len(rows))
    if how in ("cell", "header"):
        row = rows[0 if how == "header" else at]
        value = odd_value(rng)
        row[rng.randrange(len(row))] = (
            repr(value)[:3000]
            if isinstance(value, float)
            else f"{value!r:.5000}"
            if not (isinstance(value, int))
            else rng.choice(["9" * 5000, "-1", "0", str(2**64), "1e400"])
        )
    elif how == "row":
        del rows[at]
    elif how == "column":
        column = rng.randrange(len(rows[0]))
        rows = [row[:column] + row[column + 1 :] for row in rows]
    elif how == "huge":
        rows[at][rng.randrange(len(rows[at]))] = "x" * rng.choice([131073, 10**6])
    elif how == "double":
        rows.append(rows[at])
    elif how == "empty":
        rows = rows[: rng.choice([0, 1])]
    file = io.StringIO()
    csv.writer(file, lineterminator=rng.choice(["\n", "\n", "\r\n", "\r"])).writerows(rows)
    text = file.getvalue()
    if how == "quote":
        spot = rng.randrange(len(text))
        text = text[:spot] + rng.choice(['"', "\0", "\r", ",,,,", "\n\n", "\ufeff"]) + text[spot:]
    return text.encode("utf-8", "surrogatepass"), f"{how} {at}"


def mutated_file(path: str, content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """According to what it is."""
    if path.endswith(".yaml"):
        return text_or_tree(content, rng)
    if path.endswith(".json"):
        return mutated_json(content, rng)
    if path.endswith(".csv"):
        return mutated_csv(content, rng)
    if path.endswith(".safetensors"):
        return mutated_tensors(content, rng)
    return damaged(content, rng)


def used(name: str, rng: random.Random) -> list[str]:
    """A command for a run that is there."""
    if name == "isolated" and rng.random() < 0.6:
        return [*CONTINUAL[:-1], "--run_dir", "other", "--continual", "--samples", "4", "--isolated", "run"]
    pick = rng.random()
    if pick < 0.65:
        return ["--resume", "--run_dir", "run"] if rng.random() < 0.7 else [*MADE_WITH[name], "--resume"]
    return ["--verify", "run"] if pick < 0.9 else [*MADE_WITH[name], "--overwrite"]


def run_files(rng: random.Random, which: str = "", hostile: bool = False) -> Case:
    """One file of a run, of those whose path has `which` in it; `hostile`: with the checksums to fit."""
    name = rng.choice([name for name in MADE_WITH if any(which in path for path in PREPARED[name])])
    files = prepared(name)
    paths = sorted(path for path in files if path.startswith("run/") and which in path)
    kinds: dict[str, list[str]] = {}
    for path in paths:  # so that one config.yaml is drawn as often as many tensors
        kinds.setdefault(
            Path(path).suffix + Path(path).parent.name + ("training" if "training" in path else ""), []
        ).append(path)
    path = rng.choice(kinds[rng.choice(sorted(kinds))])
    manifest = manifest_of(files)
    files[path], told = mutated_file(path, files[path], rng)
    if hostile and path != f"run/{MANIFEST}":
        if "state/" in path:  # the name has a part of the sum
            new = (
                path[: -len("0123456789abcdef.safetensors")]
                + hashlib.sha256(files[path]).hexdigest()[:16]
                + ".safetensors"
            )
            files[new] = files.pop(path)
            entries = dict(manifest.files)
            entries[new.removeprefix("run/")] = entries.pop(path.removeprefix("run/"))
            manifest = Manifest(manifest.episode, manifest.members, manifest.seconds, entries)
        files[f"run/{MANIFEST}"] = fitted(files, manifest)
    return Case("", 0, used(name, rng), files, told=f"{name}, {path}: {told}")


def state_file(rng: random.Random) -> Case:
    return run_files(rng, "state/", hostile=rng.random() < 0.8)


def member_file(rng: random.Random) -> Case:
    return run_files(rng, rng.choice(["members/", "predictions/"]), hostile=rng.random() < 0.7)


def run_directory(rng: random.Random) -> Case:
    return run_files(rng)


def hostile_run(rng: random.Random) -> Case:
    return run_files(rng, rng.choice(["config.yaml", "config.yaml", ".csv", "summary", ""]), hostile=True)


def hostile_manifest(rng: random.Random) -> Case:
    """manifest.json whose own checksum is right."""
    name = rng.choice(list(MADE_WITH))
    files = prepared(name)
    content = json.loads(files[f"run/{MANIFEST}"])
    del content["sha256"]
    how = rng.choice(["tree", "tree", "numbers", "names", "names", "names", "missing"])
    told = how
    if how == "tree":
        content, told = changed(content, rng)
    elif how == "numbers":
        key = rng.choice(["episode", "members", "seconds"])
        content[key] = rng.choice([*HUGE, *REAL, True, None, "1", 2, 3, 1000])
        told = f"{key} {shown(content[key])}"
    elif how == "names":
        old = rng.choice(sorted(content["files"]))
        odd = [
            "../outside", "/etc/passwd", "members/../../outside", "state/../config.yaml", "members//x", "a\nb", "", ".",
            "..", "members", "state", "members/..", "x/y", "a\0b", "x" * 300, "state/.lock", ".lock", "summary.json",
            "events.out.tfevents.9", MANIFEST, "state/training-member_0-0123456789abcdef.safetensors", "é",
            "config.yaml ", "state/method-0123456789abcdef.safetensors", "state/task_1_test-0.safetensors",
            "METRICS.csv",
        ]  # fmt: skip
        new = rng.choice(odd)
        entry = content["files"].pop(old) if rng.random() < 0.5 else content["files"][old]
        content["files"][new] = entry
        plain = not {"/", "\0"} & set(new) and 0 < len(new) < 256
        if rng.random() < 0.5 and plain and new not in (".", "..", "members", "state", MANIFEST):
            files[f"run/{new}"] = files[f"run/{old}"]
        told = f"{old} -> {new!r:.40}"
    elif how == "missing":
        old = rng.choice(sorted(content["files"]))
        del content["files"][old]
        told = f"without {old}"
    files["outside"] = b"mine"
    try:
        if isinstance(content, dict):
            content["sha256"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        files[f"run/{MANIFEST}"] = json.dumps(content).encode()
    except (RecursionError, ValueError, TypeError):
        files[f"run/{MANIFEST}"] = b"[" * 10**5
    return Case("", 0, used(name, rng), files, told=f"{name}, manifest: {told}")


def links(rng: random.Random) -> Case:
    """Links, folders and strange files in a run directory."""
    name = rng.choice(list(MADE_WITH))
    files = prepared(name)
    files |= {"outside/precious": b"mine", "outside/member_000.safetensors": b"mine", "outside/x.partial": b"mine",
              "outside/config.yaml": b"mine"}  # fmt: skip
    pick = rng.choice(["folder", "folder", "file", "file", "whole", "into", "lock", "partial", "extra"])
    target = rng.choice(["../outside", "../outside/precious", "/dev/zero", "missing", "/dev/null", "."])
    told = f"{pick} {target}"
    if pick == "folder":
        folder = rng.choice(["members", "predictions", "state"])
        moved = rng.random() < 0.5
        for path in [path for path in files if path.startswith(f"run/{folder}/")]:
            content = files.pop(path)
            if moved:
                files[f"outside/{Path(path).name}"] = content
        files[f"run/{folder}"] = rng.choice([Link("../outside"), Link("../outside"), Link(target), b"a file"])
        told += f" {folder}, moved {moved}"
    elif pick == "file":
        path = rng.choice(sorted(path for path in files if path.startswith("run/")))
        if rng.random() < 0.5 and target != ".":
            files["outside/moved"] = files[path]
            target = "../" * path.count("/") + "outside/moved"
        files[path] = Folder() if rng.random() < 0.2 else Link(target)
        told += f" {path}"
    elif pick == "whole":
        files = {path.replace("run/", "real/"): content for path, content in files.items()}
        files["run"] = Link(rng.choice(["real", "outside", "missing", "run", "/dev/null"]))
    elif pick == "lock":
        files["run/.lock"] = rng.choice([
            Link("../outside/precious"), Link("missing"), Folder(), b"", b"[" * 4000, b"{}", b"\xff", b'{"host": 1}',
            b'{"host": "x", "process": {"a": [1]}, "since": "a\\nb\\u001b[31m"}', b'{"host": null}', b'"host"',
            b"9" * 5000,            b'{"host": "\\ud800"}', b'{"host": ' + b"9" * 4000 + b"}",
        ])  # fmt: skip
        told += f" {files['run/.lock']!r:.50}"
    elif pick == "partial":
        path = rng.choice(sorted(path for path in files if path.startswith("run/"))) + ".partial"
        files[path] = rng.choice([Link("../outside/precious"), Link("../../outside/precious"), Folder(), b"x"])
        told += f" {path}"
    elif pick == "into":
        files["run/members/link"] = Link(target)
        files["run/state/training-x.safetensors"] = Link(target)
        files["run/events.out.tfevents.1"] = Link(target)
    else:
        odd = rng.choice(
            [b"\xff", b"a\nb", b"\x1b[31m", "é".encode(), b"x" * 250, b".partial", b"summary.json.partial"]
        )
        files[b"run/" + odd] = b"x"
        told += f" {odd!r:.40}"
    return Case("", 0, used(name, rng), files, told=f"{name}: {told}")


def image_cache(rng: random.Random) -> Case:
    """The array file of an image folder, which is found to be fresh."""
    case = Case("", 0, [*CONTINUAL, "--samples", "1"], {**TINY, "d.yaml": YAML["images"], **image_files()})
    case.files[CACHE] = rng.randbytes(8)  # of what is to be done with it, once it is there
    return case


CACHE = "cache"


def store(rng: random.Random) -> Case:
    """A benchmark's run directory, of which the tables are made again."""
    files = {**STREAM, "m.yaml": METHODS["er"]}
    files["g.yaml"] = b"{streams: [d.yaml], hyperparams: [h.yaml], seeds: 1, samples: 4, methods: [zoo, isolated]}"
    for name, label in (("finished", "zoo"), ("isolated", "isolated")):
        files |= {path.replace("run/", f"run/d-h-{label}-seed0/"): content
                  for path, content in PREPARED[name].items() if path.startswith("run/")}  # fmt: skip
    folder = rng.choice(["run/d-h-zoo-seed0", "run/d-h-isolated-seed0"])
    path = f"{folder}/" + rng.choice(["summary.json", "summary.json", "config.yaml", "config.yaml", MANIFEST])
    manifest = manifest_of(files, folder)
    files[path], told = mutated_file(path, files[path], rng)
    if rng.random() < 0.8 and not path.endswith(MANIFEST):
        files[f"{folder}/{MANIFEST}"] = fitted(files, manifest, folder)
    if rng.random() < 0.1:
        files[path] = rng.choice([Link("/dev/zero"), Link("missing"), Folder()])  # type: ignore[assignment]
        told = repr(files[path])
    arguments = ["--config", "g.yaml", "--store", "run", "--tables_only"]
    return Case("", 0, arguments, files, "benchmark", f"{path}: {told}")


def report_of_run(rng: random.Random) -> Case:
    """A damaged run that the report is to be made of."""
    made = run_files(rng, rng.choice(["", "members/", "predictions/", ".csv", "config", "summary"]), rng.random() < 0.8)
    more = rng.choice([[], [], ["--format", "csv"], ["--format", "tex"], ["--out", "run/elsewhere"]])
    return replace(made, arguments=["run", *more], program="report")


# A zoo that is used: predict.py, export.py, distill.py, forget.py, modelzoo.py --extend.

SAVED_STREAM = {
    **TINY,
    "t.yaml": b"dataset: digits\ntasks: [[0, 1], {name: middle, classes: [2, 3, 4]}, [5, 6]]\n",
    "more.yaml": b"dataset: digits\ntasks: [{name: next, classes: [7, 8, 9]}]\n",
    "m.yaml": b"tasks: 4\nbn: per_task\n",
}
_RECIPE = ["--data_config", "t.yaml", *OPTIONS[2:], "--samples", "10", "--hold_out", "0.3"]
_CONTINUAL = [*_RECIPE, "--continual"]
SAVED_WITH = {
    "saved zoo": [*_CONTINUAL, "--tasks_per_round", "2"],
    "saved zoo of few": [*_CONTINUAL, "--tasks_per_round", "2", "--memory_per_class", "2"],
    "saved isolated": [*_CONTINUAL, "--method", "isolated"],
    "saved er": [*_CONTINUAL, "--method", "er", "--memory_per_class", "2"],
    "saved packnet": [*_CONTINUAL, "--method", "packnet", "--method_config", "m.yaml"],
    "saved joint": [*_RECIPE, "--method", "joint"],
}
# From a zoo in the folder `before`.
DERIVED_WITH: dict[str, tuple[Any, list[str]]] = {
    "forgotten": (forget, ["before", "--task", "1", "--retrain", "--run_dir", "run", "--quiet"]),
    "student": (distill, ["before", "--run_dir", "run", "--epochs", "1", "--quiet"]),
    "extended": (modelzoo, ["--extend", "before", "--data_config", "more.yaml", "--run_dir", "run", "--quiet"]),
}
SAVED = [*SAVED_WITH, *DERIVED_WITH]
PICTURES: Files = {"pictures/1.png": image(), "pictures/2.jpg": image("jpg", 16), "pictures/more/3.bmp": image("bmp")}
IN_MEMBERS: dict[str, list[Any]] = {
    "weights": [[], [0.0], [-1.0], [float("nan")], [float("inf")], [1e308] * 3, [True], ["1"], [1.0] * 9, None, 1.0],
    "tasks": [[], [0], [-1], [1, 1], [4], [2**31], [10**30], [True], ["1"], [1.0], [[1]], [None], None, "12"],
    "task_names": [[], [1], [None], ["a\nb"], ["\x1b[2J"], ["\ud800"], ["middle"] * 3, "abc", [""], [["x"]]],
    "classes": [[], [[]], [["a"]], [["a"] * 100000], ["ab"], [[1, 2]], [["a", "a"]], [None], [["\x1b[2J", "b"]], 2],
    "input_shape": [[], [1, 8], [1, 8, 8, 8], [3, 8, 8], [1, 0, 0], [1, -8, -8], [1, 30000, 30000], [10**6, 8, 8],
                    [1, 8, 9], ["1", "8", "8"], [1.5, 8, 8], [1, 2**40, 2**40], None, [True, 8, 8], [1, 1, 1]],
    "net": ["wrn16_4", "timm/resnet18", "timm/vit_giant_patch14_224", "nothing", "", None, 1, ["conv"], "conv "],
    "member": [-1, 1, 7, "0", None, True, 0.0, 2**40, 10**30],
    "episode": [-1, 0, 99, "1", None, True, 10**30],
    "parameters": [-1, 0, 10**30, "x", None, float("nan"), 1.5],
    "replaces_earlier": [True, False, None, "no", 2, [], {}],
    "dropout": [2.0, -1, "x", None],
}  # fmt: skip


ODD_NAMES = [
    "x", "task_1/test", "task_9/test", "task_1", "task_x/weight", "task_/", "task_1/held_out", "", "task_-1/trunk",
    "task_1/nothing", "\x1b[2J", "task_" + "9" * 5000 + "/test",
]  # fmt: skip


def derive(name: str) -> None:
    """A run in the current folder that is made from another run."""
    write(SAVED_STREAM)
    program, arguments = DERIVED_WITH[name]
    made = modelzoo.main([*SAVED_WITH["saved zoo"], "--run_dir", "before", "--quiet"])
    if made or program.main(arguments):
        raise RuntimeError(f"{name} could not be prepared")


def saved(name: str) -> Files:
    """Its files, in the folder `run`."""
    return {**SAVED_STREAM, **PREPARED[name]}


def other_tensors(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A safetensors file that is one, with another tensor in it."""
    tensors = safetensors.torch.load(content)
    name = rng.choice(sorted(tensors))
    old = tensors[name]
    how = rng.choice(["dtype", "shape", "shape", "values", "values", "some", "gone", "name", "more", "swap"])
    told: object = ""
    if how == "dtype":
        told = rng.choice([torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16,
                           torch.float8_e5m2, torch.complex64])  # fmt: skip
        tensors[name] = old.to(told)
    elif how == "shape":
        told = rng.choice(["flat", "less", "more", "narrow", "wide", "deep", "turned", "empty", "none"])
        flat = old.reshape(len(old) if old.ndim else 1, -1)
        tensors[name] = {
            "flat": old.flatten(), "less": flat[1:].reshape(-1, *old.shape[1:]), "more": torch.cat([flat, flat[:1]]),
            "narrow": flat[:, 1:], "wide": torch.cat([flat, flat[:, :1]], 1), "deep": old[None], "turned": flat.T,
            "empty": old.new_zeros(0), "none": old.new_zeros(()),
        }[told].contiguous()  # fmt: skip
    elif how in ("values", "some"):
        told = rng.choice([float("nan"), float("inf"), -1, 0, 2, 99, 1e38, -float("inf"), 1e-40, 2**40])
        new = old.clone() if how == "some" else torch.empty_like(old)
        part = new.view(-1)[: 1 if how == "some" else None]
        part.fill_(told if old.is_floating_point() or abs(told) < 2**60 else 7)  # type: ignore[arg-type]
        tensors[name] = new
    elif how in ("gone", "name", "swap"):
        del tensors[name]
        if how == "name":
            told = rng.choice(ODD_NAMES)
            tensors[str(told)] = old
        elif how == "swap" and tensors:
            told = rng.choice(sorted(tensors))
            tensors[name], tensors[str(told)] = tensors[str(told)].clone(), old
    else:
        told = rng.choice(["task_1/trunk.bn1.weight", "task_2/test", "task_9/held_out", "more", "task_1/held_out"])
        tensors[str(told)] = old.clone()
    return safetensors.torch.save(tensors), f"{how} of {name:.40} {shown(told)}"


def other_member(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A member's JSON file with a value that is near to what may be there."""
    facts = json.loads(content)
    key = rng.choice(sorted(IN_MEMBERS))
    new = rng.choice(IN_MEMBERS[key])
    if isinstance(new, list) and isinstance(facts[key], list) and new and len(facts[key]) > 1 and rng.random() < 0.5:
        new = [new[0], *facts[key][1:]]
    facts[key] = new
    return json.dumps(facts).encode("utf-8", "surrogatepass"), f"{key}: {shown(new)}"


def mutated_run(rng: random.Random, name: str, *likely: str) -> tuple[Files, str]:
    """A saved run, with something wrong in a file whose path has one of `likely` in it."""
    files = saved(name)
    manifest = manifest_of(files)
    pick = rng.random()
    if pick < 0.06:
        numbers = [manifest.episode, manifest.members]
        numbers[rng.randrange(2)] += rng.choice([-1, 1, 2, 1000, 2**31, -99])
        episode, members = (max(0, number) for number in numbers)
        files[f"run/{MANIFEST}"] = Manifest(episode, members, 0.1, manifest.files).content()
        return files, f"{name}: manifest, {numbers}"
    if pick < 0.12:
        path = rng.choice(sorted(path for path in files if path.startswith("run/")))
        files[path] = rng.choice([Link("/dev/zero"), Link("missing"), Link("/dev/null"), Folder(), Link("../outside"),
                                  b""])  # fmt: skip
        files["outside"] = b"mine"
        return files, f"{name}, {path}: {files[path]!r:.40}"
    which = rng.choice([*likely, *likely, ""])
    chosen = sorted(path for path in files if path.startswith("run/") and which in path and "tfevents" not in path)
    if not chosen:
        return mutated_run(rng, name, "")
    path = rng.choice(chosen)
    how = rng.random()
    if path.endswith(".safetensors") and "state/" not in path and how < 0.6:
        files[path], told = other_tensors(files[path], rng)
    elif path.endswith(".json") and "members/" in path and how < 0.6:
        files[path], told = other_member(files[path], rng)
    else:
        files[path], told = mutated_file(path, files[path], rng)
    hostile = path != f"run/{MANIFEST}" and rng.random() < 0.9
    if hostile:
        files[f"run/{MANIFEST}"] = fitted(files, manifest)
    return files, f"{name}, {path}: {told}"


def combination(rng: random.Random) -> list[str]:
    """Options that members are combined by, mostly sound."""
    given = []
    if rng.random() < 0.4:
        given += ["--combine", rng.choice(["mean", "weighted", "stacked", "stacked"])]
    if rng.random() < 0.3:
        given += ["--temperature", rng.choice(["none", "task", "member"])]
    return given + (["--budget", rng.choice(["1", "2", "1000000"])] if rng.random() < 0.3 else [])


def odd_options(rng: random.Random, arguments: list[str], options: Sequence[str]) -> tuple[list[str], str]:
    """A command line with something wrong in it. What it writes is below the current folder, whatever is asked for."""
    made, told = list(arguments), []
    for _ in range(rng.choice([1, 1, 2])):
        how = rng.choice(["value", "value", "value", "equals", "switch", "remove", "text"])
        option, value = rng.choice(options), rng.choice(VALUES + TEXTS[:30])
        if option in ("--run_dir", "--out") and (value.startswith("/") or value == "../run" or CANARY in value):
            value = "made"
        if how == "value":
            made += [option, value]
        elif how == "equals":
            made.append(f"{option}={value}")
        elif how == "switch":
            made.append(rng.choice([*SWITCHES, "--retrain", "--overwrite"]))
        elif how == "remove":
            del made[rng.randrange(len(made))]
        else:
            made.insert(rng.randrange(len(made) + 1), rng.choice([v for v in VALUES if v[:1] != "/"]))
        told.append(f"{how} {option} {value!r:.30}")
    return made, ", ".join(told)


def odd_picture(rng: random.Random) -> tuple[Files, str]:
    """An image file, a folder or a name that is none, in `pictures`."""
    how = rng.choice(["damage", "damage", "large", "large", "other", "name", "place", "place"])
    path: Any = rng.choice(list(PICTURES))
    if how == "damage":
        suffix = rng.choice(["png", "jpg", "bmp", "gif", "webp", "tif", "ppm"])
        content, told = damaged(image(suffix, rng.choice([1, 8, 64]), "L" if suffix == "gif" else "RGB"), rng)
        return {path: content}, f"{suffix} {told}"
    if how == "large":
        content, told = large_image(rng)
        return {path: content}, told
    if how == "other":
        content = rng.choice(OTHER_FILES)
        return {path: content}, f"{content!r:.40}"
    if how == "name":
        odd = rng.choice([b"\xff.png", b"\xc3\xa9.png", b"a\nb.png", b"\x1b[31m.png", b"x" * 250 + b".png", b".png",
                          b"a.PNG", b"-.png", b"--task.png", b'a","b.png', b"=1+1.png"])  # fmt: skip
        content = rng.choice([image(), image(), b"no image"])
        return {b"pictures/" + odd: content}, f"name {odd!r:.30} {content!r:.10}"
    what = rng.choice(["/dev/zero", "/dev/null", "missing", "/dev", ".", "folder", "cycle", "/proc/self/mem", "run"])
    if what == "cycle":
        return {"pictures/loop": Link(".."), "pictures/itself.png": Link("itself.png")}, what
    return {path: Folder() if what == "folder" else Link(what)}, f"{path} {what}"


def predict_case(rng: random.Random) -> Case:
    """A damaged run, an odd image or an odd option for predict.py."""
    pick, name = rng.random(), rng.choice(SAVED)
    task = rng.choice(["1", "2", "3", "middle", "auto", "auto", "auto"]) if name != "forgotten" else "auto"
    files, told = {**saved(name), **PICTURES}, name
    arguments = ["run", "--task", task, "--device", "cpu", *combination(rng), "--rule", rng.choice(RULES)]
    arguments += ["--out", "p.csv"] * (rng.random() < 0.5)
    given = ["pictures"]
    if pick < 0.5:
        damaged_files, told = mutated_run(rng, name, "members/", "members/", ".json", "predictions/", "config")
        files |= damaged_files
    elif pick < 0.75:
        odd, told = odd_picture(rng)
        files |= odd
        if rng.random() < 0.5:
            given = [os.fsdecode(path) for path in odd]
    else:
        arguments, told = odd_options(rng, [*arguments, *given], [
            "--task", "--out", "--top", "--rule", "--combine", "--temperature", "--budget", "--device", "--threads",
        ])  # fmt: skip
        given = []
    return Case("", 0, [*arguments, *given], files, "predict", told, written(arguments, "--out"))


def written(arguments: Sequence[str], option: str, *without: str) -> tuple[str, ...]:
    """Values of an option that names what is written, and where it is written without."""
    found = [value for one, value in zip(arguments, [*arguments[1:], ""], strict=True) if one == option]
    found += [one.partition("=")[2] for one in arguments if one.startswith(f"{option}=")]
    return tuple(value for value in found if value not in ("", ".")) or without


RULES = ("entropy", "confidence", "energy")


def export_case(rng: random.Random) -> Case:
    """A damaged run or an odd option for export.py."""
    name = rng.choice(SAVED)
    arguments = ["run", "--out", "made", "--format", "torch" if rng.random() < 0.97 else "both", *combination(rng)]
    arguments += ["--task", rng.choice(["1", "2", "middle"])] * (rng.random() < 0.5)
    files, told = saved(name), name
    if rng.random() < 0.8:
        files, told = mutated_run(rng, name, "members/", ".json", "predictions/", "config", "metrics")
    else:
        arguments, told = odd_options(rng, arguments, [
            "--task", "--out", "--format", "--combine", "--temperature", "--budget",
        ])  # fmt: skip
        files |= rng.choice(
            [
                {},
                {"made": Folder()},
                {"made": b"mine"},
                {"made/precious": b"mine"},
                {"made": Link("elsewhere"), "elsewhere/precious": b"mine"},
                {"made": Link("/dev/zero")},
            ]
        )
    return Case("", 0, arguments, files, "export", told, written(arguments, "--out"))


def distill_case(rng: random.Random) -> Case:
    """A damaged run or an odd option for distill.py."""
    name = rng.choice([name for name in SAVED if name != "student"])
    arguments = ["run", "--run_dir", "made", "--epochs", "1", "--device", "cpu", *combination(rng)]
    arguments += ["--quiet"] * (rng.random() < 0.5)
    files, told = saved(name), name
    pick = rng.random()
    if pick < 0.6:
        files, told = mutated_run(rng, name, "members/", ".json", "predictions/", "config", "config", "summary")
    elif pick < 0.8:
        other, told = mutated_run(rng, "saved isolated", "members/", ".json", "summary", "predictions/", "config")
        files |= {path.replace("run/", "alone/", 1): content for path, content in other.items()}
        files |= saved("saved zoo")
        arguments += ["--isolated", "alone"]
        told = f"--isolated, {told}"
    else:
        arguments, told = odd_options(rng, arguments, [
            "--run_dir", "--epochs", "--data_dir", "--combine", "--temperature", "--budget", "--isolated", "--seed",
            "--device", "--threads",
        ])  # fmt: skip
        files |= {"made/config.yaml": b"mine"} if rng.random() < 0.2 else {}
    return Case("", 0, arguments, files, "distill", told, written(arguments, "--run_dir", "run-student"))


def forget_case(rng: random.Random) -> Case:
    """A damaged run or an odd option for forget.py."""
    name = rng.choice([*SAVED, "saved zoo", "saved zoo of few", "saved isolated", "forgotten"])
    task = rng.choice(["2", "3", "3", "middle"] if name == "forgotten" else ["1", "2", "3", "3", "middle"])
    arguments = ["run", "--task", task, "--run_dir", "made", "--device", "cpu"]
    arguments += ["--retrain"] * (rng.random() < 0.6) + ["--quiet"] * (rng.random() < 0.5)
    files, told = saved(name), name
    if rng.random() < 0.8:
        files, told = mutated_run(rng, name, "members/", ".json", "predictions/", "targets", "config", "summary")
    else:
        arguments, told = odd_options(rng, arguments, ["--task", "--run_dir", "--device", "--threads"])
        files |= rng.choice([{}, {"made/config.yaml": b"mine"}, {"made": b"mine"}, {"made": Link("run")}])
    return Case("", 0, arguments, files, "forget", told,
                written(arguments, "--run_dir", *(f"run-without-{n}" for n in (1, 2, 3))))  # fmt: skip


def extend_case(rng: random.Random) -> Case:
    """A damaged run, tasks that do not fit or odd options for --extend; also odd values of --hold_out."""
    name = rng.choice([*SAVED_WITH, "extended", "forgotten"])
    files, told, pick = saved(name), name, rng.random()
    arguments = ["--extend", "run", "--data_config", "more.yaml", "--run_dir", "made", "--device", "cpu", "--quiet"]
    if pick < 0.55:
        likely = ("state/", "state/", "members/", "predictions/", "config", "config", ".csv", "summary")
        files, told = mutated_run(rng, name, *likely)
    elif pick < 0.8:
        files["more.yaml"], told = text_or_tree(files["more.yaml"], rng)
    elif pick < 0.9:
        arguments, told = odd_options(rng, arguments, [*VALUED, "--extend", "--hold_out"])
        arguments = [one for one in arguments if not one.startswith("--data_dir")]
    else:
        value = rng.choice([*VALUES, "0.1", "0.9", "0.91", "1e-9", "0.5", "-0.0"])
        arguments = [*_CONTINUAL[:-3], "--hold_out", value, "--continual", "--run_dir", "made"]
        told = f"--hold_out {value!r:.30}"
    return Case("", 0, arguments, files, told=told, writes=written(arguments, "--run_dir", "run-extended", "runs"))


KINDS: dict[str, Callable[[random.Random], Case]] = {
    "valid": valid,
    "dataset": dataset_yaml,
    "hyperparam": hyper_yaml,
    "method": method_yaml,
    "grid": grid_yaml,
    "argv": command_line,
    "cifar": cifar_pickle,
    "mini": mini_pickle,
    "idx": idx_file,
    "image": image_file,
    "cache": image_cache,
    "state": state_file,
    "member": member_file,
    "run": run_directory,
    "hostile_run": hostile_run,
    "manifest": hostile_manifest,
    "links": links,
    "store": store,
    "report": report_of_run,
    "predict": predict_case,
    "export": export_case,
    "distill": distill_case,
    "forget": forget_case,
    "extend": extend_case,
}


def case(kind: str, seed: int) -> Case:
    """The same for the same kind and seed, but for what a prepared run says of its times."""
    made = KINDS[kind](random.Random(f"{kind}/{seed}"))
    made.kind, made.seed = kind, seed
    return made


def write(files: Files) -> None:
    """Into the current folder."""
    for name, content in files.items():
        path = Path(os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Folder):
            path.mkdir(exist_ok=True)
        elif isinstance(content, Link):
            path.symlink_to(content.target)
        else:
            path.write_bytes(content)


# Running them.


class Enough(BaseException):
    """Training has begun: the input was accepted."""


def seen(root: Path) -> dict[str, tuple]:
    """Everything below a folder, and what tells whether it was changed."""
    found = {}
    for folder, folders, names in os.walk(root):
        for path in (Path(folder, name) for name in (*folders, *names)):
            status = path.lstat()
            facts = () if stat.S_ISDIR(status.st_mode) else (status.st_ino, status.st_size, status.st_mtime_ns)
            found[path.relative_to(root).as_posix()] = facts
    return found


def outside(before: dict[str, tuple], after: dict[str, tuple], case: Case) -> list[str]:
    """What appeared, vanished or changed though it is not of the run."""
    runs = {"run", "other", *(["real"] if case.files.get("run") == Link("real") else [])}
    if "--run_dir" not in case.arguments:
        runs.add("runs")
    for option, value in zip(case.arguments, [*case.arguments[1:], ""], strict=True):
        if option.startswith("--run_dir"):
            runs.add(option.removeprefix("--run_dir=") if "=" in option else value)
    runs = runs if case.writes is None else set(case.writes)
    own = [os.path.normpath(f"home/{run}") + "/" for run in runs if run]
    differing = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]

    def admitted(path: str) -> bool:
        of_run = any(f"{path}/".startswith(run) or run.startswith(f"{path}/") for run in own)
        is_folder, below = after.get(path) == (), path.startswith("home/data/")
        return of_run or (below and (is_folder or (path.startswith("home/data/cache/") and path.endswith("tensors"))))

    return sorted(path for path in differing if not admitted(path))


def attempt(case: Case, root: Path) -> Answer:
    """Run a case in this process; the folder `root` is new."""
    home, work = root / "home", root.with_name(root.name + ".out")
    home.mkdir(parents=True)
    os.chdir(home)
    write({path: content for path, content in case.files.items() if path != CACHE})
    out = os.open(str(work) + "1", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    err = os.open(str(work) + "2", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    kept = os.dup(1), os.dup(2), sys.stdout, sys.stderr
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    warnings.simplefilter("default", UserWarning)  # also makes Python forget which ones were shown
    torch.set_num_threads(1)
    steps = 0
    asked: dict[Any, Any] = {kind: kind.due for kind in (Checkpoints, RunCheckpoints)}

    def counted(self: Checkpoints, *, epoch_ends: bool = False) -> bool:
        nonlocal steps
        steps += 1
        if steps > STEPS:
            raise Enough
        return asked[type(self)](self, epoch_ends=epoch_ends)

    code: Any = None
    wrong = ""
    programs = (modelzoo, benchmark, report, predict, export, distill, forget)
    program: Any = next(module for module in programs if module.__name__ == case.program)
    try:
        if CACHE in case.files:
            damage_cache(case)
        before = seen(root)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        begin = time.perf_counter()
        for checkpoints in asked:
            checkpoints.due = counted
        try:
            code = program.main(case.arguments)
        except Enough:
            code = "accepted"
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            where = " <- ".join(
                f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)[:0:-1]
            )
            wrong = f"{type(error).__name__}: {error!s:.200} in {where:.200}"
        finally:
            for checkpoints, due in asked.items():
                checkpoints.due = due
        seconds = time.perf_counter() - begin
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError) as error:
            wrong = wrong or f"{error}"
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        sys.stdout, sys.stderr = kept[2:]
        for number in (out, err, *kept[:2]):
            os.close(number)
    stderr = Path(str(work) + "2").read_text(errors="replace")
    peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    wrong = wrong or wrong_answer(case, code, stderr, seconds, peak)
    os.chdir(root)
    after = seen(root)
    if not wrong and any(CANARY in path for path in after if path not in before):
        wrong = "code was run"
    if not wrong and (moved := outside(before, after, case)):
        wrong = f"outside of the run: {moved[:5]}"
    new = {path for path in after if path not in before}
    if not wrong and code not in ("accepted",) and (left := [p for p in new if p.endswith(".partial")]):
        wrong = f"left behind: {left[:5]}"
    if not wrong and code == 2 and case.program in ("predict", "export", "distill", "forget") and new:
        wrong = f"refused, but written: {sorted(new)[:5]}"
    return Answer(case.kind, case.seed, code, wrong, seconds, peak, stderr.strip()[:300])


def damage_cache(case: Case) -> None:
    """A run fills it, and its tensors are changed while its fingerprint stays; or it is damaged altogether."""
    rng = random.Random(f"cache/{case.seed}/inside")
    modelzoo.main(case.arguments)
    shutil.rmtree("run")
    (path,) = Path("data/cache").iterdir()
    if rng.random() < 0.1:
        path.unlink()
        target = rng.choice(["/dev/zero", "../../outside", "missing", "folder"])
        if target == "folder":
            path.mkdir()
        else:
            path.symlink_to(target)
        case.told = target
        return
    content, case.told = mutated_tensors(path.read_bytes(), rng)
    if rng.random() < 0.5:
        header, data = split_safetensors(path.read_bytes())
        spans = {name: header[name]["data_offsets"] for name in header if name != "__metadata__"}
        parts = {name: data[a:b] for name, (a, b) in spans.items()}
        name = rng.choice(["pixels", "labels"])
        entry = header[name]
        how = rng.choice(["dtype", "shape", "values", "gone", "text"])
        if how == "dtype":
            entry["dtype"] = rng.choice(["I8", "F32", "BOOL", "U16", "F64", "I64"])
            size = {"I8": 1, "F32": 4, "BOOL": 1, "U16": 2, "F64": 8, "I64": 8}[entry["dtype"]]
            parts[name] = bytes(size * int(np.prod(entry["shape"])))
        elif how == "shape":
            entry["shape"] = rng.choice(
                [[0], [1], [12], [12, 3, 8, 8, 1], [11, 3, 8, 8], [12, 1, 8, 8], [12, 3, 4, 16], [13]]
            )
            width = 1 if name == "pixels" else 8
            entry["dtype"] = "U8" if width == 1 else "I64"
            parts[name] = bytes(width * int(np.prod(entry["shape"])))
        elif how == "values":
            parts[name] = rng.choice([b"\xff", b"\x7f", b"\x05"]) * len(parts[name])
        elif how == "gone":
            del header[name], parts[name]
        position, body = 0, b""
        for key, part in parts.items():
            header[key]["data_offsets"] = [position, position + len(part)]
            position, body = position + len(part), body + part
        content, case.told = joined_safetensors(header, body), f"{how} of {name}"
    path.write_bytes(content)


def wrong_answer(case: Case, code: Any, stderr: str, seconds: float, peak: int) -> str:
    """What is wrong with how it ended; "" if nothing is."""
    lines = stderr.splitlines()
    words = ("not finite", "memory for training", "cannot be written")
    training = code == 1 and any(word in stderr for word in words)
    if case.program == "predict" and code == 1 and re.search(r"files were skipped\n\Z", stderr):  # a line for each
        lines, stderr, training = lines[-1:], stderr.splitlines(keepends=True)[-1], True
    if case.kind == "valid" and code != 0:
        return f"exit code {code}: {stderr[:300]}"
    if code not in (0, 2, "accepted") and not training:
        return f"exit code {code}: {stderr[:300]}"
    if code in (0, "accepted"):
        if [line for line in lines if not line.startswith("begun with ")]:
            return f"exit code {code}, but on stderr: {stderr[:300]}"
    elif len(lines) != 1 or not stderr.startswith(f"{case.program}.py: ") or not stderr.endswith("\n"):
        return f"not one line: {stderr[:500]!r}"
    elif re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", stderr[:-1]):
        return f"control characters: {stderr[:300]!r}"
    if seconds > SECONDS:
        return f"{seconds:.0f} s"
    if peak > BYTES and not training:
        return f"{peak >> 20} MiB: {stderr[:100]}"
    return ""


def limit_memory() -> None:
    """For what is allocated from now on, twice over: an input that needs more is to be found out, not to be hidden."""
    data = int(re.search(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_DATA, (data + BYTES + (1 << 30),) * 2)


def in_child(work: Callable[[Callable[[object], None]], None]) -> tuple[int, int]:
    """Fork: `work` gets a function that sends a line to the parent. Returns process and descriptor to read from."""
    read, written = os.pipe()
    process = os.fork()
    if process:
        os.close(written)
        return process, read
    try:
        os.close(read)
        work(lambda message: (os.write(written, json.dumps(message).encode() + b"\n"), None)[1])
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


def run_batch(todo: Sequence[tuple[str, int]], folder: Path) -> Iterable[Answer]:
    """Some cases in one process, which is given up at the first that hangs or kills it."""

    def work(send: Callable[[object], None]) -> None:
        limit_memory()
        for number, (kind, seed) in enumerate(todo):
            root = folder / f"{kind}-{seed}"
            made = case(kind, seed)
            send(["begin", kind, seed])
            answer = attempt(made, root)
            shutil.rmtree(root, ignore_errors=True)
            send(["end", [answer.kind, answer.seed, answer.code, answer.wrong and f"{made.told}: {answer.wrong}",
                          answer.seconds, answer.bytes, answer.line]])  # fmt: skip
            if answer.bytes > BYTES // 2 or answer.wrong:
                return
            del number

    process, pipe = in_child(work)
    buffer, begun, ended = b"", None, 0
    limit = time.monotonic() + SECONDS * 3
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0, limit - time.monotonic()))
        part = os.read(pipe, 1 << 16) if ready else b""
        if not part:
            break
        buffer += part
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            what, *rest = json.loads(line)
            if what == "begin":
                begun, limit = tuple(rest), time.monotonic() + SECONDS + 2
            else:
                limit, begun, ended = time.monotonic() + SECONDS * 3, None, ended + 1
                yield Answer(*rest[0])
    os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    os.close(pipe)
    if begun is not None:
        how = f"hangs for more than {SECONDS} s" if not ready else f"ended by signal {status & 127}"
        yield Answer(*begun, "none", how, SECONDS)  # type: ignore[misc,call-arg]


def warm_up(folder: Path) -> None:
    """Import what a run would, prepare the runs, and see that what is not mutated is accepted."""
    os.environ.update(NOTHING_THERE)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.fsync = lambda *_: None  # type: ignore[assignment]
    utils.compute._git = lambda *_: None  # type: ignore[assignment]
    from utils.torchvision_ops import declare_missing_operators

    declare_missing_operators()
    for name in (
        "timm", "torchvision.datasets", "torchvision.transforms.functional", "sklearn.datasets",
        "sklearn.model_selection", "tensorboard.compat.proto.event_pb2", "tensorboard.plugins.custom_scalar.layout_pb2",
        "tensorboard.plugins.hparams.plugin_data_pb2", "reporting.page", "reporting.tables",
    ):  # fmt: skip
        importlib.import_module(name)
    Image.init()

    def work(send: Callable[[object], None]) -> None:
        before = set(sys.modules)
        for name in (*MADE_WITH, *SAVED):
            (folder / name).mkdir()
            os.chdir(folder / name)
            process, pipe = in_child(partial(prepare_and_tell, name))
            if not os.read(pipe, 100):
                return
            os.waitpid(process, 0)
            os.close(pipe)
        (folder / "imports").mkdir()
        os.chdir(folder / "imports")
        prepare("finished")
        export.main(["run", "--out", "exported", "--format", "torch"])
        send(sorted(set(sys.modules) - before))

    stdout, silent = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    process, pipe = in_child(work)
    with open(pipe, "rb") as answer:
        modules = answer.read()
    os.waitpid(process, 0)
    os.dup2(stdout, 1)
    if not modules:
        raise RuntimeError("the runs could not be prepared")
    for name in json.loads(modules):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for name in (*MADE_WITH, *SAVED):
        run = folder / name / "run"
        PREPARED[name] = {f"run/{path.relative_to(run).as_posix()}": path.read_bytes()
                          for path in sorted(run.rglob("*")) if path.is_file()}  # fmt: skip


def run_cases(
    kinds: Sequence[str], seeds: Sequence[int], report: Callable[[Answer], None] = lambda answer: None
) -> list[Answer]:
    """All seeds of all kinds; `report` hears of each. Returns those that failed."""
    return run_each([(kind, seed) for kind in kinds for seed in seeds], report)


def run_each(todo: Sequence[tuple[str, int]], report: Callable[[Answer], None] = lambda answer: None) -> list[Answer]:
    """These cases; those that fail are run again, alone, and count if they fail again."""
    failures = []
    with tempfile.TemporaryDirectory() as name:
        folder, here = Path(name), Path.cwd()
        if not PREPARED:
            warm_up(folder)
        os.chdir(here)
        rest = list(todo)
        while rest:
            done = 0
            for answer in run_batch(rest[:BATCH], folder / f"{len(rest)}"):
                done += 1
                if answer.wrong:
                    for again in run_batch([(answer.kind, answer.seed)], folder / f"{len(rest)}-alone"):
                        answer = again
                    if answer.wrong:
                        failures.append(answer)
                report(answer)
            if not done:
                raise RuntimeError(f"the process for {rest[0]} ended before it began")
            rest = rest[done:]
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000, help="in total")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given several times")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--regressions", action="store_true", help="also those that once failed")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    each = -(-options.cases // len(kinds))
    seeds = [options.seed] if options.seed is not None else list(range(options.first, options.first + each))
    facts: dict[str, list[Answer]] = {kind: [] for kind in kinds}
    print(
        f"{'kind':<12} {'cases':>6} {'refused':>8} {'accepted':>9} {'diverged':>9} {'slowest s':>10} {'MiB':>6} "
        f"{'failed':>7}"
    )
    failures = []
    for kind in kinds:
        once = [(other, seed) for other, seed in REGRESSIONS if other == kind and options.regressions]
        failed = run_each([*((kind, seed) for seed in seeds), *once], facts[kind].append)
        failures += failed
        codes = Counter(answer.code for answer in facts[kind])
        slowest, largest = (max(getattr(a, n) for a in facts[kind]) for n in ("seconds", "bytes"))
        print(f"{kind:<12} {len(facts[kind]):>6} {codes[2]:>8} {codes[0] + codes['accepted']:>9} {codes[1]:>9} "
              f"{slowest:>10.2f} {largest >> 20:>6} {len(failed):>7}", flush=True)  # fmt: skip
        for answer in failed:
            print(f"  --kind {kind} --seed {answer.seed}: {answer.wrong}", flush=True)
    if options.seed is not None:
        for kind in kinds:
            for answer in facts[kind]:
                print(f"{answer.kind} {answer.seed}: {answer.code}, {answer.line}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
