"""Scenarios: what tells a network the task of an input, and which outputs tasks share.

    task     the task is told, and each task has a head of its own (streams may say otherwise, see StreamSpec.heads)
    domain   the task is not told; all tasks have as many outputs, those of one shared head
    class    the task is not told; one head has an output for each class seen so far

Source: van de Ven, Tuytelaars & Tolias, "Three types of incremental learning", 2022.
"""

from dataclasses import replace

import torch
from torch import Tensor

from datasets.task import Examples, Table, Task, TaskStream
from utils.errors import UserError

SCENARIOS = ("task", "domain", "class")


def in_scenario(stream: TaskStream, scenario: str) -> TaskStream:
    """The same tasks with the heads and targets of a scenario; UserError if they do not fit it."""
    if scenario == "task":
        return stream
    spec = stream.spec
    if scenario == "class":
        if spec.objective.energy(torch.zeros(1, 2)) is None or spec.heads != "task":
            raise UserError("--scenario class needs tasks of classes, with a head for each task otherwise")
        return TaskStream(replace(spec, heads="growing", scenario=scenario), _with_own_outputs(stream), stream.notice)
    widths = sorted({task.num_outputs for task in stream.tasks})
    if len(widths) > 1:
        raise UserError(f"--scenario domain needs tasks with as many outputs; these have {widths}")
    heads = "shared" if spec.heads == "task" else spec.heads
    return replace(stream, spec=replace(spec, heads=heads, scenario=scenario))


def _with_own_outputs(stream: TaskStream) -> tuple[Task, ...]:
    """Tasks whose targets number the classes of the stream in the order in which they are first seen.

    Classes of the same name are one class, unless all tasks have the same ones: then, as in Permuted-MNIST, each task
    has classes of its own. A task has outputs for its classes and those of earlier tasks, `classes` names all.
    """
    same = len(stream.tasks) > 1 and len({task.output_names for task in stream.tasks}) == 1
    unlike = len({task.name for task in stream.tasks}) == len(stream.tasks)
    known: dict[str, int] = {}  # class -> output
    numbers, widths = [], []
    for task in stream.tasks:
        suffix = f" ({task.name if unlike else f'task {task.id}'})" if same else ""
        names = [name + suffix for name in task.output_names]
        numbers.append(torch.tensor([known.setdefault(name, len(known)) for name in names]))
        widths.append(len(known))
    rows = zip(stream.tasks, numbers, widths, strict=True)
    return tuple(_renumbered(task, number, width, tuple(known)) for task, number, width in rows)


def _renumbered(task: Task, numbers: Tensor, width: int, classes: tuple[str, ...]) -> Task:
    """A task whose class c has become the class numbers[c] of `classes`, of which the first `width` are known."""
    if not isinstance(task.train, Table):
        raise UserError("--scenario class needs tables of examples; this stream draws them without end")

    def changed(examples: Examples) -> Examples:
        return replace(examples, targets=numbers.to(examples.targets.device)[examples.targets])

    splits = {name: changed(examples) for name, examples in task.splits.items()}
    train = replace(task.train, examples=changed(task.train.examples))
    return replace(task, num_outputs=width, train=train, splits=splits, classes=classes)
