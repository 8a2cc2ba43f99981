"""Which tasks help each other: losses of single members of several runs, of tasks together and of each task alone."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import Normalize

from datasets import objectives
from datasets.arrays.scaling import ScaledNumbers
from records.configuration import comparable
from records.members import answering
from records.run import Run
from records.summary import signed
from reporting.drawing import DrawnFigure, heat_map, height
from reporting.groups import Group
from reporting.style import DIVERGING, empty_figure

COLUMNS = ["task", "with", "together", "alone", "difference", "members_together", "members_alone"]


def loss_affinity(runs: Sequence[Run]) -> pd.DataFrame:
    """How the loss on a task depends on what else a member was trained on, a row for each ordered pair of tasks.

    `together`: mean over the members of all runs that were trained on both tasks of their test loss on `task`, divided
    by the loss of the uninformed prediction; `alone`: over those trained on `task` and no other. A difference below 0
    means that `with` helps. Pairs without one kind of member are left out.
    """
    found = [row for run in runs for row in _members(run)]
    names, rows = runs[0].task_labels, []
    for i, task in enumerate(names, 1):
        alone = [ratio for number, trained, ratio in found if number == i and trained == {i}]
        for j, other in enumerate(names, 1):
            both = [ratio for number, trained, ratio in found if number == i and j in trained]
            if i != j and both and alone:
                together, single = float(np.mean(both)), float(np.mean(alone))
                rows.append((task, other, together, single, together - single, len(both), len(alone)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _members(run: Run) -> Iterator[tuple[int, frozenset[int], float]]:
    """Task, tasks that the member was trained on, and its test loss over that of the uninformed prediction."""
    name = run.config["objective"]
    # Predictions and targets are in the unit of the data, so that ScaledNumbers scores as RealNumbers does.
    kind = objectives.RealNumbers if name == ScaledNumbers.__name__ else getattr(objectives, name)
    objective: objectives.Objective = kind()
    for task, members in run.test_predictions.items():
        targets = torch.from_numpy(run.targets[task])
        for number, values in members.items():
            predictions = torch.from_numpy(values)
            loss = objective.evaluate(predictions, targets)["loss"].value
            uninformed = objective.uninformed_loss(predictions.shape[-1], targets)
            yield task, frozenset(run.members[number].tasks), loss / uninformed


def members_compared(groups: Sequence[Group]) -> list[Run]:
    """The finished runs whose members can be compared: several of them answer, and they have one network and recipe.

    Empty unless some members learned several tasks.
    """
    runs = [run for group in groups for run in group.runs.values() if run.finished and len(answering(run.members)) > 1]
    first = next((run for run in runs if any(len(member.tasks) > 1 for member in run.members)), None)
    if first is None:
        return []
    asked = comparable(first.config, ["net", "hp"])
    return [run for run in runs if comparable(run.config, ["net", "hp"]) == asked]


def affinity_over_runs(groups: Sequence[Group]) -> DrawnFigure | None:
    """Which tasks helped which, from the members of all runs; None if no members can be compared."""
    runs = members_compared(groups)
    data = loss_affinity(runs) if runs else pd.DataFrame(columns=COLUMNS)
    if data.empty:
        return None
    names = runs[0].task_labels
    values = np.full((len(names), len(names)), np.nan)
    for task, other, difference in zip(data.task, data["with"], data.difference, strict=True):
        values[names.index(task), names.index(other)] = 100 * difference  # short enough for the cells of ten tasks
    drawn, (axes,) = empty_figure(height(len(names)))
    bound = max(1.0, np.nanmax(np.abs(values)))
    bar = heat_map(axes, values, DIVERGING.reversed(), Normalize(-bound, bound), lambda value: signed(value, 1))
    bar.set_label("difference of loss, %")
    axes.set(xlabel="trained together with task", ylabel="loss on task")
    caption = (
        "Which tasks help each other. Row i, column j: test loss on task i, divided by that of the uninformed "
        "prediction, of single members that were trained on task j too, minus that of members trained on task i alone; "
        "in per cent; means over the members of all runs with the same network and recipe. Below 0: task j helps task "
        "i."
    )
    return DrawnFigure("affinity_over_runs", "Task affinity", caption, drawn, data)
