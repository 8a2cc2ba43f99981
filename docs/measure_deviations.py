"""Effect of each deviation from the authors' code: the digits stream with one of their behaviours restored.

    python docs/measure_deviations.py            # about 20 minutes on two cores; prints a Markdown table

Each variant patches one function to do what the authors' code does and trains the zoo with five seeds. The difference
to ours is paired over seeds, with a 95 % t-interval.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import modelzoo  # noqa: E402
from datasets.mixture import Mixture  # noqa: E402
from datasets.task import Examples, Task  # noqa: E402
from methods.memory.replay import ReplayMemory  # noqa: E402
from methods.zoo import ModelZoo, draw_tasks  # noqa: E402
from studies.statistics import mean_interval  # noqa: E402
from utils.seeding import generator, seeded  # noqa: E402

SEEDS = range(5)
STREAM = ["--data_config", str(PROJECT / "config/dataset/rotated_digits.yaml"), "--samples", "10", "--epochs", "30"]
LIMITED = ["--replay_frac", "0.2"]


def one_task_fewer() -> AbstractContextManager[Any]:
    def draw(self: ModelZoo, episode: Any, new: int, weights: dict[int, float]) -> list[int]:
        count = max(0, min(self.config.tasks_per_round, len(weights)) - 1)
        return draw_tasks(weights, count, generator(self.config.seed, "select", episode.number))

    return patch.object(ModelZoo, "_draw", draw)


def one_initialisation() -> AbstractContextManager[Any]:
    return patch("methods.ensemble.seeded", lambda seed, *name: seeded(seed, "member"))


def unseen_tasks_in_the_mean() -> AbstractContextManager[Any]:
    def weights(self: ModelZoo) -> dict[int, float]:
        tasks, guess = self.memory.tasks, math.log(10)
        known = [self.train_scores[task]["loss"].value for task in tasks]
        losses = torch.tensor(known + [guess] * (10 - len(tasks)), dtype=torch.float64)
        raw = ((losses - losses.mean()) / losses.mean()).exp().clamp(1e-4, 1e3)[: len(tasks)]
        return dict(zip(tasks, (raw / raw.sum()).tolist(), strict=True))

    return patch.object(ModelZoo, "sampling_weights", weights)


def losses_on_augmented_images() -> AbstractContextManager[Any]:
    predictions_of = ModelZoo.predictions_of

    def augmented(self: ModelZoo, member: Any, task_id: int, examples: Examples) -> Tensor:
        if task_id in self.memory.tasks and examples is self.memory.examples(task_id):
            rng = generator(self.config.seed, "augmented", member.number, task_id)
            images = Mixture([(task_id, examples)]).inputs(slice(0, len(examples)))
            preprocess: Any = self.spec.preprocess
            shifted = preprocess._augment(images, preprocess.draw(len(examples), rng))
            examples = Examples(shifted, torch.arange(len(examples)), examples.targets)
        return predictions_of(self, member, task_id, examples)

    return patch.object(ModelZoo, "predictions_of", augmented)


def first_examples_kept() -> AbstractContextManager[Any]:
    def first(targets: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
        picks = [(targets == c).nonzero().flatten() for c in targets.unique()]
        return torch.cat([pick[: math.floor(fraction * len(pick) + 1e-9)] for pick in picks])

    return patch("methods.memory.replay.balanced_subset", first)


def losses_on_everything() -> AbstractContextManager[Any]:
    """Train on the kept share as before, but compute losses on all examples, unseen by the audit of the memory."""
    add, everything = ReplayMemory.add, {}

    def add_all(self: ReplayMemory, task: Task) -> Any:
        given = task.train_eval
        everything[task.id] = Examples(given.store, given.rows, given.targets, given.view)
        return add(self, task)

    return patch.multiple(ReplayMemory, add=add_all, examples=lambda self, task_id: everything[task_id])


VARIANTS: dict[str, tuple[str | None, list[str], Callable[[], AbstractContextManager[Any]]]] = {
    "ours": (None, [], contextlib.nullcontext),
    "one past task fewer per member": ("ours", [], one_task_fewer),
    "all members start from the same weights": ("ours", [], one_initialisation),
    "unseen tasks count in the mean of the losses": ("ours", [], unseen_tasks_in_the_mean),
    "boosting losses on augmented images": ("ours", [], losses_on_augmented_images),
    "uniform selection (for comparison)": ("ours", ["--selection", "uniform"], contextlib.nullcontext),
    "dropout 0.2 on the features": ("ours", ["--hp_config", "DROPOUT"], contextlib.nullcontext),
    "ours, replay_frac 0.2": (None, LIMITED, contextlib.nullcontext),
    "the first examples are kept, not random ones": ("ours, replay_frac 0.2", LIMITED, first_examples_kept),
    "boosting losses read all past examples": ("ours, replay_frac 0.2", LIMITED, losses_on_everything),
}  # fmt: skip


def summary_of(options: list[str], seed: int) -> dict[str, Any]:
    """summary.json of one run on STREAM."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        dropout = Path(folder, "dropout.yaml")
        dropout.write_text("model: conv\ndropout: 0.2\n")
        options = [str(dropout) if option == "DROPOUT" else option for option in options]
        run = ["--continual", "--seed", str(seed), "--run_dir", f"{folder}/run", "--quiet", *STREAM, *options]
        if modelzoo.main(run) != 0:
            raise RuntimeError(f"modelzoo.py {' '.join(run)} failed")
        return json.loads(Path(folder, "run/summary.json").read_text())


def accuracy(name: str, seed: int) -> float:
    """avg_acc_final of a variant."""
    _, options, variant = VARIANTS[name]
    with variant():
        return float(summary_of(options, seed)["avg_acc_final"])


def interval(values: np.ndarray) -> str:
    """Mean ± half-width of the 95 % t-interval."""
    return "{:.4f} ± {:.4f}".format(*mean_interval(list(values)))


def main() -> None:
    """Train all variants in two processes of one thread each and print a table."""
    found = {}
    with ProcessPoolExecutor(2) as pool:
        for name in VARIANTS:
            found[name] = np.array(list(pool.map(partial(accuracy, name), SEEDS)))
            print(f"{name}: {found[name].round(4).tolist()}", file=sys.stderr, flush=True)
    print("| behaviour put back | accuracy at the end | change against ours |\n| --- | --- | --- |")
    for name, (reference, _, _) in VARIANTS.items():
        change = "" if reference is None else interval(found[name] - found[reference])
        print(f"| {name} | {interval(found[name])} | {change} |")


if __name__ == "__main__":
    main()
