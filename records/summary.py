"""summary.json and the final table: the figures of a run, computed from its measurements."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.objectives import ACCURACY
from evaluation import metrics
from evaluation.measurements import (
    ANYTIME,
    ROUTED_CLASS,
    ROUTED_DOMAIN,
    ROUTED_DOMAIN_SUM,
    TASK_IDENTIFICATION,
    ZERO_SHOT,
    Measurement,
    mean_over_tasks,
)
from methods.selection import relative_entropy
from records.configuration import obstacle
from records.directory import holds_run, read_config
from records.manifest import SUMMARY, Manifest, checked, read_manifest, reading
from records.monitor import EpisodeFacts
from utils.errors import UserError, one_line


def key_of(key: str, metric: str) -> str:
    """The key in summary.json of a figure, with the name of the main metric in place of "acc"."""
    return key if metric == ACCURACY.name else re.sub(r"(?<![a-z])acc(?![a-z])", metric, key)


def figure(summary: Mapping[str, Any], key: str) -> Any:
    """The figure "per_task_acc" or another one of a summary, for its main metric; KeyError if there is none."""
    return summary[key_of(key, summary["metric"])]


def by_task(summary: Mapping[str, Any], key: str) -> dict[int, float] | None:
    """The figure "per_task_acc" or another one by number of the task; None if the run does not have it."""
    values = figure(summary, key)
    return None if values is None else dict(zip(summary["task_numbers"], values, strict=True))


def signed(value: float, digits: int = 4) -> str:
    """A change with its sign; none before a zero but +."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def direction(summary: Mapping[str, Any]) -> str:
    """Which values of the main metric are better, for people."""
    return "higher is better" if summary["higher_is_better"] else "lower is better"


def summarize(
    rows: Sequence[Measurement], continual: bool, isolated: Mapping[int, float] | None, higher_is_better: bool = True
) -> dict[str, Any]:
    """The metrics of a run, by definition id (evaluation/metrics.py); None where one is not defined.

    R holds the main metric of the stream. If that is not the accuracy, figures named after the accuracy are None, and
    the same ones stand under the name of the metric: per_task_rmse for per_task_acc. If lower values are better, the
    figures that compare values of R (bwt, forgetting_chaudhry, fwt_isolated, fwt_zero_shot, gain_isolated) are computed
    from -R, so that positive transfer and gain are good, and positive forgetting is bad, for any metric.

    Args:
        continual: whether each task has its own episode; without, figures that refer to this episode are None.
        isolated: the main metric of a network trained on each task alone, by number of the task.
    """
    test = [row for row in rows if row.is_test and row.episode > 0]
    last = [row for row in rows if row.episode == test[-1].episode]
    untrained = {row.task: row.main for row in rows if row.episode == 0}
    names = {row.task: row.task_name for row in sorted(test, key=lambda row: row.task)}
    R = matrix_of(rows)
    sign = 1.0 if higher_is_better else -1.0
    compared = sign * R
    first = sign * np.array([untrained.get(task, np.nan) for task in names])
    alone = None if isolated is None else sign * np.array([isolated[task] for task in names])
    named = {
        "avg_acc_final": metrics.avg_acc_final(R),
        "avg_incremental_acc": metrics.avg_incremental_acc(R),
        "learning_acc": metrics.learning_acc(R) if continual else None,
        "routed_class_acc": mean_over_tasks(last, ROUTED_CLASS),
        "routed_domain_acc": mean_over_tasks(last, ROUTED_DOMAIN),
        "routed_domain_sum_acc": mean_over_tasks(last, ROUTED_DOMAIN_SUM),
        "task_identification_acc": mean_over_tasks(last, TASK_IDENTIFICATION),
        "worst_task_acc": sign * metrics.worst_task_acc(compared),
        **_on_the_way(rows if continual else [], sign),
        "per_task_acc": R[-1].tolist(),
        "per_task_learning_acc": R.diagonal().tolist() if continual else None,
        "per_task_untrained_acc": [untrained.get(task) for task in names],
        "per_task_isolated_acc": None if alone is None else (sign * alone).tolist(),
    }
    metric = test[-1].metric
    return {
        "metric": metric,
        "scenario": test[-1].scenario,
        "higher_is_better": higher_is_better,
        "task_numbers": list(names),
        "task_names": list(names.values()),
        **dict.fromkeys(named),
        **{key_of(key, metric): value for key, value in named.items()},
        "bwt": _defined(metrics.bwt(compared)) if continual else None,
        "forgetting_chaudhry": _defined(metrics.forgetting_chaudhry(compared)) if continual else None,
        "gain_isolated": None if alone is None else metrics.gain_isolated(compared, alone),
        "fwt_zero_shot": _defined(metrics.fwt_zero_shot(sign * _with_next(R, rows), first)) if continual else None,
        "fwt_isolated": None if alone is None or not continual else _defined(metrics.fwt_isolated(compared, alone)),
    }


def under_way(rows: Sequence[Measurement], higher_is_better: bool) -> dict[str, Any]:
    """What is known of a run whose first episode is not complete."""
    names = {row.task: row.task_name for row in rows}
    first = next(row for row in rows if row.scenario == ANYTIME)
    return {
        "metric": first.metric,
        "higher_is_better": higher_is_better,
        "task_numbers": list(names),
        "task_names": list(names.values()),
    }


def costs(episodes: Sequence[EpisodeFacts]) -> dict[str, Any]:
    """The training cost of a run, by key of summary.json."""
    images, seconds = sum(facts.images for facts in episodes), sum(facts.train_seconds for facts in episodes)
    return {
        "images_trained": images,
        "sample_gradients": sum(facts.sample_gradients for facts in episodes),
        "train_seconds": seconds,
        "images_per_second": images / seconds if seconds else None,
    }


def selection_entropy(episodes: Sequence[EpisodeFacts]) -> float | None:
    """Mean relative entropy of the sampling weights over the episodes in which some, not all past tasks were drawn.

    1: all past tasks were equally likely, 0: one was certain; None if there is no such episode.
    """
    drawn = [facts.sampling_weights.keys() & set(facts.tasks) for facts in episodes]
    chosen = [
        facts.sampling_weights for facts, some in zip(episodes, drawn, strict=True)
        if 0 < len(some) < len(facts.sampling_weights)
    ]  # fmt: skip
    if not chosen:
        return None
    # From the digits that episodes.csv has, as a resumed run reads them there.
    written = ([float(f"{weight:.6g}") for weight in weights.values()] for weights in chosen)
    return float(np.mean([relative_entropy(weights) for weights in written]))


def matrix_of(rows: Sequence[Measurement]) -> metrics.Matrix:
    """R, [episodes, tasks], of the main metric; tasks in the order of their numbers, which may have gaps."""
    test = [row for row in rows if row.is_test and row.episode > 0]
    place = {task: number for number, task in enumerate(sorted({row.task for row in test}), 1)}
    entries = [(row.episode, place[row.task], row.main) for row in test]
    return metrics.accuracy_matrix(entries, max(row.episode for row in test), len(place))


def curves_of(rows: Sequence[Measurement]) -> tuple[list[int], metrics.Matrix, list[int]]:
    """What was measured on the way, with --evaluate_every.

    Steps of the run at M moments; the main metric there on each of the T tasks, [M, T], NaN where not measured; and
    the last moment of each episode.
    """
    found = [row for row in rows if row.scenario == ANYTIME]
    moments = {place: number for number, place in enumerate(sorted({(row.episode, row.step) for row in found}))}
    entries = [(moments[row.episode, row.step] + 1, row.task, row.main) for row in found]
    values = metrics.accuracy_matrix(entries, len(moments), max((row.task for row in found), default=0))
    ends = {episode: number for (episode, _), number in moments.items()}
    return [step for _, step in moments], values, list(ends.values())


def examples_to(
    rows: Sequence[Measurement], level: float, *, continual: bool, higher_is_better: bool = True
) -> list[tuple[int, int, int | None]]:
    """Episode, task, and the examples trained on in it before the main metric on the task was at least this good.

    None if it never was. Without an episode for each task (`continual` false) all count, from the first one on. A score
    of the scenario zero-shot that is good enough counts as 0 examples.
    """
    asked = [row for row in rows if row.scenario == ANYTIME and row.split == "test" and not row.slice]
    own: dict[int, int] = {}
    for row in asked:
        own.setdefault(row.task, row.episode)
    sign, found = 1.0 if higher_is_better else -1.0, list[tuple[int, int, int | None]]()
    for task, episode in sorted(own.items()):
        begin = max((row.examples for row in rows if row.episode < episode), default=0)
        before = [row for row in rows if row.scenario == ZERO_SHOT and row.episode == episode - 1]
        within = [row for row in asked if not continual or row.episode == episode]
        good = [
            row.examples - begin for row in [*before, *within] if row.task == task and sign * row.main >= sign * level
        ]
        found.append((episode, task, min(good, default=None)))
    return found


def _on_the_way(rows: Sequence[Measurement], sign: float) -> dict[str, float | None]:
    """The figures of --evaluate_every; None without it."""
    steps, values, ends = curves_of(rows)
    figures = {"min_acc": metrics.min_acc, "worst_case_acc": metrics.worst_case_acc}
    return {key: _defined(sign * of(sign * values, ends)) if steps else None for key, of in figures.items()}


def _with_next(R: metrics.Matrix, rows: Sequence[Measurement]) -> metrics.Matrix:
    """R of a continual run, with the main metric on each task before it was learned where it was measured."""
    R = R.copy()
    for row in rows:
        if row.scenario == ZERO_SHOT and row.task <= R.shape[1]:
            R[row.episode - 1, row.task - 1] = row.main
    return R


def read_summary(path: Path, manifest: Manifest | None = None) -> dict[str, Any] | None:
    """The content of summary.json; None if the run is not finished. `manifest`: if it was read already."""
    manifest = manifest or read_manifest(path)
    if manifest is None or not manifest.finished:
        return None
    with reading(path, SUMMARY):
        return dict(json.loads(checked(path, manifest, SUMMARY)))


def load_isolated(path: Path, config: Mapping[str, Any]) -> dict[int, float]:
    """The final main metric of a finished run of --method isolated, by number of the task.

    `config`, config.yaml of the run that is compared with it, must have the same data, network, recipe and seed.
    """
    summary = read_summary(path) if holds_run(path) else None
    if not summary:
        raise UserError(f"--isolated {path} is not the directory of a finished run")
    if (method := summary["method"]) != "isolated":
        raise UserError(f"--isolated {path} is a run of --method {method}; it must be one of --method isolated")
    if (key := obstacle(read_config(path), config)) is not None:
        raise UserError(
            f"--isolated {path} was run with another {key!r} (see its config.yaml); run it with the same options"
        )
    with reading(path, SUMMARY):
        found = by_task(summary, "per_task_acc") or {}
        if not all(type(number) is int and type(value) is float for number, value in found.items()):
            raise ValueError("there is not a number and a figure for each task")
        return found


def final_table(summary: Mapping[str, Any]) -> str:
    """The main metric per task, right after learning it and at the end, its averages, and the transfer, for people."""
    shown = {"right after": "per_task_learning_acc", "at the end": "per_task_acc", "isolated": "per_task_isolated_acc"}
    columns = {title: values for title, key in shown.items() if (values := figure(summary, key)) is not None}
    pairs = zip(summary["task_numbers"], summary["task_names"], strict=True)
    names = [one_line(f"{number} {name}") for number, name in pairs]
    width = max(len("task"), len("average"), *map(len, names))
    lines = [""]
    change, metric = "change", summary["metric"]
    if metric != ACCURACY.name:
        lines += [f"{metric} on the test examples, {direction(summary)}", ""]
        change = "change" if summary["higher_is_better"] else f"fall of the {metric}"
    lines += [f"{'task':<{width}}" + "".join(f"  {title:>11}" for title in columns)]
    for i, name in enumerate(names):
        lines.append(f"{name:<{width}}" + "".join(f"  {values[i]:>11.4f}" for values in columns.values()))
    lines.append(f"{'average':<{width}}" + "".join(f"  {np.mean(values):>11.4f}" for values in columns.values()))
    lines.append("")
    if (told := summary["routed_class_acc"]) is not None:
        identified, same = summary["task_identification_acc"], summary["routed_domain_acc"]
        summed = summary["routed_domain_sum_acc"]
        domain = "" if same is None else f", class alone {same:.4f}, by the sum over tasks {summed:.4f}"
        trained = f"task and class, of heads trained with the task told; task {identified:.4f}{domain}"
        lines.append(f"task not told      {told:.4f}  {trained}")
    if (lowest := summary[key_of("min_acc", metric)]) is not None:
        worst = f"with the newest {summary[key_of('worst_case_acc', metric)]:.4f} (WC-ACC)"
        lines.append(f"while learning     {lowest:.4f}  worst on each past task after its episode (min-ACC); {worst}")
    if summary["bwt"] is not None:
        lines.append(f"backward transfer  {signed(summary['bwt'])}  {change} on a task from its own episode to the end")
    if summary["fwt_isolated"] is not None:
        lines.append(f"forward transfer   {signed(summary['fwt_isolated'])}  right after its episode, against isolated")
    return "\n".join(lines)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
