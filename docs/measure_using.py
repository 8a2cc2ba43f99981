"""The tables of docs/using.md: combinations, calibration, budgets and students of a saved zoo.

    python docs/measure_using.py [--data_dir DIR] [--store DIR]

Rotated digits (10 training images a class, 20 epochs) and Split-MNIST (500, 5 epochs), conv net, a fifth of the
training images held out, three seeds: zoo, isolated networks and student. Then students of rotated digits with other
weights of the true class, epochs and kept images, and the rules that find the task, on held-out images. Finished runs
in the store are reused; MNIST must be in DIR/MNIST/raw. Prints Markdown.
"""

import argparse
import contextlib
import io
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import distill
import modelzoo
from datasets import build_stream
from datasets.task import HELD_OUT, TEST, TaskStream
from evaluation import measurements
from evaluation.scenarios import ROUTINGS, confidence, entropy, score_without_task
from records.monitor import RunMonitor
from utils.compute import Compute
from zoo import Zoo
from zoo.combine import COMBINE, TEMPERATURES
from zoo.distillation import STUDENT, compared, lesson, middle_task, stored_inputs
from zoo.inputs import as_stored

CPU, SEEDS = torch.device("cpu"), (0, 1, 2)
STREAMS = {
    "Rotated digits": ["rotated_digits", "--samples", "10", "--epochs", "20"],
    "Split-MNIST": ["split_mnist", "--samples", "500", "--epochs", "5"],
}
SCENARIOS = {
    measurements.TASK_IDENTIFICATION: "task identified", measurements.ROUTED_CLASS: "routed-class",
    measurements.ROUTED_DOMAIN: "class alone", measurements.ROUTED_DOMAIN_SUM: "class alone, by the sum",
}  # fmt: skip
# Streams on which the rule that finds the task was chosen: data set, bounds of the classes, recipes, seeds.
FEW, SHORT = ["--samples", "10", "--epochs", "20"], ["--samples", "50", "--epochs", "2"]
DIGITS = [["--epochs", "1"], ["--epochs", "5"], ["--epochs", "15"], FEW]
UNLIKE = [("digits", bounds, DIGITS, SEEDS) for bounds in
          ((0, 2, 5, 10), (0, 5, 8, 10), (0, 6, 8, 10), (0, 2, 10), (0, 8, 10), range(0, 11, 2))]  # fmt: skip
ALIKE = [("rotated_digits", range(0, 101, 10), [FEW], SEEDS), ("rotated_mnist", range(0, 51, 10), [SHORT], (0, 1)),
         ("permuted_mnist", range(0, 51, 10), [SHORT], (0, 1)),
         ("permuted_mnist", range(0, 101, 10), [SHORT], (0,))]  # fmt: skip
NOT_CHOSEN = {
    "entropy, not divided": lambda a, _: entropy(a, a.probabilities.shape[-1]),
    "log C less the entropy": lambda a, _: entropy(a, a.probabilities.shape[-1]) + math.log(a.probabilities.shape[-1]),
    "confidence, not divided": lambda a, _: confidence(a, a.probabilities.shape[-1]),
    "confidence above chance": lambda a, _: 1 - (1 - a.probabilities.amax(-1)) / (1 - 1 / a.probabilities.shape[-1]),
    "energy of the sum": lambda a, _: a.energy,
}
BUDGETS = (1, 2, 3, 4, None)
TRIED = [(0.0, 4), (0.5, 1), (0.5, 4), (0.5, 8), (1.0, 4)]  # LABELS and EPOCHS of distill.py
KEPT = {"all": [], "2 a class": ["--memory_per_class", "2"]}
HOLD_OUT, ISOLATED = ["--hold_out", "0.2"], ["--method", "isolated"]


def run(main: object, arguments: Sequence[str], directory: Path) -> Path:
    """Run a program unless its run directory is finished; the directory."""
    if not (directory / "summary.json").exists():
        print(f"{directory}...", file=sys.stderr, flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            if main([*arguments, "--quiet", "--run_dir", str(directory)]):  # type: ignore[operator]
                sys.exit("stopped")
    return directory


def arguments(name: str, seed: int) -> list[str]:
    """The options of modelzoo.py for a stream."""
    stream, *recipe = STREAMS[name]
    return ["--data_config", f"config/dataset/{stream}.yaml", *recipe, "--continual", "--seed", str(seed)]


def runs_of(name: str, store: Path, data_dir: str, seed: int) -> dict[str, Path]:
    """Run directories of one seed."""
    given, stream = [*arguments(name, seed), "--data_dir", data_dir], STREAMS[name][0]
    zoo = run(modelzoo.main, [*given, *HOLD_OUT], store / f"{stream}-zoo-{seed}")
    return {
        "zoo": zoo,
        "all": run(modelzoo.main, given, store / f"{stream}-all-{seed}"),
        "isolated": run(modelzoo.main, [*given, *HOLD_OUT, *ISOLATED], store / f"{stream}-isolated-{seed}"),
        "student": run(distill.main, [str(zoo), "--data_dir", data_dir], store / f"{stream}-student-{seed}"),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print it in Markdown."""
    print(f"\n| {' | '.join(header)} |\n| --- |{' ---: |' * (len(header) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def shown(values: Sequence[float], digits: int = 4) -> str:
    """Mean and range over seeds, as text."""
    return f"{np.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def stream_of(zoo: Zoo) -> TaskStream:
    return build_stream(zoo.config.data, zoo.config.seed, CPU)


def without_task(zoo: Zoo, split: str) -> dict[str, list[float]]:
    """By routing rule, the accuracy in each scenario on all images of a split, means over tasks."""
    stream = stream_of(zoo)
    parts = {task.id: task.splits[split] for task in stream.tasks}
    inputs = torch.cat([image for part in parts.values() for image in stored_inputs(part)])
    tasks = torch.cat([torch.full((len(part),), task) for task, part in parts.items()])
    targets = torch.cat([part.targets for part in parts.values()])
    same = len({task.output_names for task in stream.tasks}) == 1
    answers, found = zoo.answers(as_stored(inputs, zoo.input_shape), list(parts)), {}
    for rule in ROUTINGS:
        scores = score_without_task(answers, tasks, targets, same_classes=same, rule=rule)
        of_tasks = [scores[name].values() for name in SCENARIOS if name in scores]
        found[rule] = [float(np.mean([score["accuracy"].value for score in one])) for one in of_tasks]
    return found


def choice_of_rule(store: Path, data_dir: str) -> None:
    """Accuracy without the task on held-out images: of more rules, and of both answers where the class alone counts."""
    means = {}  # by stream and rule
    for dataset, bounds, recipes, seeds in UNLIKE + ALIKE:
        tasks = [list(range(*ends)) for ends in pairwise(bounds)]
        sizes = " + ".join(str(len(task)) for task in tasks)
        name = sizes if dataset == "digits" else f"{dataset}, {len(tasks)} tasks"
        written, found = store / f"{dataset} {name}.yaml", []
        written.write_text(f"dataset: {dataset}\ntasks: {tasks}\n")
        for recipe, seed in product(recipes, seeds):
            given = ["--data_config", str(written), *HOLD_OUT, *recipe, "--continual", "--seed", str(seed)]
            path = store / f"{written.stem} {' '.join(recipe)} {seed}"
            zoo = Zoo.load(run(modelzoo.main, [*given, "--data_dir", data_dir], path), "cpu")
            with patch.dict(ROUTINGS, NOT_CHOSEN):
                found.append(without_task(zoo, HELD_OUT))
        means[name] = {rule: [f"{x:.4f}" for x in np.mean([one[rule] for one in found], 0)] for rule in found[0]}
    names, alike = list(means)[: len(UNLIKE)], list(means)[len(UNLIKE) :]
    table(["rule", *names], [[rule, *(means[name][rule][0] for name in names)] for rule in (*ROUTINGS, *NOT_CHOSEN)])
    table(["stream", *SCENARIOS.values()], [[name, *means[name]["entropy"]] for name in alike])


def rules(zoos: Sequence[Zoo]) -> None:
    """Accuracy without the task for each routing rule, before and after calibration, on all test images."""
    found = defaultdict(list)
    for zoo in zoos:
        for temperature in ("none", "task"):
            for rule, means in without_task(zoo.combined("mean", temperature), TEST).items():
                found[rule, temperature].append(means)
    rows = [[*names, *map(shown, zip(*values, strict=True))] for names, values in found.items()]
    table(["rule", "temperature", *SCENARIOS.values()][: len(rows[0])], rows)


def scores(zoo: Zoo) -> tuple[float, float, float]:
    """Accuracy, NLL and ECE on test examples, means over tasks, from the saved predictions."""
    found = [[scored[name].value for name in ("accuracy", "loss", "ece")] for scored in zoo.test_scores().values()]
    return tuple(np.mean(found, 0).tolist())  # type: ignore[return-value]


def combinations(zoos: Sequence[Zoo]) -> None:
    """Scores for each way to combine members and each temperature."""
    rows = []
    for how in product(COMBINE, TEMPERATURES):
        columns = zip(*(scores(zoo.combined(*how)) for zoo in zoos), strict=True)
        rows.append([*how, *map(shown, columns)])
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


def students(runs: Sequence[dict[str, Path]]) -> None:
    """Accuracy and cost of zoo, smaller zoo, student and isolated networks."""
    frames = []
    for paths in runs:
        zoo = Zoo.load(paths["zoo"], "cpu")
        zoos = {"zoo": zoo, "zoo, at most 2 members": zoo.combined(budget=2)}
        zoos |= {name: Zoo.load(paths[name], "cpu") for name in ("student", "isolated")}
        frames.append(compared(zoos, stream_of(zoo).task(middle_task(zoo))))
    rows = []
    for name in frames[0].index:
        accuracy, answering, parameters, milliseconds = np.array([frame.loc[name] for frame in frames]).T.tolist()
        rows.append([name, shown(accuracy), f"{np.mean(answering) / 1e3:,.0f} k", f"{np.mean(parameters) / 1e6:.2f} M",
                     f"{np.median(milliseconds):.3f}"])  # fmt: skip
    table(["", "accuracy", "parameters a task", "parameters", "ms an image"], rows)


def held_out_accuracies(zoo: Zoo, labels: float, epochs: int) -> tuple[float, float]:
    """Accuracy of the zoo and of a student on held-out images, means over tasks."""
    stream = stream_of(zoo)
    hp = replace(zoo.config.hp, epochs=epochs * (zoo.config.hp.epochs or 1))
    config = replace(zoo.config, method=STUDENT, continual=False, hp=hp)
    student, _, _ = distill.teach(lesson(zoo, stream, labels), config, Compute(CPU), RunMonitor())
    (member,) = student.new_members
    found = []
    for task in stream.tasks:
        part = task.splits[HELD_OUT]
        by_zoo = zoo.predict(torch.cat(stored_inputs(part)), task.id).chosen
        by_student = member.predictions[task.id, HELD_OUT].argmax(-1)
        found.append([(chosen == part.targets).double().mean().item() for chosen in (by_zoo, by_student)])
    return tuple(np.mean(found, 0).tolist())  # type: ignore[return-value]


def settings_of_students(store: Path) -> None:
    """Accuracy of students on held-out images of rotated digits, for settings of distill.py; no test image is used."""
    rows = []
    for kept, options in KEPT.items():
        zoos = []
        for seed in SEEDS:
            given = [*arguments("Rotated digits", seed), *HOLD_OUT, *options]
            zoos.append(Zoo.load(run(modelzoo.main, given, store / f"kept_{kept.replace(' ', '_')}-{seed}"), "cpu"))
        for labels, epochs in TRIED:
            of_zoo, of_student = zip(*(held_out_accuracies(zoo, labels, epochs) for zoo in zoos), strict=True)
            rows.append([kept, f"{labels:g}", str(epochs), shown(of_student), shown(of_zoo)])
    table(["kept", "weight of the true class", "epochs, times a member's", "student", "zoo"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--store", default="runs/using")
    options = parser.parse_args()
    for name in STREAMS:
        runs = [runs_of(name, Path(options.store), options.data_dir, seed) for seed in SEEDS]
        zoos = [Zoo.load(paths["zoo"], "cpu") for paths in runs]
        print(f"\n## {name}")
        rules(zoos)
        combinations(zoos)
        budgets(zoos)
        students(runs)
        whole = [scores(Zoo.load(paths["all"], "cpu"))[0] for paths in runs]
        held = [scores(zoo)[0] for zoo in zoos]
        print(f"\nAccuracy without --hold_out {shown(whole)}, with --hold_out 0.2 {shown(held)}.")
    print("\n## Settings of students")
    settings_of_students(Path(options.store))
    print("\n## Rules")
    choice_of_rule(Path(options.store), options.data_dir)


if __name__ == "__main__":
    main()
