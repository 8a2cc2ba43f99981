"""Time of predict.py against that of decoding the files and of the bare forward passes.

    python perf/predicting.py [--images 10000]

10,000 PNG files of 28x28 pixels, and a zoo of five conv members of which one to five answer. *Bare*: Pillow decodes
every file, in as many threads as there are cores; then every member that answers sends all images, normalised
beforehand, through its network in batches. Medians of three rounds, taken in turn.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common  # before torch: it decides how threads wait
import numpy as np
import torch
from common import MNIST, modelzoo_run, title, use, write_configs
from PIL import Image

import predict
from utils.compute import keep_freed_memory, pick_device
from zoo import Zoo

_BATCH, _ROUNDS = 83, 3  # the batch size of evaluation for images of this size


def decode(files: Sequence[Path]) -> list[np.ndarray]:
    """Decode every file to an array."""

    def read(path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return np.asarray(image)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(read, files))


@torch.no_grad()
def forwards(zoo: Zoo, task: int, inputs: torch.Tensor) -> None:
    """Forward passes of all inputs through every member that answers the task."""
    for member in zoo.members_for(task):
        net, _ = zoo.net(member)
        for part in inputs.split(_BATCH):
            net(part, torch.full((len(part),), task)).softmax(-1)


def main() -> None:
    """Print a table."""
    parser = common.parser(__doc__, repeats=None, device=False)
    parser.add_argument("--images", type=int, default=10_000)
    count = parser.parse_args().images
    print(title(pick_device("cpu")))
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        use(MNIST)
        tasks = [range(start, start + 2) for start in range(0, 10, 2)]
        options = [*write_configs(folder, MNIST, tasks), "--continual", "--epochs", "1", "--quiet", "--samples", "20"]
        modelzoo_run([*options, "--run_dir", f"{folder}/run"])
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        for number in range(count):  # smooth like digits, as noise takes longer to decode
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
