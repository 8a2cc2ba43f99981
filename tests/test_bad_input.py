"""Wrong input through the real command line: one line that says what, where and what would be right, exit code 2."""

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datasets import build_stream
from evaluation.accuracy import Evaluation
from methods import METHODS, build_method
from methods.base import Context
from modelzoo import main
from net import TRUNKS
from records.invocation import parse
from records.manifest import Entry, Manifest
from tests.toys import CPU, toy_config, toy_stream
from training.monitor import Monitor
from utils.errors import TrainingError
from utils.settings import NoSettings

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


BATCH = pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}, protocol=2)
CACHE = pickle.dumps({"image_data": np.zeros((2, 84, 84, 3), np.uint8), "class_dict": {"bird": [0, 1]}}, protocol=2)
DIGITS, LABELS = idx(np.zeros((10, 28, 28), np.uint8)), idx(np.arange(10, dtype=np.uint8))
ELEVEN, GZIPPED = idx(np.zeros((11, 28, 28), np.uint8)), gzip.compress(DIGITS)

FILES: dict[str, dict[str, str | bytes]] = {
    "cifar10": {f"{CIFAR}/{name}": BATCH for name in ("test_batch", *(f"data_batch_{i}" for i in range(1, 6)))},
    "mnist": {
        f"{MNIST}/train-images-idx3-ubyte.gz": GZIPPED, f"{MNIST}/train-labels-idx1-ubyte": LABELS,
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
HOSTILE_TEXT = b'cbuiltins\nexec\n(S\'open("canary", "w").close()\'\ntR.'  # the oldest protocol


class Objects:
    def __reduce__(self):
        return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 1)


class Pointers:
    """An array whose flags make numpy take its bytes for pointers to Python objects, and follow them."""

    def __reduce__(self):
        rebuild = np.array(0).__reduce__()[0]
        return rebuild, (np.ndarray, (0,), b"b"), (1, (2,), Objects(), False, b"A" * 16)


POINTERS = pickle.dumps({"data": Pointers(), "labels": [0]}, protocol=2)


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


def settings(name, yaml, *words):
    return Case(name, "--continual --method si --method_config m.yaml", words, {"m.yaml": yaml})


def dataset(name, yaml, *words, files=()):
    return Case(name, "--data_config d.yaml", words, {"d.yaml": yaml, **dict(files)})


def tasks(name, yaml, *words):
    return dataset(name, f"{{dataset: digits, tasks: {yaml}}}", "d.yaml", *words)


def hyper(name, yaml, *words):
    return Case(name, "--hp_config h.yaml", words, {"h.yaml": yaml})


def damaged(name, which, path, content, *words):
    """A data set of which one file is replaced; the message names it."""
    return dataset(name, YAML[which], path, *words, files={**FILES[which], path: content})


def without(name, which, part, *words):
    """A data set without the files whose paths contain `part`."""
    kept = {path: content for path, content in FILES[which].items() if part not in path}
    return dataset(name, YAML[which], *words, files=kept)


def images(name, yaml, *words):
    return dataset(name, f"{{dataset: image_folder, {yaml}}}", "d.yaml", *words, files=FILES["image_folder"])


def isolated(name, summary, config, *words):
    summary = summary.replace("{", '{"metric": "accuracy", ', 1)
    files = {"summary.json": summary.encode(), "config.yaml": config.encode()}
    entries = {path: Entry(len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()}
    files["manifest.json"] = Manifest(files=entries).content()
    files = {f"reference/{path}": content for path, content in files.items()}
    return Case(name, "--isolated reference", ("--isolated reference", *words), files)


RUN = {"run/config.yaml": "stream: x\nmethod: zoo\nseed: 0", "run/summary.json": "{}"}
NOTES = {"notes/a.txt": "mine"}
APP = {"app/config.yaml": "port: 80\nseed: 1", "app/a.txt": "another program's"}

CASES = [
    # options
    option("--epoch 3", "unknown option --epoch", "did you mean --epochs?"),
    option("banana", "unknown option banana", "-h lists all"),
    option("--epochs", "--epochs", "expected one argument"),
    option("--epochs 0", "--epochs is 0", "a whole number at least 1"),
    option("--epochs many", "--epochs is 'many'", "a whole number at least 1"),
    option("--samples 0", "--samples is 0", "a whole number at least 1"),
    option("--continual --replay_frac 1.5", "--replay_frac is 1.5", "at least 0 and at most 1"),
    option("--tasks_per_round 0", "--tasks_per_round is 0", "a whole number at least 1"),
    option("--selection boost", "--selection", "'boost'", "did you mean 'boosting'?"),
    option("--method zooo", "--method", "unknown method 'zooo'", "did you mean 'zoo'?"),
    option("--evaluate dormant:3", "--evaluate dormant:3", "modelzoo.py asks after every episode; write dormant"),
    option("--device gpu", "--device", "unknown device 'gpu'", "did you mean 'cpu'?"),
    option("--device cuda", "--device cuda", "no CUDA devices", "use --device cpu or auto"),
    # options that contradict each other
    option("--continual --rounds 3", "--rounds is for the multi-task mode", "--continual"),
    option("--continual --warm_start", "--warm_start is for the multi-task mode", "--continual"),
    option("--replay_frac 0.5", "--replay_frac", "add --continual"),
    option("--memory 5", "--memory is for past tasks", "add --continual"),
    option("--continual --memory 5 --replay_frac 0.1", "--memory and --replay_frac", "leave one out"),
    option("--method isolated --tasks_per_round 2", "--tasks_per_round is for --method zoo", "isolated"),
    option("--method ewc", "--method ewc learns tasks one after another", "add --continual"),
    option("--method joint --continual", "--method joint learns all tasks at once", "leave --continual out"),
    option("--continual --method er --memory 9 --memory_per_class 9", "--memory and --memory_per_class", "leave one"),
    option("--continual --method ewc --memory 9", "--memory is for --method zoo or", "ewc does not use it"),
    option("--continual --method er --memory 0", "--memory is 0", "a whole number at least 1"),
    # the settings of a method
    option("--continual --method_config m.yaml", "--method_config m.yaml", "zoo has no settings", "leave it out"),
    settings("unknown setting", "{bn: shared, strenght: 1}", "m.yaml", "'strenght'", "did you mean 'strength'?"),
    settings("missing setting", "{bn: shared, strength: 1}", "m.yaml: key 'damping' is missing"),
    settings("setting out of range", "{bn: shared, strength: 1, damping: 0}", "damping", "is 0", "a number above 0"),
    settings(
        "no such word", "{bn: batch, strength: 1, damping: 1}", "m.yaml: bn: unknown bn 'batch'", "per_task, shared"
    ),
    settings("wrong presets", "{bn: shared, strength: 1, damping: 1, streams: 3}", "m.yaml: key 'streams' is 3"),
    settings(
        "wrong preset", "{bn: shared, strength: 1, damping: 1, streams: {split_digits: 3}}", "'streams: split_digits'"
    ),
    # a YAML file as a whole
    option("--data_config e.yaml", "e.yaml does not exist", "d.yaml", files={"d.yaml": ""}),
    dataset("not YAML", "dataset: digits\ntasks: [[0, 1]", "d.yaml is not valid YAML in line 2"),
    dataset("YAML that runs code", "dataset: !!python/object/apply:os.system [touch canary]", "d.yaml is not valid"),
    dataset("key twice", "dataset: digits\ntasks: [[0, 1]]\ndataset: mnist", "d.yaml", "'dataset' is given twice"),
    dataset("empty file", "", "d.yaml must hold keys and values", "dataset: cifar100"),
    # which data set
    dataset("unknown key", "{dataset: digits, task: [[0, 1]]}", "d.yaml", "'task'", "did you mean 'tasks'?"),
    dataset("missing key", "{dataset: digits}", "d.yaml", "key 'tasks' is missing"),
    dataset("unknown dataset", "{dataset: digit, tasks: [[0, 1]]}", "d.yaml", "'digit'", "did you mean 'digits'?"),
    # tasks
    tasks("no tasks", "[]", "at least one task", "[[0, 1], [2, 3]]"),
    tasks("wrong type of task", "[[0, 1], 2]", "task 2 must be a list of classes", "[0, 1]"),
    tasks("empty task", "[[0, 1], []]", "task 2 has no classes", "[0, 1]"),
    tasks("class twice", "[[0, 1, 0]]", "task 1 has class 0 twice"),
    tasks("single class", "[[0, 1], [2]]", "task 2 has the single class 2", "at least two"),
    tasks("class too large", "[[0, 1], [2, 10]]", "task 2", "class 10", "classes 0 to 9"),
    dataset("two rotations in a task", "{dataset: rotated_digits, tasks: [[0, 11]]}", "d.yaml: task 1", "10x + y"),
    dataset("full turn", "{dataset: rotated_digits, tasks: [[360, 361]]}", "d.yaml: task 1", "360", "359"),
    # how a network is trained
    hyper("unknown hyperparameter", "{model: conv, l2reg: 0}", "h.yaml", "'l2reg'", "did you mean 'l2_reg'?"),
    hyper("wrong type of epochs", "{model: conv, epochs: true}", "epochs is True", "a whole number at least 1"),
    hyper("no model", "{lr: 0.1}", "h.yaml", "key 'model' is missing"),
    hyper("batch of one", "{model: conv, batch: 1}", "h.yaml: batch is 1", "at least 2 in a batch"),
    hyper("no lr", "{model: conv, lr: 0}", "h.yaml", "lr is 0", "a number above 0"),
    hyper("unknown model", "{model: convv}", "unknown model 'convv'", "did you mean 'conv'?"),
    hyper("unknown timm model", "{model: timm/resnet81}", "timm/resnet81", "did you mean", "resnet18"),
    hyper("model too deep", "{model: timm/test_convnext}", "timm/test_convnext cannot take inputs of 1x8x8"),
    # the run directory
    option("--quiet", "--run_dir run already holds a run", "--overwrite", files=RUN),
    option("--run_dir notes --overwrite", "--run_dir notes is not empty and not a run", files=NOTES),
    option("--run_dir app --overwrite", "--run_dir app is not empty and not a run", files=APP),
    option("--run_dir file", "--run_dir file is a file", "name a directory", files={"file": ""}),
    option("--run_dir file/run", "--run_dir file/run cannot be written", files={"file": ""}),
    # the run to compare with
    option("--isolated missing", "--isolated missing is not the directory of a finished run"),
    isolated("reference of the zoo", '{"method": "zoo", "per_task_acc": [1]}', "{}", "must be", "--method isolated"),
    # CIFAR
    without("no CIFAR", "cifar10", "data_batch_4", "CIFAR10 is not in data", "data_batch_4", f"into {CIFAR}"),
    damaged("hostile CIFAR", "cifar10", f"{CIFAR}/test_batch", HOSTILE, "wants to run", "system", "not run"),
    damaged("CIFAR with pointers", "cifar10", f"{CIFAR}/test_batch", POINTERS, "get the file again"),
    damaged("truncated CIFAR", "cifar10", f"{CIFAR}/data_batch_2", BATCH[:-1000], "cannot be read", "again"),
    damaged("wrong CIFAR", "cifar10", f"{CIFAR}/data_batch_1", pickle.dumps({}), "must hold 'data'", "[N, 3072]"),
    # Mini-ImageNet
    without("no Mini-ImageNet", "mini_imagenet", "val", "mini-imagenet-cache-val.pkl", "data/mini_imagenet", "Kaggle"),
    damaged("hostile Mini-ImageNet", "mini_imagenet", f"{MINI}-val.pkl", HOSTILE_TEXT, "wants to run", "exec"),
    damaged("wrong Mini-ImageNet", "mini_imagenet", f"{MINI}-test.pkl", pickle.dumps({}), "must hold 'image_data'"),
    # MNIST
    without("no MNIST", "mnist", "t10k", "MNIST is not in data", "t10k-images-idx3-ubyte", f"into {MNIST}"),
    damaged("truncated MNIST", "mnist", f"{MNIST}/t10k-images-idx3-ubyte", DIGITS[:-1], "size 7839", "(10,28,28)"),
    damaged("MNIST cut short", "mnist", f"{MNIST}/train-images-idx3-ubyte.gz", GZIPPED[:-9], "damaged or cut short"),
    # a user's own images
    images("augmentation", "root: animals, augment: flip, tasks: [[cat, dog]]", "'flip'", "did you mean 'crop_flip'?"),
    images("no folder", "root: plants, image_size: 8, tasks: [[cat, dog]]", "data/plants/train is not a folder"),
    images("unknown class", "root: animals, image_size: 8, tasks: [[cart, dog]]", "'cart'", "did you mean 'cat'?"),
    without("no test images", "image_folder", "test/dog", "d.yaml: task 1", "class 'dog' has no test images"),
    damaged("no image", "image_folder", f"{FOLDER}/train/cat/a.jpg", "hello", "cannot be read as an image"),
    # more of the same
    option("--continual --replay_frac nan", "--replay_frac is nan", "at least 0 and at most 1"),
    option("--rounds -1", "--rounds is -1", "a whole number at least 1"),
    option("--seed 1.5", "--seed is '1.5'", "a whole number at least 0"),
    option("--precision fp16", "--precision", "'fp16'", "did you mean 'bf16'?"),
    option("--device cuda:one", "--device", "unknown device 'cuda:one'", "cuda:N"),
    option("--hp_config folder", "folder cannot be read", "directory", files={"folder/h.yaml": ""}),
    dataset("not UTF-8", b"dataset: \xff", "d.yaml cannot be read", "utf-8"),
    dataset("no such date", "{dataset: digits, tasks: 2020-13-45}", "d.yaml is not valid YAML"),
    dataset("no number", "{dataset: digits, tasks: !!int abc}", "d.yaml is not valid YAML"),
    dataset("no digits", "{dataset: digits, tasks: 0x_}", "d.yaml is not valid YAML"),
    dataset("key twice, in line 3", "dataset: digits\ntasks: [[0, 1]]\ndataset: mnist", "in line 3"),
    dataset("wrong type of dataset", "{dataset: 10, tasks: [[0, 1]]}", "d.yaml", "dataset is 10", "must be a text"),
    dataset(
        "key of another dataset",
        "{dataset: digits, root: x, tasks: [[0, 1]]}",
        "unknown key 'root'",
        "known: blur, class_order, data_dir, dataset",
    ),
    dataset("key of config.yaml alone", "{dataset: digits, tasks: [[0, 1], [2, 3]], forgotten: 1}", "key 'forgotten'"),
    dataset("path of the file itself", "{dataset: digits, tasks: [[0, 1]], path: x}", "d.yaml: unknown key 'path'"),
    tasks("wrong type of tasks", "all", "at least one task", "[[0, 1], [2, 3]]"),
    tasks("wrong type of class", "[[[0], 1]]", "task 1 must be a list of classes", "[0, 1]"),
    tasks("fraction for a class", "[[0.5, 1]]", "task 1", "unknown class '0.5'"),
    tasks("class name", "[[zero, 1]]", "task 1", "unknown class 'zero'", "0, 1, 2"),
    tasks("class by number and name", "[[0, '0']]", "d.yaml: task 1", "same class twice"),
    tasks("negative class", "[[-1, 1]]", "task 1", "class -1", "classes 0 to 9"),
    tasks("unknown key of a task", "[{class: [0, 1]}]", "task 1", "'class'", "did you mean 'classes'?"),
    tasks("missing key of a task", "[{name: low}]", "task 1", "key 'classes' is missing"),
    tasks("label noise", "[{classes: [0, 1], label_noise: 2}]", "label_noise is 2", "at least 0 and at most 1"),
    dataset("negative rotation", "{dataset: rotated_digits, tasks: [[-9, -8]]}", "d.yaml: task 1: class -9"),
    hyper("wrong type of model", "{model: [conv]}", "h.yaml", "model is ['conv']", "must be a text"),
    hyper("no epochs", "{model: conv, epochs: 0}", "h.yaml", "epochs is 0", "a whole number at least 1"),
    hyper("wrong type of batch", "{model: conv, batch: 16.0}", "batch is 16.0", "a whole number at least 1"),
    hyper("infinite lr", "{model: conv, lr: .inf}", "h.yaml", "lr is inf", "a number above 0"),
    hyper("wrong type of lr", "{model: conv, lr: fast}", "h.yaml", "lr is 'fast'", "a number above 0"),
    hyper("all dropped out", "{model: conv, dropout: 1}", "h.yaml", "dropout is 1", "at least 0 and below 1"),
    hyper("endless epochs", "{model: conv, epochs: 1" + "0" * 400 + "}", "h.yaml: epochs is 1000"),
    hyper("unknown model, where", "{model: convv}", "h.yaml: model: unknown model 'convv'"),
    hyper("unknown timm weights", "{model: timm/resnet18.nope}", "timm/resnet18.nope"),
    option("--run_dir notes", "--run_dir notes is not empty and not a run", files=NOTES),
    Case("long run directory", f"--run_dir {'x' * 300}", ("--run_dir x", "too long")),
    isolated(
        "another reference",
        '{"method": "isolated", "per_task_acc": [1]}',
        "{data: {dataset: mnist}, net: {}, hp: {}}",
        "another 'data.dataset'",
    ),
    damaged("CIFAR that is a web page", "cifar10", f"{CIFAR}/data_batch_2", b"<html>", "cannot be read", "again"),
    damaged("truncated Mini-ImageNet", "mini_imagenet", f"{MINI}-test.pkl", CACHE[:-1000], "cannot be read"),
    damaged("MNIST that is a web page", "mnist", f"{MNIST}/train-labels-idx1-ubyte", b"<html>", "not an IDX file"),
    damaged("MNIST without labels", "mnist", f"{MNIST}/t10k-images-idx3-ubyte", ELEVEN, "must hold as many images"),
    images("no root", "image_size: 8, tasks: [[cat, dog]]", "d.yaml: key 'root' is missing"),
    images("no image size", "root: animals, tasks: [[cat, dog]]", "d.yaml: key 'image_size' is missing"),
    images("small images", "root: animals, image_size: 4, tasks: [[cat, dog]]", "image_size is 4", "at least 8"),
    images("class number", "root: animals, image_size: 8, tasks: [[7, dog]]", "unknown class '7'", "known: cat, dog"),
    damaged("truncated image", "image_folder", f"{FOLDER}/test/dog/1.png", png(64)[:-99], "cannot be read as an image"),
]

# Asked of a process of its own, seconds each: an option, a file, and what is found while data are read.
THROUGH_THE_SHELL = {"hostile CIFAR"}  # which takes longer


def write(files, folder):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def contents(folder):
    """All files and folders but the data, of which decoded images may be kept for the next run."""
    paths = [path for path in folder.rglob("*") if path.relative_to(folder).parts[0] != "data"]
    return {path: path.is_file() and path.read_bytes() for path in paths}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_wrong_input_is_refused_in_one_line(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(case.files, tmp_path)
    before = contents(tmp_path)
    if case.name in THROUGH_THE_SHELL:
        answer = command(case.arguments, tmp_path)
        code, stdout, stderr = answer.returncode, answer.stdout, answer.stderr
    else:
        for name, value in NOTHING_THERE.items():
            monkeypatch.setenv(name, value)
        code = main(["--run_dir", "run", *case.arguments.split()])
        stdout, stderr = capsys.readouterr()
    assert code == 2, stderr
    assert stdout == ""
    assert stderr.startswith("modelzoo.py: ")
    assert len(stderr.splitlines()) == 1
    assert [word for word in case.words if word not in stderr] == [], stderr
    assert contents(tmp_path) == before  # no run, and nothing that a hostile file would have made


def test_the_cases_through_the_shell_are_there():
    assert {case.name for case in CASES} >= THROUGH_THE_SHELL


@pytest.mark.parametrize("which", FILES)
def test_the_same_files_undamaged_are_read(which, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write({**FILES[which], "d.yaml": YAML[which]}, tmp_path)
    stream = build_stream(parse(["--data_config", "d.yaml"]).config.data, 0, torch.device("cpu"))
    assert [task.num_outputs for task in stream.tasks] == [2]


@pytest.mark.parametrize("content", [HOSTILE, HOSTILE_TEXT])
def test_the_hostile_files_would_run_code(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(content)
    assert Path("canary").exists()


def diverged(tmp_path, capsys, epochs, *more):
    """What a run says whose learning rate is far too large."""
    (tmp_path / "h.yaml").write_text(f"{{model: conv, lr: 1000, l2_reg: 1000, epochs: {epochs}}}")
    given = ["--hp_config", str(tmp_path / "h.yaml"), "--samples", "2", "--continual", "--quiet"]
    assert main([*given, "--run_dir", str(tmp_path / "run"), *more]) == 1
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert not (tmp_path / "run/summary.json").exists()
    return stderr


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    assert re.fullmatch(
        r"modelzoo.py: episode 1, member 0 \(tasks 1\): the training loss is not finite in epoch \d+ of 30; "
        r"try a smaller lr \(now 1000\)\n",
        diverged(tmp_path, capsys, 30),
    )


@pytest.mark.parametrize(("method", "epochs"), [("zoo", 2), ("isolated", 3)])
def test_a_network_that_the_last_step_destroys_stops_the_run(method, epochs, tmp_path, capsys):
    """No training loss shows it, only the predictions."""
    told = diverged(tmp_path, capsys, epochs, "--method", method)
    assert len(told.splitlines()) == 1
    assert all(word in told for word in ("episode", "member", "training", "not finite", "smaller lr"))


@pytest.mark.parametrize(("method", "other", "why"), [
    ("finetune", "isolated", "no second task"), ("isolated", None, "Error(s) in loading state_dict"),
])  # fmt: skip
def test_a_network_that_a_method_cannot_train_save_and_load_is_refused_before_anything_is_written(
    method, other, why, tmp_path, monkeypatch, capsys
):
    class Trunk(nn.Module):
        Settings = NoSettings

        def __init__(self, shape, settings):
            super().__init__()
            self.layer = self.same = nn.Linear(64, 4)  # one parameter under two names can be saved
            self.tasks = 0

        def forward(self, images):
            self.tasks += self.training
            if other is None:
                self.register_buffer("late", torch.zeros(1))  # saved, but a new network has no place for it
            if self.tasks > 1:  # in the step of the second task
                raise RuntimeError("no second task")
            return self.layer(images.flatten(1))

    monkeypatch.setitem(TRUNKS, "once", Trunk)
    (tmp_path / "hp.yaml").write_text("model: once\nepochs: 1\nbatch: 64\n")
    given = ["--data_config", "config/dataset/split_digits.yaml", "--hp_config", str(tmp_path / "hp.yaml"), "--quiet"]
    run = ["--samples", "8", "--continual", "--run_dir", str(tmp_path / "run")]
    assert main([*given, *run, "--method", method]) == 2
    line = capsys.readouterr().err
    assert f"hp.yaml: model: once cannot be trained, saved and loaded with --method {method}: {why}" in line
    assert not (tmp_path / "run").exists()
    assert other is None or main([*given, *run, "--method", other]) == 0  # a new network for every task


def test_a_method_that_cannot_go_on_from_its_state_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    class Forgetful(METHODS["finetune"]):
        def load_state_dict(self, state, episodes):
            raise ValueError(f"cannot take {sorted(state)}")

    monkeypatch.setitem(METHODS, "forgetful", Forgetful)
    given = ["--method", "forgetful", "--method_config", "config/method/finetune.yaml", "--continual", "--quiet"]
    assert main([*given, "--samples", "8", "--epochs", "1", "--run_dir", str(tmp_path / "run")]) == 2
    line = capsys.readouterr().err
    assert re.search(r"cannot be trained, saved and loaded with --method forgetful: cannot take .*'trunk'", line)
    assert not (tmp_path / "run").exists()


def test_a_held_out_prediction_that_is_not_finite_ends_the_run():
    (task,) = (stream := toy_stream(1)).tasks
    store = torch.full(task.test.store.shape, torch.nan)
    stream = replace(stream, tasks=(task.with_splits(held_out=replace(task.test, store=store)),))
    method = build_method(Context(toy_config(), stream.spec, CPU))
    episode = next(stream.continual())
    learned = method.learn(episode, Monitor())
    with pytest.raises(TrainingError, match="task 1, split held_out: the prediction is not finite"):
        Evaluation(stream, method, 0).after(episode, learned, stream.tasks)
