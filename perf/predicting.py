"""Time of predict.py against that of decoding the files and of the bare forward passes.

    python perf/predicting.py [--images 10000]

10,000 PNG files of 28x28 pixels, and a zoo of five conv members of which one to five answer. *Bare*: Pillow decodes
every file, in as many threads as there are cores; then every member that answers sends all images, normalised
beforehand, through its network in batches. Medians of three rounds, taken in turn.
"""

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import common  # before torch: it decides how threads wait
import numpy as np
import torch
from common import FIVE_TASKS, MNIST, in_turn, line, modelzoo_run, ratio, title, use
from PIL import Image

import predict
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


def answer(given: list[str], out: Path) -> None:
    """Run predict.py."""
    out.unlink(missing_ok=True)
    assert predict.main([*given, "--out", str(out)]) == 0


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Wall time of a call without its output."""
    begin = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        function(*arguments)
    return time.perf_counter() - begin


def main() -> None:
    count = common.options(__doc__, images=10_000).images
    print(title(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        configs = use(folder, MNIST, FIVE_TASKS)
        modelzoo_run([*configs, "--continual", "--epochs", "1", "--samples", "20", "--run_dir", f"{folder}/run"])
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        for number in range(count):  # smooth like digits, as noise takes longer to decode
            pixels = Image.fromarray(rng.integers(256, size=(7, 7), dtype=np.uint8)).resize((28, 28))
            pixels.save(folder / f"images/{number:05d}.png")
        files = sorted((folder / "images").iterdir())
        zoo = Zoo.load(folder / "run", "cpu")
        inputs = torch.from_numpy(np.stack(decode(files))).unsqueeze(1).float().sub(127.5).div(63.75)
        by_members = {len(zoo.members_for(task.number)): task.number for task in zoo.tasks}
        line("members", "decoding, s", "bare, s", "predict, s", "ratio")
        for members, task in sorted(by_members.items()):
            given = [f"{folder}/run", "--task", str(task), f"{folder}/images", "--device", "cpu"]
            measures = [partial(timed, decode, files), partial(timed, forwards, zoo, task, inputs),
                        partial(timed, answer, given, folder / "answers.csv")]  # fmt: skip
            columns = in_turn(measures, _ROUNDS)
            parts = [decoding + bare for decoding, bare, _ in zip(*columns, strict=True)]
            medians = [f"{statistics.median(column):.2f}" for column in columns]
            line(members, *medians, f"{ratio(columns[2], parts):.3f}")


if __name__ == "__main__":
    main()
