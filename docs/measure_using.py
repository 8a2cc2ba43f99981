"""The tables of docs/using.md: combinations, calibration, budgets and students of a saved zoo.

    python docs/measure_using.py [--data_dir DIR] [--store DIR]

Rotated digits (10 training images a class, 20 epochs) and Split-MNIST (500, 5 epochs), conv net, a fifth of the
training images held out, three seeds: zoo, isolated networks and student. Finished runs in the store are reused; MNIST
must be in DIR/MNIST/raw. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

import distill  # noqa: E402
import modelzoo  # noqa: E402
from datasets import build_stream  # noqa: E402
from datasets.task import TaskStream  # noqa: E402
from evaluation.measurements import CLASS_INCREMENTAL, DOMAIN_INCREMENTAL, TASK_IDENTIFICATION  # noqa: E402
from evaluation.scenarios import ROUTINGS, score_without_task  # noqa: E402
from records.configuration import saved_config  # noqa: E402
from records.directory import read_config  # noqa: E402
from zoo import Zoo  # noqa: E402
from zoo.combine import COMBINE, TEMPERATURES  # noqa: E402
from zoo.distillation import compared, middle_task, stored_inputs  # noqa: E402
from zoo.inputs import as_stored  # noqa: E402

SEEDS = (0, 1, 2)
STREAMS = {
    "Rotated digits": ["rotated_digits", "--samples", "10", "--epochs", "20"],
    "Split-MNIST": ["split_mnist", "--samples", "500", "--epochs", "5"],
}
BUDGETS = (1, 2, 3, 4, None)
HELD_OUT, ISOLATED = ["--hold_out", "0.2"], ["--method", "isolated"]


def run(main: object, arguments: Sequence[str], directory: Path) -> Path:
    """Run a program unless its run directory is finished; the directory."""
    if not (directory / "summary.json").exists():
        print(f"{directory}...", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            if main([*arguments, "--quiet", "--run_dir", str(directory)]):  # type: ignore[operator]
                sys.exit("stopped")
    return directory


def runs_of(name: str, store: Path, data_dir: str, seed: int) -> dict[str, Path]:
    """Run directories of one seed."""
    stream, *recipe = STREAMS[name]
    config = str(PROJECT / "config/dataset" / f"{stream}.yaml")
    given = ["--data_config", config, *recipe, "--continual", "--seed", str(seed), "--data_dir", data_dir]
    zoo = run(modelzoo.main, [*given, *HELD_OUT], store / f"{stream}-zoo-{seed}")
    return {
        "zoo": zoo,
        "all": run(modelzoo.main, given, store / f"{stream}-all-{seed}"),
        "isolated": run(modelzoo.main, [*given, *HELD_OUT, *ISOLATED], store / f"{stream}-isolated-{seed}"),
        "student": run(distill.main, [str(zoo), "--data_dir", data_dir], store / f"{stream}-student-{seed}"),
    }  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n| {' | '.join(header)} |\n| --- |{' ---: |' * (len(header) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def shown(values: Sequence[float], digits: int = 4) -> str:
    """Mean and range over seeds, as text."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def stream_of(path: Path, data_dir: str) -> TaskStream:
    """The data of a run."""
    config = saved_config(str(path), read_config(path))
    return build_stream(replace(config.data, data_dir=Path(data_dir)), config.seed, torch.device("cpu"))


def rules(zoos: Sequence[Zoo], data_dir: str) -> None:
    """Accuracy without the task for each routing rule, before and after calibration, on all test images."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    scenarios = (TASK_IDENTIFICATION, CLASS_INCREMENTAL, DOMAIN_INCREMENTAL)
    for zoo in zoos:
        stream = stream_of(zoo.path, data_dir)
        inputs = torch.cat([part for task in stream.tasks for part in stored_inputs(task.test)])
        tasks = torch.cat([torch.full((len(task.test),), task.id) for task in stream.tasks])
        targets = torch.cat([task.test.targets for task in stream.tasks])
        same = len({task.classes for task in stream.tasks}) == 1
        for temperature in ("none", "task"):
            one = zoo.combined("mean", temperature)
            answers = one.answers(as_stored(inputs, zoo.input_shape), [task.id for task in stream.tasks])
            for rule in ROUTINGS:
                scores = score_without_task(answers, tasks, targets, same_classes=same, rule=rule)
                means = [float(np.mean([score["accuracy"].value for score in scores[name].values()]))
                         for name in scenarios if name in scores]  # fmt: skip
                found.setdefault((rule, temperature), []).append(means)
    names = ["task identified", "class-incremental", "class alone"][: len(next(iter(found.values()))[0])]
    table(["rule", "temperature", *names],
          [[rule, temperature, *(shown(column) for column in zip(*values, strict=True))]
           for (rule, temperature), values in found.items()])  # fmt: skip


def scores(zoo: Zoo) -> tuple[float, float, float]:
    """Accuracy, NLL and ECE on test examples, means over tasks, from the saved predictions."""
    of_tasks = list(zoo.test_scores().values())
    return tuple(float(np.mean([scores[name].value for scores in of_tasks])) for name in ("accuracy", "loss", "ece"))  # type: ignore[return-value]


def combinations(zoos: Sequence[Zoo]) -> None:
    """Scores for each way to combine members and each temperature."""
    rows = []
    for combine in COMBINE:
        for temperature in TEMPERATURES:
            columns = zip(*(scores(zoo.combined(combine, temperature)) for zoo in zoos), strict=True)
            rows.append([combine, temperature, *map(shown, columns)])
    table(["--combine", "--temperature", "accuracy", "NLL, nats", "ECE"], rows)


def budgets(zoos: Sequence[Zoo]) -> None:
    """Scores against the most members that answer."""
    rows = []
    for budget in BUDGETS:
        made = [zoo.combined("mean", "none", budget) for zoo in zoos]
        asked = [np.mean([len(one.members) for one in zoo.combinations.values()]) for zoo in made]
        accuracy, loss, _ = zip(*map(scores, made), strict=True)
        rows.append(["all" if budget is None else str(budget), f"{np.mean(asked):.1f}", shown(accuracy), shown(loss)])
    table(["--budget", "members asked, mean over tasks", "accuracy", "NLL, nats"], rows)


def students(runs: Sequence[dict[str, Path]], data_dir: str) -> None:
    """Accuracy and cost of zoo, smaller zoo, student and isolated networks."""
    frames = []
    for paths in runs:
        zoo = Zoo.load(paths["zoo"], "cpu")
        zoos = {"zoo": zoo, "zoo, at most 2 members": zoo.combined(budget=2)}
        zoos |= {name: Zoo.load(paths[name], "cpu") for name in ("student", "isolated")}
        frames.append(compared(zoos, stream_of(paths["zoo"], data_dir).task(middle_task(zoo))))
    rows = []
    for name in frames[0].index:
        accuracy, answering, parameters, milliseconds = np.array([frame.loc[name] for frame in frames]).T.tolist()
        rows.append([name, shown(accuracy), f"{np.mean(answering) / 1e3:,.0f} k", f"{np.mean(parameters) / 1e6:.2f} M",
                     f"{np.median(milliseconds):.3f}"])  # fmt: skip
    table(["", "accuracy", "parameters a task", "parameters", "ms an image"], rows)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--store", default="runs/using")
    options = parser.parse_args()
    for name in STREAMS:
        runs = [runs_of(name, Path(options.store), options.data_dir, seed) for seed in SEEDS]
        zoos = [Zoo.load(paths["zoo"], "cpu") for paths in runs]
        print(f"\n## {name}")
        rules(zoos, options.data_dir)
        combinations(zoos)
        budgets(zoos)
        students(runs, options.data_dir)
        whole = [scores(Zoo.load(paths["all"], "cpu"))[0] for paths in runs]
        held = [scores(zoo)[0] for zoo in zoos]
        print(f"\nAccuracy without --hold_out {shown(whole)}, with --hold_out 0.2 {shown(held)}.")


if __name__ == "__main__":
    main()
