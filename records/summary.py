"""The figures of a finished run, from its measurements: summary.json and the final table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import metrics
from evaluation.measurements import CLASS_INCREMENTAL, DOMAIN_INCREMENTAL, TASK_IDENTIFICATION, Row, mean_accuracy
from records.configuration import comparable
from records.directory import read_config, read_summary
from records.manifest import remedy
from utils.errors import UserError
from utils.settings import first_difference


def summarize(rows: Sequence[Row], continual: bool, isolated: Sequence[float] | None) -> dict[str, Any]:
    """The metrics of a run, by definition id (evaluation/metrics.py); None where one is not defined.

    Args:
        rows: all measurements.
        continual: a run in the multi-task mode has no episode of its own for each task, so what compares
            with that episode is None.
        isolated: accuracy of a network trained on each task alone.
    """
    test = [row for row in rows if row.is_test and row.episode > 0]
    last = [row for row in rows if row.episode == test[-1].episode]
    untrained = {row.task: row.accuracy for row in rows if row.episode == 0}
    names = {row.task: row.task_name for row in test}
    place = {task: number for number, task in enumerate(sorted(names), 1)}  # a task may have been forgotten
    R = metrics.accuracy_matrix(
        [(r.episode, place[r.task], r.accuracy) for r in test], max(r.episode for r in test), len(names)
    )
    own = R.diagonal() if continual else None
    first = np.array([untrained.get(task, np.nan) for task in sorted(names)])
    reference = None if isolated is None else np.array(isolated)
    return {
        "task_numbers": sorted(names),
        "task_names": [names[task] for task in sorted(names)],
        "avg_acc_final": metrics.avg_acc_final(R),
        "avg_incremental_acc": metrics.avg_incremental_acc(R),
        "bwt": _defined(metrics.bwt(R)) if continual else None,
        "forgetting_chaudhry": _defined(metrics.forgetting_chaudhry(R)) if continual else None,
        "learning_acc": metrics.learning_acc(R) if continual else None,
        "class_incremental_acc": mean_accuracy(last, CLASS_INCREMENTAL),
        "domain_incremental_acc": mean_accuracy(last, DOMAIN_INCREMENTAL),
        "task_identification_acc": mean_accuracy(last, TASK_IDENTIFICATION),
        "worst_task_acc": metrics.worst_task_acc(R),
        "per_task_acc": R[-1].tolist(),
        "per_task_learning_acc": None if own is None else own.tolist(),
        "per_task_untrained_acc": [untrained.get(task) for task in sorted(names)],
        "per_task_isolated_acc": None if isolated is None else list(isolated),
        "gain_isolated": None if reference is None else metrics.gain_isolated(R, reference),
        "fwt_zero_shot": _defined(metrics.fwt_zero_shot(R, first)) if continual else None,
        "fwt_isolated": None if reference is None or not continual else _defined(metrics.fwt_isolated(R, reference)),
    }


def load_isolated(path: Path, config: Mapping[str, Any]) -> list[float]:
    """Final accuracy per task of a finished Isolated run of the same stream.

    Args:
        path: its run directory.
        config: resolved configuration of the run that is compared with it.

    Raises:
        UserError: not a finished run of --method isolated, or one of another stream or recipe.
    """
    try:
        summary, reference = read_summary(path), read_config(path)
        if summary is None:
            raise ValueError("it has no summary.json yet")
        accuracies, method = [float(accuracy) for accuracy in summary["per_task_acc"]], summary["method"]
        theirs = comparable(reference) if method == "isolated" else {}
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--isolated {path} is not the directory of a finished run ({error})") from None
    if method != "isolated":
        raise UserError(f"--isolated {path} is a run of --method {method}; it must be one of --method isolated")
    if (key := first_difference(theirs, comparable(config))) is not None:
        raise UserError(
            f"--isolated {path} was run with another {key!r} (see its config.yaml); run it with the same options"
        )
    return accuracies


def final_table(summary: Mapping[str, Any]) -> str:
    """Accuracy per task right after it was learned and at the end, averages, backward and forward transfer."""
    columns = {"right after": summary["per_task_learning_acc"], "at the end": summary["per_task_acc"]}
    if summary["per_task_isolated_acc"] is not None:
        columns["isolated"] = summary["per_task_isolated_acc"]
    columns = {title: values for title, values in columns.items() if values is not None}
    numbers = summary.get("task_numbers") or range(1, 1 + len(summary["task_names"]))
    names = [f"{number} {name}" for number, name in zip(numbers, summary["task_names"], strict=True)]
    width = max(len("task"), len("average"), *map(len, names))
    lines = ["", f"{'task':<{width}}" + "".join(f"  {title:>11}" for title in columns)]
    for i, name in enumerate(names):
        lines.append(f"{name:<{width}}" + "".join(f"  {values[i]:>11.4f}" for values in columns.values()))
    lines.append(f"{'average':<{width}}" + "".join(f"  {np.mean(values):>11.4f}" for values in columns.values()))
    lines.append("")
    if (told := summary.get("class_incremental_acc")) is not None:
        identified, same = summary["task_identification_acc"], summary.get("domain_incremental_acc")
        domain = "" if same is None else f", class alone {same:.4f}"
        lines.append(f"without the task   {told:.4f}  class-incremental; task identified {identified:.4f}{domain}")
    if summary["bwt"] is not None:
        lines.append(f"backward transfer  {summary['bwt']:+.4f}  change on a task from its own episode to the end")
    if summary["fwt_isolated"] is not None:
        lines.append(f"forward transfer   {summary['fwt_isolated']:+.4f}  right after its episode, against isolated")
    return "\n".join(lines)


def saved_table(path: Path, summary: Mapping[str, Any]) -> str:
    """The final table of a run that was finished before.

    Raises:
        UserError: its summary.json has not the figures.
    """
    try:
        return final_table(summary)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f"{path / 'summary.json'} is damaged ({error}); {remedy('summary.json')}") from None


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
