r"""Choose settings of the baselines for a stream on validation data of its first tasks, and write them to files.

python docs/choose_settings.py --data_config config/dataset/rotated_digits.yaml --samples 10 --epochs 20 \
    --memory_per_class 2

Validation data are training examples that the run does not train on: `--samples` of each class are trained on, up to
100 more of each class are predicted; without --samples a fifth is held out. Test data is never used, and only the first
half of the tasks, at least three (Chaudhry et al. 2019 tune on the first three of twenty; a strength that suits three
tasks need not suit more). The seeds differ from those of the comparisons. The settings with the best mean accuracy at
the end go to the block `streams` of config/method/<name>.yaml, and a table of all trials to the console. A best value
at the edge of its range is marked (edge): try more values.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import yaml

from datasets import build_stream
from datasets.task import Table, Task, TaskStream
from methods import METHODS, build_method
from methods.base import Context
from methods.memory.replay import balanced_order, balanced_subset, first_of_each
from records.invocation import parse, with_settings
from training.monitor import Monitor
from utils.compute import Compute
from utils.errors import TrainingError
from utils.seeding import generator

CONFIGS = Path(__file__).resolve().parent.parent / "config" / "method"
NOTE = "chosen by docs/choose_settings.py on validation data of the first half of the tasks, at least three"
RECIPE = ("--hp_config", "--samples", "--epochs", "--memory_per_class")
SEEDS = (1000, 1001)
HELD_OUT = 100  # of each class
TRIED: dict[str, dict[str, Sequence[Any]]] = {
    "ewc": {"strength": [1.0, 10.0, 100.0, 1e3, 1e4, 1e5]},
    "ewc_online": {"strength": [1.0, 10.0, 100.0, 1e3, 1e4, 1e5]},
    "si": {"strength": [0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]},
    "lwf": {"strength": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0], "teacher": ["eval", "train"]},
    "er": {"replay_loss": ["mean", "sum"]},
    "der": {"alpha": [0.01, 0.03, 0.1, 0.3, 1.0]},
    "derpp": {"alpha": [0.03, 0.1, 0.3, 1.0], "beta": [0.25, 0.5, 1.0, 2.0]},
    "gem": {"margin": [0.0, 0.5, 1.0, 2.0]},
    "stable_sgd": {"decay": [0.1, 0.2, 0.4, 0.55, 0.7, 0.85]},
    "wsn": {"share": [0.1, 0.3, 0.5, 0.7, 0.9], "score_rate": [10.0, 100.0, 1e3, 1e4]},
    "gpm": {"threshold": [0.8, 0.9, 0.95, 0.97, 0.99]},
}


def validation_stream(stream: TaskStream, samples: int | None) -> TaskStream:
    """The first half of the tasks, at least three, with held-out training examples in place of test examples."""

    def divided(task: Task) -> Task:
        examples = task.train_eval
        order = balanced_order(examples.targets, generator(0, "validation", task.id))
        if samples is None:
            trained = balanced_subset(examples.targets, 0.8, generator(0, "validation", task.id))
        else:
            trained = first_of_each(examples.targets, order, samples, task.num_outputs)
        held = order[~torch.isin(order, trained)]
        held = held[first_of_each(examples.targets[held], torch.arange(len(held)), HELD_OUT, task.num_outputs)]
        if len(examples.targets[held].unique()) < task.num_outputs:
            raise SystemExit(f"task {task.id} has a class without examples to hold out; try fewer --samples")
        kept = examples.subset(trained)
        return replace(task, train=Table(kept)).with_splits(train=kept, test=examples.subset(held))

    return replace(stream, tasks=tuple(divided(task) for task in stream.tasks[: max(3, len(stream.tasks) // 2)]))


def accuracy(argv: list[str], samples: int | None, memory: int | None, trial: tuple[str, dict[str, Any], int]) -> float:
    """Mean validation accuracy over the first tasks when they have been learned; NaN if training diverged."""
    method, settings, seed = trial
    torch.set_num_threads(1)
    if memory is not None and "memory_per_class" in METHODS[method].options:
        argv = [*argv, "--memory_per_class", str(memory)]
    changes = [f"--set=settings.{key}={value}" for key, value in settings.items()]
    config = with_settings(parse([*argv, *changes, "--continual", "--method", method, "--seed", str(seed)]))
    cpu = torch.device("cpu")
    stream = validation_stream(build_stream(config.data, config.seed, cpu), samples)
    learner = build_method(Context(config, stream.spec, Compute(cpu)))
    try:
        for episode in stream.continual():
            learner.learn(episode, Monitor())
        scores = [stream.spec.objective.evaluate(learner.predict(task), task.test.targets) for task in stream.tasks]
    except TrainingError:
        return float("nan")
    return float(np.mean([score["accuracy"].value for score in scores]))


def text_of(settings: dict[str, Any]) -> str:
    """Settings as YAML on one line."""
    return yaml.safe_dump(settings, default_flow_style=True, sort_keys=False, width=1000).strip()


def write_down(path: Path, stream: str, settings: dict[str, Any], recipe: str) -> None:
    """Write settings and the recipe they are for to the block `streams` at the end of the method's file."""
    head, _, block = path.read_text().partition("streams:")
    lines = [line for line in block.splitlines()[1:] if line.strip() and not line.startswith(f"  {stream}:")]
    lines.append(f"  {stream}: {text_of(settings)}  # {recipe}")
    path.write_text(head + f"streams:  # {NOTE}\n" + "".join(f"{line}\n" for line in sorted(lines)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data_config", required=True, help="the stream")
    parser.add_argument("--samples", type=int, help="training examples per class, as in the comparison (default: all)")
    parser.add_argument("--memory_per_class", type=int, help="as in the comparison (default: see the method)")
    parser.add_argument("--methods", nargs="+", choices=list(TRIED), default=list(TRIED), help="(default: all)")
    parser.add_argument("--dry_run", action="store_true", help="print the table, leave the files alone")
    options, others = parser.parse_known_args()  # the others are for modelzoo.py: --epochs, --hp_config, --data_dir
    argv = ["--data_config", options.data_config, *others]
    measure = partial(accuracy, argv, options.samples, options.memory_per_class)
    print("| method | settings | validation accuracy |\n| --- | --- | --- |")
    with ProcessPoolExecutor(2) as pool:
        for method in options.methods:
            ranges = TRIED[method]
            tried = [dict(zip(ranges, values, strict=True)) for values in itertools.product(*ranges.values())]
            trials = [(method, settings, seed) for settings in tried for seed in SEEDS]
            found = np.array(list(pool.map(measure, trials))).reshape(-1, len(SEEDS))
            means = np.nan_to_num(found.mean(1))  # diverged training is worst
            best = tried[means.argmax()]
            numbers = [key for key in ranges if not isinstance(best[key], str)]
            at_edge = any(best[key] in (ranges[key][0], ranges[key][-1]) for key in numbers)
            for settings, mean in zip(tried, means, strict=True):
                shown = f"**{mean:.4f}**{' (edge)' * at_edge}" if settings is best else f"{mean:.4f}"
                print(f"| {method} | {text_of(settings)} | {shown} |", flush=True)
            if not options.dry_run:
                recipe = recipe_of(sys.argv[1:])
                write_down(CONFIGS / f"{method}.yaml", Path(options.data_config).stem, best, recipe)


def recipe_of(argv: Sequence[str]) -> str:
    """The arguments that say how the networks were trained."""
    return " ".join(f"{name} {value}" for name, value in itertools.pairwise(argv) if name in RECIPE)


if __name__ == "__main__":
    main()
