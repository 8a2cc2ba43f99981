"""Valid inputs, tiny, that are mutated."""

import gzip
import io
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.cases import Files
from tests.test_bad_input import (
    FOLDER,
    MNIST,
    idx,
)

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
STORE_GRID = b"{streams: [d.yaml], hyperparams: [h.yaml], seeds: 1, samples: 4, methods: [zoo, isolated]}"
GRID = b"""streams: [d.yaml]
hyperparams: [h.yaml]
seeds: 1
samples: 4
methods:
  - isolated
  - {method: zoo, label: "zoo, 2 a class", memory_per_class: 2}
  - {method: er, memory_per_class: 2, method_config: m.yaml}
"""
STREAM = {**TINY, "d.yaml": YAML["digits"]}


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
