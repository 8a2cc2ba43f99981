"""Choose the settings of distill.py: accuracy of students on held-out images of rotated digits.

    python docs/choose_student.py [--store DIR]

Ten training images a class, a fifth held out, 20 epochs a member, conv net, three seeds. Varied: the weight of the true
class (LABELS), the epochs as a multiple of a member's (EPOCHS), and whether all images or two a class are kept. Test
images are not used. Prints Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure_using import run, shown, stream_of, table

import modelzoo
from distill import teach
from records.monitor import RunMonitor
from utils.compute import Compute
from zoo import Zoo
from zoo.distillation import STUDENT, lesson, stored_inputs

SEEDS = range(3)
TRIED = [(0.0, 4), (0.5, 1), (0.5, 4), (0.5, 8), (1.0, 4)]  # LABELS, EPOCHS
KEPT = {"all": [], "2 a class": ["--memory_per_class", "2"]}


def held_out_accuracies(zoo: Zoo, labels: float, epochs: int) -> tuple[float, float]:
    """Accuracy of the zoo and of a student on held-out images, means over tasks."""
    stream = stream_of(zoo.path, str(zoo.config.data.data_dir))
    hp = replace(zoo.config.hp, epochs=epochs * (zoo.config.hp.epochs or 1))
    config = replace(zoo.config, method=STUDENT, continual=False, hp=hp)
    student, _, _ = teach(lesson(zoo, stream, labels), config, Compute(torch.device("cpu")), RunMonitor())
    (member,) = student.new_members
    of_zoo, of_student = [], []
    for task in stream.tasks:
        assert task.held_out is not None
        by_zoo = zoo.predict(torch.cat(stored_inputs(task.held_out)), task.id).chosen
        of_zoo.append((by_zoo == task.held_out.targets).double().mean().item())
        by_student = member.predictions[task.id, "held_out"].argmax(-1)
        of_student.append((by_student == task.held_out.targets).double().mean().item())
    return float(np.mean(of_zoo)), float(np.mean(of_student))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="runs/student")
    store = Path(parser.parse_args().store)
    recipe = ["--data_config", "config/dataset/rotated_digits.yaml", "--samples", "10", "--epochs", "20",
              "--continual", "--hold_out", "0.2"]  # fmt: skip
    rows = []
    for kept, options in KEPT.items():
        zoos = [Zoo.load(run(modelzoo.main, [*recipe, *options, "--seed", str(seed)],
                             store / f"{kept.replace(' ', '_')}-{seed}"), "cpu") for seed in SEEDS]  # fmt: skip
        for labels, epochs in TRIED:
            of_zoo, of_student = zip(*(held_out_accuracies(zoo, labels, epochs) for zoo in zoos), strict=True)
            rows.append([kept, f"{labels:g}", str(epochs), shown(of_student), shown(of_zoo)])
    table(["kept", "weight of the true class", "epochs, times a member's", "student", "zoo"], rows)


if __name__ == "__main__":
    main()
