"""Analyses of a finished run: pure functions of its measurements and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from datasets.objectives import CrossEntropy, equal_bins
from records.run import Array, Run


def accuracy(probabilities: Array, targets: npt.NDArray[np.int64]) -> float:
    """Share of examples whose most probable class is the right one."""
    return float((probabilities.argmax(1) == targets).mean())


def added_by_members(run: Run) -> pd.DataFrame:
    """Accuracy on each task of the mean prediction of its first m members: columns task, members, member, accuracy."""
    lines = [
        (task, count, number, accuracy(run.predictions(task, "test", count), run.targets[task]))
        for task, members in run.test_predictions.items()
        for count, number in enumerate(members, 1)
    ]
    return pd.DataFrame(lines, columns=["task", "members", "member", "accuracy"])


class Affinity(NamedTuple):
    """[i, j]: accuracy on task i of members trained on j too, minus that of members trained on i without j."""

    difference: Array  # NaN where one kind of member is missing
    together: npt.NDArray[np.int64]  # number of members trained on both


def affinity(run: Run) -> Affinity:
    """How tasks helped each other, from the test accuracy of single members."""
    count = len(run.task_names)
    difference, together = np.full((count, count), np.nan), np.zeros((count, count), np.int64)
    for i, members in run.test_predictions.items():
        scores = {number: accuracy(probabilities, run.targets[i]) for number, probabilities in members.items()}
        for j in set(run.test_predictions) - {i}:
            both = [score for number, score in scores.items() if j in run.members[number].tasks]
            without = [score for number, score in scores.items() if j not in run.members[number].tasks]
            together[i - 1, j - 1] = len(both)
            if both and without:
                difference[i - 1, j - 1] = np.mean(both) - np.mean(without)
    return Affinity(difference, together)


class Calibration(NamedTuple):
    """Scores of predicted probabilities."""

    accuracy: float
    nll: float  # mean negative log-likelihood, nats
    brier: float  # mean squared distance of the probabilities from the right answer; 0 to 2
    ece: float  # expected calibration error


def calibration(probabilities: Array, targets: npt.NDArray[np.int64]) -> Calibration:
    """Scores of probabilities [N, C] for targets [N]; Brier score after Brier (1950), the others as in metrics.csv."""
    score = CrossEntropy().evaluate(torch.from_numpy(probabilities), torch.from_numpy(targets))
    brier = np.square(probabilities - np.eye(probabilities.shape[1])[targets]).sum(1).mean()
    return Calibration(score["accuracy"].value, score["loss"].value, float(brier), score["ece"].value)


def reliability(probabilities: Array, targets: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Mean confidence, accuracy and n of the examples in each bin of the ECE."""
    table = pd.DataFrame({"confidence": probabilities.max(1), "hit": probabilities.argmax(1) == targets})
    bins = table.groupby(equal_bins(torch.tensor(table.confidence)).numpy())
    return bins.agg(confidence=("confidence", "mean"), accuracy=("hit", "mean"), n=("hit", "size"))


def calibrations(run: Run) -> pd.DataFrame:
    """Calibration of the ensemble and mean of that of its members, a row each for every task."""
    lines: list[tuple[object, ...]] = []
    for task, members in run.test_predictions.items():
        targets = run.targets[task]
        single = np.mean([calibration(probabilities, targets) for probabilities in members.values()], axis=0)
        lines.append((task, "one member", len(members), *map(float, single)))
        lines.append((task, "ensemble", len(members), *calibration(run.predictions(task), targets)))
    return pd.DataFrame(lines, columns=["task", "answer", "members", *Calibration._fields])


def pooled_reliability(run: Run) -> Mapping[str, pd.DataFrame]:
    """`reliability` of single members and of the ensemble, over the test examples of all tasks."""
    answers: dict[str, list[tuple[Array, npt.NDArray[np.int64]]]] = {"one member": [], "ensemble": []}
    for task, members in run.test_predictions.items():
        answers["one member"] += [(probabilities, run.targets[task]) for probabilities in members.values()]
        answers["ensemble"].append((run.predictions(task), run.targets[task]))
    return {answer: _reliability_of(pairs) for answer, pairs in answers.items()}


def _reliability_of(pairs: list[tuple[Array, npt.NDArray[np.int64]]]) -> pd.DataFrame:
    """`reliability` of all pairs together, padded with zeros where tasks have fewer classes."""
    width = max(probabilities.shape[1] for probabilities, _ in pairs)
    padded = [np.pad(probabilities, ((0, 0), (0, width - probabilities.shape[1]))) for probabilities, _ in pairs]
    return reliability(np.concatenate(padded), np.concatenate([targets for _, targets in pairs]))
