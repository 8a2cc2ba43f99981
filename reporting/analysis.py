"""Analyses of a finished run: pure functions of its measurements and predictions."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.metrics import confusion_matrix

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


def affinity(run: Run) -> tuple[Array, npt.NDArray[np.int64]]:
    """How tasks helped each other, from the test accuracy of single members; both arrays are [tasks, tasks].

    [i, j] of the first: accuracy on task i of members trained on j too, minus that of members trained on i without j;
    NaN where one kind of member is missing. [i, j] of the second: the number of members trained on both.
    """
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
    return difference, together


def confusion(run: Run) -> pd.DataFrame:
    """How many test examples of each class got each answer: columns task, class, answer, n.

    With --scenario class all tasks are one table, as their examples are told apart from those of all others.
    """
    found = {run.task_labels[task - 1]: [task] for task in run.test_predictions}
    if run.config["data"]["scenario"] == "class":
        found = {"all tasks": list(run.test_predictions)}
    lines = []
    for label, tasks in found.items():
        names = run.class_names(tasks[-1])
        answers = np.concatenate([run.predictions(task).argmax(1) for task in tasks])
        counts = confusion_matrix(np.concatenate([run.targets[t] for t in tasks]), answers, labels=range(len(names)))
        lines += [(label, names[i], names[j], n) for (i, j), n in np.ndenumerate(counts)]
    return pd.DataFrame(lines, columns=["task", "class", "answer", "n"])


def calibration(probabilities: Array, targets: npt.NDArray[np.int64]) -> dict[str, float]:
    """Scores of probabilities [N, C] for targets [N]: accuracy, nll in nats and ece as in metrics.csv, brier.

    The Brier (1950) score is the mean squared distance of the probabilities from the right answer, 0 to 2.
    """
    scores = CrossEntropy().evaluate(torch.from_numpy(probabilities), torch.from_numpy(targets))
    brier = np.square(probabilities - np.eye(probabilities.shape[1])[targets]).sum(1).mean()
    accuracy, nll, ece = (scores[name].value for name in ("accuracy", "loss", "ece"))
    return {"accuracy": accuracy, "nll": nll, "brier": float(brier), "ece": ece}


def calibrations(run: Run) -> pd.DataFrame:
    """Calibration of the ensemble and mean of that of its members, a row each for every task."""
    lines = []
    for task, members in run.test_predictions.items():
        targets, shared = run.targets[task], {"task": task, "members": len(members)}
        single = pd.DataFrame([calibration(probabilities, targets) for probabilities in members.values()]).mean()
        lines.append({**shared, "answer": "one member", **single})
        lines.append({**shared, "answer": "ensemble", **calibration(run.predictions(task), targets)})
    return pd.DataFrame(lines)


def reliability(run: Run) -> dict[str, pd.DataFrame]:
    """Mean confidence, accuracy and n in each bin of the ECE, for "one member" on its own and for the "ensemble"."""
    answers = []
    for task, members in run.test_predictions.items():
        every = [("ensemble", run.predictions(task)), *(("one member", found) for found in members.values())]
        for answer, found in every:
            hit = found.argmax(1) == run.targets[task]
            answers.append(pd.DataFrame({"answer": answer, "confidence": found.max(1), "hit": hit}))
    reliable = {}
    for answer, table in pd.concat(answers).groupby("answer"):
        bins = table.groupby(equal_bins(torch.tensor(table.confidence.to_numpy())).numpy())
        reliable[str(answer)] = bins.agg(confidence=("confidence", "mean"), accuracy=("hit", "mean"), n=("hit", "size"))
    return reliable
