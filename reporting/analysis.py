"""What can be computed from a run: pure functions of its measurements and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from records.run import Array, Run

BINS = 15
_FLOOR = np.finfo(np.float32).tiny  # as in the loss of metrics.csv: a probability that rounded to zero


def accuracy(probabilities: Array, targets: npt.NDArray[np.int64]) -> float:
    """Share of examples whose most probable class is the right one."""
    return float((probabilities.argmax(1) == targets).mean())


def added_by_members(run: Run) -> pd.DataFrame:
    """Accuracy on each task of the mean of its first m members: columns task, members, member, accuracy."""
    lines = [
        (task, count, number, accuracy(run.predictions(task, "test", count), run.targets[task]))
        for task, members in run.test_predictions.items()
        for count, number in enumerate(members, 1)
    ]
    return pd.DataFrame(lines, columns=["task", "members", "member", "accuracy"])


class Affinity(NamedTuple):
    """[i, j]: accuracy on task i of members trained on j too, minus that of members trained on i without j."""

    difference: Array  # NaN where one kind of member is missing
    together: npt.NDArray[np.int64]  # how many members were trained on both


def affinity(run: Run) -> Affinity:
    """Which tasks helped which, from the accuracy of single members on the test examples."""
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
    """How far stated probabilities can be trusted."""

    accuracy: float
    nll: float  # mean negative log-likelihood, nats
    brier: float  # mean squared distance of the probabilities from the right answer; 0 to 2
    ece: float  # expected calibration error


def calibration(probabilities: Array, targets: npt.NDArray[np.int64]) -> Calibration:
    """Brier (1950); Naeini et al. (2015) for the ECE, with the bins of `reliability`.

    Args:
        probabilities: [N, C].
        targets: [N].
    """
    right = probabilities[np.arange(len(targets)), targets]
    bins = reliability(probabilities, targets)
    return Calibration(
        accuracy(probabilities, targets),
        float(-np.log(right.clip(_FLOOR)).mean()),
        float((np.square(probabilities).sum(1) - 2 * right + 1).mean()),
        float((bins.n * (bins.accuracy - bins.confidence).abs()).sum() / bins.n.sum()),
    )


def reliability(probabilities: Array, targets: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Examples by the probability of the predicted class, in BINS bins of equal size: confidence, accuracy, n.

    Equal probabilities share the bin of the first of them, as in metrics.csv, so that the order does not matter.
    """
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == targets
    bins = np.searchsorted(np.sort(confidence), confidence) * BINS // len(confidence)
    parts = [bins == number for number in np.unique(bins)]
    lines = [(confidence[part].mean(), hit[part].mean(), part.sum()) for part in parts]
    return pd.DataFrame(lines, columns=["confidence", "accuracy", "n"])


def calibrations(run: Run) -> pd.DataFrame:
    """For each task, single members (their mean) and the ensemble: columns task, answer, members and Calibration."""
    lines: list[tuple[object, ...]] = []
    for task, members in run.test_predictions.items():
        targets = run.targets[task]
        single = np.mean([calibration(probabilities, targets) for probabilities in members.values()], axis=0)
        lines.append((task, "one member", len(members), *map(float, single)))
        lines.append((task, "ensemble", len(members), *calibration(run.predictions(task), targets)))
    return pd.DataFrame(lines, columns=["task", "answer", "members", *Calibration._fields])


def pooled_reliability(run: Run) -> Mapping[str, pd.DataFrame]:
    """`reliability` over the test examples of all tasks, of single members and of the ensemble."""
    answers: dict[str, list[tuple[Array, npt.NDArray[np.int64]]]] = {"one member": [], "ensemble": []}
    for task, members in run.test_predictions.items():
        answers["one member"] += [(probabilities, run.targets[task]) for probabilities in members.values()]
        answers["ensemble"].append((run.predictions(task), run.targets[task]))
    return {answer: _reliability_of(pairs) for answer, pairs in answers.items()}


def _reliability_of(pairs: list[tuple[Array, npt.NDArray[np.int64]]]) -> pd.DataFrame:
    """Tasks may differ in their number of classes: what counts is the predicted one."""
    width = max(probabilities.shape[1] for probabilities, _ in pairs)
    padded = [np.pad(probabilities, ((0, 0), (0, width - probabilities.shape[1]))) for probabilities, _ in pairs]
    return reliability(np.concatenate(padded), np.concatenate([targets for _, targets in pairs]))
