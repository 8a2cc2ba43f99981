"""What predict.py takes above decoding the files and the bare forward passes.

    python perf/predicting.py [--images 10000]

10,000 PNG files of 28x28 pixels, and a zoo of five conv members of which one to five answer. *Bare*: Pillow opens
every file and makes an array of it, in as many threads as there are cores; then every member that answers sends all
images, normalised and in place beforehand, through its network in batches. Three rounds in turn, medians.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common  # noqa: F401  # before torch: it decides how threads wait
import numpy as np
import torch
from common import MNIST, title, use, write_configs
from PIL import Image

import modelzoo
import predict
from utils.compute import keep_freed_memory, pick_device
from zoo import Zoo

_BATCH, _ROUNDS = 83, 3  # as evaluation has them for this size of image


def decode(files: Sequence[Path]) -> list[np.ndarray]:
    """Every file as an array."""

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(read, files))


@torch.no_grad()
def forwards(zoo: Zoo, task: int, inputs: torch.Tensor) -> None:
    """Every member that answers, on all inputs."""
    for member in zoo.members_for(task):
        net, _ = zoo.net(member)
        for part in inputs.split(_BATCH):
            net(part, torch.full((len(part),), task)).softmax(-1)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    count = parser.parse_args().images
    print(title(pick_device("cpu")))
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        use(MNIST)
        tasks = [range(start, start + 2) for start in range(0, 10, 2)]
        options = [*write_configs(folder, MNIST, tasks), "--continual", "--epochs", "1", "--quiet", "--samples", "20"]
        with contextlib.redirect_stdout(io.StringIO()):
            modelzoo.main([*options, "--run_dir", f"{folder}/run"])
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        for number in range(count):  # as smooth as digits: noise would take longer to decode
            pixels = Image.fromarray(rng.integers(256, size=(7, 7), dtype=np.uint8)).resize((28, 28))
            pixels.save(folder / f"images/{number:05d}.png")
        files = sorted((folder / "images").iterdir())
        zoo = Zoo.load(folder / "run", "cpu")
        inputs = torch.from_numpy(np.stack(decode(files))).unsqueeze(1).float().sub(127.5).div(63.75)
        by_members = {len(zoo.members_for(task.number)): task.number for task in zoo.tasks}
        print("members    decoding     bare forward passes     predict.py     ratio")
        for members, task in sorted(by_members.items()):
            rounds = []
            for number in range(_ROUNDS):
                clock = [time.perf_counter()]
                decode(files)
                clock.append(time.perf_counter())
                forwards(zoo, task, inputs)
                clock.append(time.perf_counter())
                given = [str(folder / "run"), "--task", str(task), str(folder / "images"), "--device", "cpu"]
                with contextlib.redirect_stdout(io.StringIO()):
                    assert predict.main([*given, "--out", str(folder / f"{task}-{number}.csv")]) == 0
                clock.append(time.perf_counter())
                rounds.append(np.diff(clock))
            decoding, bare, whole = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(whole / (a + b) for a, b, whole in rounds)
            print(f"{members:>7}  {decoding:>8.2f} s  {bare:>20.2f} s  {whole:>11.2f} s  {ratio:>8.3f}")


if __name__ == "__main__":
    main()
