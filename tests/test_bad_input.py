"""Wrong input through the real command line: one line that says what, where and what would be right, exit code 2."""

import gzip
import io
import os
import pickle
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_stream
from utils.options import parse

PROGRAM = Path(__file__).parent.parent / "modelzoo.py"
# No GPU and no network, so that every machine gives the same answers.
NOTHING_THERE = {
    "CUDA_VISIBLE_DEVICES": "", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "",
}  # fmt: skip


def command(arguments, folder):
    return subprocess.run(
        [sys.executable, str(PROGRAM), "--run_dir", "run", *arguments.split()],
        cwd=folder, env={**os.environ, **NOTHING_THERE, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip


# Data sets of a few images, undamaged.

CIFAR = "data/cifar-10-batches-py"
MNIST = "data/MNIST/raw"
MINI = "data/mini_imagenet/mini-imagenet-cache"
FOLDER = "data/animals"


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def png(side):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


BATCH = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))})
CACHE = pickle.dumps({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"n01532829": [0, 1]}})
DIGITS, LABELS = idx(np.zeros((10, 28, 28), np.uint8)), idx(np.arange(10, dtype=np.uint8))

FILES: dict[str, dict[str, str | bytes]] = {
    "cifar10": {f"{CIFAR}/{name}": BATCH for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))},
    "mnist": {
        f"{MNIST}/train-images-idx3-ubyte.gz": gzip.compress(DIGITS), f"{MNIST}/train-labels-idx1-ubyte": LABELS,
        f"{MNIST}/t10k-images-idx3-ubyte": DIGITS, f"{MNIST}/t10k-labels-idx1-ubyte": LABELS,
    },
    "mini_imagenet": {f"{MINI}-{part}.pkl": CACHE for part in ("train", "val", "test")},
    "image_folder": {
        f"{FOLDER}/{split}/{name}/1.png": png(8) for split in ("train", "test") for name in ("cat", "dog")
    },
}  # fmt: skip
YAML = {
    "cifar10": "{dataset: cifar10, tasks: [[0, 1]]}",
    "mnist": "{dataset: mnist, tasks: [[0, 1]]}",
    "mini_imagenet": "{dataset: mini_imagenet, tasks: [[0, 1]]}",
    "image_folder": "{dataset: image_folder, root: animals, image_size: 8, tasks: [[cat, dog]]}",
}


class Hostile:
    def __reduce__(self):
        return os.system, ("touch canary",)


HOSTILE = pickle.dumps({"data": Hostile(), "labels": [0]})
HOSTILE_TEXT = b"cbuiltins\nexec\n(S'open(\"canary\", \"w\").close()'\ntR."  # the oldest protocol


# What must be refused.


@dataclass(frozen=True)
class Case:
    """A command, run in a folder of its own."""

    name: str
    arguments: str
    words: tuple[str, ...]  # all of them stand in the message
    files: dict[str, str | bytes] = field(default_factory=dict)  # path in the folder -> content


def option(arguments, *words, files=()):
    return Case(arguments, arguments, words, dict(files))


def dataset(name, yaml, *words):
    return Case(name, "--data_config d.yaml", ("d.yaml", *words), {"d.yaml": yaml})


def tasks(name, yaml, *words):
    return dataset(name, f"{{dataset: digits, tasks: {yaml}}}", *words)


def hyper(name, yaml, *words):
    return Case(name, "--hp_config h.yaml", ("h.yaml", *words), {"h.yaml": yaml})


def network(model, *words):
    return Case(model, "--hp_config h.yaml", (f"model: {model}", *words), {"h.yaml": f"model: {model}"})


def damaged(name, which, path, content, *words):
    """A data set of which one file is replaced, or left out with None; the message names the file."""
    files = {**FILES[which], "d.yaml": YAML[which], path: content}
    kept = {path: content for path, content in files.items() if content is not None}
    return Case(name, "--data_config d.yaml", (path if content is not None else Path(path).name, *words), kept)


def folder(name, yaml, *words, without=" "):
    """A YAML for the image folder, from which the files whose paths contain `without` were removed."""
    files = {path: content for path, content in FILES["image_folder"].items() if without not in path}
    return Case(name, "--data_config d.yaml", words, {**files, "d.yaml": yaml})


def isolated(name, summary, config, *words):
    files = {"reference/summary.json": summary, "reference/config.yaml": config}
    return Case(name, "--isolated reference", ("--isolated reference", *words), files)


RUN = {"run/config.yaml": "seed: 0", "run/summary.json": "{}"}

CASES = [
    # options
    option("--epoch 3", "unknown option --epoch", "did you mean --epochs?"),
    option("banana", "unknown option banana", "-h lists all"),
    option("--epochs", "--epochs", "expected one argument"),
    option("--epochs 0", "--epochs is 0", "a whole number at least 1"),
    option("--epochs many", "--epochs is 'many'", "a whole number at least 1"),
    option("--samples 0", "--samples is 0", "a whole number at least 1"),
    option("--samples 1000", "--samples is 1000", "class '0' of task 1 has 89 training images"),
    option("--continual --replay_frac 1.5", "--replay_frac is 1.5", "at least 0 and at most 1"),
    option("--continual --replay_frac nan", "--replay_frac is nan", "at least 0 and at most 1"),
    option("--tasks_per_round 0", "--tasks_per_round is 0", "a whole number at least 1"),
    option("--rounds -1", "--rounds is -1", "a whole number at least 1"),
    option("--seed 1.5", "--seed is '1.5'", "a whole number at least 0"),
    option("--selection boost", "--selection", "unknown choice 'boost'", "did you mean 'boosting'?"),
    option("--precision fp16", "--precision", "unknown choice 'fp16'", "did you mean 'bf16'?"),
    option("--method zooo", "--method", "unknown method 'zooo'", "did you mean 'zoo'?"),
    option("--device gpu", "--device", "unknown device 'gpu'", "did you mean 'cpu'?"),
    option("--device cuda:one", "--device", "unknown device 'cuda:one'", "cuda:N"),
    option("--device cuda", "--device cuda", "no CUDA devices", "use --device cpu or auto"),
    # options that contradict each other
    option("--continual --rounds 3", "--rounds is for the multi-task mode", "--continual"),
    option("--continual --warm_start", "--warm_start is for the multi-task mode", "--continual"),
    option("--replay_frac 0.5", "--replay_frac", "add --continual"),
    option("--method isolated --tasks_per_round 2", "--tasks_per_round is for --method zoo", "isolated"),
    # a YAML file as a whole
    option("--data_config e.yaml", "e.yaml does not exist", "d.yaml", files={"d.yaml": ""}),
    option("--hp_config .", ". cannot be read", "directory"),
    dataset("no YAML", "dataset: digits\ntasks: [[0, 1]", "not valid YAML in line 2"),
    dataset("YAML that runs code", "dataset: !!python/object/apply:os.system [touch canary]", "not valid YAML"),
    dataset("key twice", "dataset: digits\ntasks: [[0, 1]]\ndataset: mnist", "'dataset' is given twice"),
    dataset("not UTF-8", b"dataset: \xff", "cannot be read", "utf-8"),
    dataset("empty file", "", "must hold keys and values", "dataset: cifar100"),
    # which data set
    dataset("unknown key", "{dataset: digits, task: [[0, 1]]}", "unknown key 'task'", "did you mean 'tasks'?"),
    dataset("missing key", "{dataset: digits}", "key 'tasks' is missing"),
    dataset("unknown dataset", "{dataset: digit, tasks: [[0, 1]]}", "unknown dataset 'digit'", "did you mean 'digits'?"),
    dataset("dataset of a wrong type", "{dataset: 10, tasks: [[0, 1]]}", "dataset is 10", "must be a text"),
    dataset("key of another dataset", "{dataset: digits, root: x, tasks: [[0, 1]]}", "'root'", "image_folder"),
    # tasks
    tasks("no tasks", "[]", "tasks must be a list with at least one task", "[[0, 1], [2, 3]]"),
    tasks("tasks of a wrong type", "all", "tasks must be a list with at least one task", "[[0, 1], [2, 3]]"),
    tasks("task of a wrong type", "[[0, 1], 2]", "task 2 must be a list of classes", "[0, 1]"),
    tasks("empty task", "[[0, 1], []]", "task 2 has no classes", "[0, 1]"),
    tasks("class twice", "[[0, 1, 0]]", "task 1 has class 0 twice"),
    tasks("single class", "[[0, 1], [2]]", "task 2 has the single class 2", "at least two"),
    tasks("class of a wrong type", "[[0.5, 1]]", "task 1 must be a list of classes", "[0, 1]"),
    tasks("class too large", "[[0, 1], [2, 10]]", "task 2", "class 10", "classes 0 to 9"),
    tasks("class negative", "[[-1, 1]]", "task 1", "class -1", "classes 0 to 9"),
    tasks("class name", "[[zero, 1]]", "task 1", "unknown class 'zero'", "0, 1, 2"),
    tasks("unknown key of a task", "[{class: [0, 1]}]", "task 1", "unknown key 'class'", "did you mean 'classes'?"),
    tasks("missing key of a task", "[{name: low}]", "task 1", "key 'classes' is missing"),
    tasks("label noise", "[{classes: [0, 1], label_noise: 2}]", "label_noise is 2", "at least 0 and at most 1"),
    dataset("mixed rotations", "{dataset: rotated_digits, tasks: [[0, 11]]}", "task 1 mixes", "10x + y"),
    dataset("negative rotation", "{dataset: rotated_digits, tasks: [[-10, -9]]}", "class -10"),
    # how a network is trained
    hyper("no model", "{lr: 0.1}", "key 'model' is missing"),
    hyper("unknown hyperparameter", "{model: conv, l2reg: 0}", "unknown key 'l2reg'", "did you mean 'l2_reg'?"),
    hyper("model of a wrong type", "{model: [conv]}", "model is ['conv']", "must be a text"),
    hyper("epochs 0", "{model: conv, epochs: 0}", "epochs is 0", "a whole number at least 1"),
    hyper("epochs true", "{model: conv, epochs: true}", "epochs is True", "a whole number at least 1"),
    hyper("batch 1", "{model: conv, batch: 1}", "batch is 1", "a whole number at least 2"),
    hyper("batch 16.0", "{model: conv, batch: 16.0}", "batch is 16.0", "a whole number at least 2"),
    hyper("lr 0", "{model: conv, lr: 0}", "lr is 0", "a number above 0"),
    hyper("lr infinite", "{model: conv, lr: .inf}", "lr is inf", "a number above 0"),
    hyper("lr of a wrong type", "{model: conv, lr: fast}", "lr is 'fast'", "a number above 0"),
    hyper("dropout 1", "{model: conv, dropout: 1}", "dropout is 1", "at least 0 and below 1"),
    network("convv", "unknown model 'convv'", "did you mean 'conv'?"),
    network("timm/resnet81", "unknown timm model", "did you mean", "resnet18"),
    network("timm/vgg11", "cannot take inputs of 1x8x8"),
    # the run directory
    option("--quiet", "--run_dir run already holds a run", "--overwrite", files=RUN),
    option("--run_dir notes", "--run_dir notes is not empty and not a run", files={"notes/a.txt": "mine"}),
    option("--run_dir notes --overwrite", "notes is not empty and not a run", files={"notes/a.txt": "mine"}),
    option("--run_dir d.yaml", "--run_dir d.yaml is a file", "name a directory", files={"d.yaml": ""}),
    option("--run_dir d.yaml/run", "--run_dir d.yaml/run cannot be written", files={"d.yaml": ""}),
    # the run to compare with
    option("--isolated missing", "--isolated missing is not the directory of a finished run"),
    isolated("corrupt reference", "{", "{}", "is not the directory of a finished run"),
    isolated("reference of another method", '{"method": "zoo", "per_task_acc": [1]}', "{}", "--method isolated"),
    isolated("other reference", '{"method": "isolated", "per_task_acc": [1]}', "{dataset: x}", "another 'dataset'"),
    # CIFAR
    dataset("no CIFAR", "{dataset: cifar100, tasks: [[0, 1]]}")
]
