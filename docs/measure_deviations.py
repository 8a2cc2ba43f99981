"""Effect of each deviation from the authors' code: the digits stream with one of their behaviours restored.

    OMP_NUM_THREADS=1 python docs/measure_deviations.py    # about 20 minutes on two cores; prints a Markdown table

Each variant replaces functions by what the authors' code does and trains the zoo with five seeds. The difference to
ours is paired over seeds, with a 95 % t-interval.
"""

import contextlib
import io
import math
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from scipy.stats import entropy
from torch import Tensor

import modelzoo
from datasets.mixture import Mixture
from datasets.task import Examples, Task
from methods.memory.replay import ReplayMemory
from methods.zoo import ModelZoo, draw_tasks
from records.invocation import parse
from records.run import Run
from studies.statistics import mean_interval
from utils.seeding import generator, seeded

SEEDS = range(5)
STREAM = ["--data_config", "config/dataset/rotated_digits.yaml", "--samples", "10", "--epochs", "30"]
LIMITED = ["--replay_frac", "0.2"]

predictions_of, add = ModelZoo.predictions_of, ReplayMemory.add
everything: dict[int, Examples] = {}  # all examples of past tasks, unseen by the audit of the memory


def draw_one_fewer(self: ModelZoo, episode: Any, new: int, weights: dict[int, float]) -> list[int]:
    fewer = max(0, min(self.config.tasks_per_round, len(weights)) - 1)
    return draw_tasks(weights, fewer, generator(self.config.seed, "select", episode.number))


def weights_with_unseen_tasks(self: ModelZoo) -> dict[int, float]:
    tasks, guess = self.memory.tasks, math.log(10)
    known = [self.train_scores[task]["loss"].value for task in tasks]
    losses = torch.tensor(known + [guess] * (10 - len(tasks)), dtype=torch.float64)
    raw = ((losses - losses.mean()) / losses.mean()).exp().clamp(1e-4, 1e3)[: len(tasks)]
    return dict(zip(tasks, (raw / raw.sum()).tolist(), strict=True))


def predictions_of_augmented(self: ModelZoo, member: Any, task_id: int, examples: Examples) -> Tensor:
    if task_id in self.memory.tasks and examples is self.memory.examples(task_id):
        rng = generator(self.config.seed, "augmented", member.number, task_id)
        images = Mixture([(task_id, examples)]).inputs(slice(0, len(examples)))
        preprocess: Any = self.spec.preprocess
        shifted = preprocess._augment(images, preprocess.draw(len(examples), rng))
        examples = Examples(shifted, torch.arange(len(examples)), examples.targets)
    return predictions_of(self, member, task_id, examples)


def first_examples(targets: Tensor, fraction: float, rng: torch.Generator) -> Tensor:
    picks = [(targets == c).nonzero().flatten() for c in targets.unique()]
    return torch.cat([pick[: math.floor(fraction * len(pick) + 1e-9)] for pick in picks])


def add_all(self: ReplayMemory, task: Task) -> Any:
    given = task.train_eval
    everything[task.id] = Examples(given.store, given.rows, given.targets, given.view)
    return add(self, task)


# Name -> the variant that it is compared with, options, and replacements of functions.
VARIANTS: dict[str, tuple[str | None, list[str], Mapping[Any, Mapping[str, Any]]]] = {
    "ours": (None, [], {}),
    "one past task fewer per member": ("ours", [], {ModelZoo: {"_draw": draw_one_fewer}}),
    "all members start from the same weights": (
        "ours", [], {"methods.ensemble": {"seeded": lambda seed, *name: seeded(seed, "member")}},
    ),
    "unseen tasks count in the mean of the losses": (
        "ours", [], {ModelZoo: {"sampling_weights": weights_with_unseen_tasks}},
    ),
    "boosting losses on augmented images": ("ours", [], {ModelZoo: {"predictions_of": predictions_of_augmented}}),
    "uniform selection (for comparison)": ("ours", ["--selection", "uniform"], {}),
    "dropout 0.2 on the features": ("ours", ["--set", "net.dropout=0.2"], {}),
    "ours, replay_frac 0.2": (None, LIMITED, {}),
    "the first examples are kept, not random ones": (
        "ours, replay_frac 0.2", LIMITED, {"methods.memory.replay": {"balanced_subset": first_examples}},
    ),
    "boosting losses read all past examples": (
        "ours, replay_frac 0.2", LIMITED,
        {ReplayMemory: {"add": add_all, "examples": lambda self, task_id: everything[task_id]}},
    ),
}  # fmt: skip


def measured(name: str, seed: int) -> tuple[float, float]:
    """avg_acc_final of a variant, and the relative entropy of its sampling weights: 1 if all tasks are as likely."""
    _, options, replaced = VARIANTS[name]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        for owner, functions in replaced.items():
            stack.enter_context(patch.multiple(owner, **functions))
        given = ["--continual", "--seed", str(seed), "--run_dir", f"{folder}/run", "--quiet", *STREAM, *options]
        run = Run.load(modelzoo.run(parse(given)))
    weights = [list(facts.sampling_weights.values()) for facts in run.episodes if len(facts.sampling_weights) > 1]
    return run.summary["avg_acc_final"], float(np.mean([entropy(one, base=len(one)) for one in weights]))


def interval(values: np.ndarray) -> str:
    return "{:.4f} ± {:.4f}".format(*mean_interval(list(values)))


def main() -> None:
    found = {}
    with ProcessPoolExecutor(2) as pool:
        for name in VARIANTS:
            found[name], evenness = np.array(list(pool.map(partial(measured, name), SEEDS))).T
            print(f"{name}: {found[name].round(4).tolist()}", file=sys.stderr, flush=True)
            print(f"relative entropy of the sampling weights: {interval(evenness)}", file=sys.stderr, flush=True)
    print("| behaviour put back | accuracy at the end | change against ours |\n| --- | --- | --- |")
    for name, (reference, _, _) in VARIANTS.items():
        change = "" if reference is None else interval(found[name] - found[reference])
        print(f"| {name} | {interval(found[name])} | {change} |")


if __name__ == "__main__":
    main()
