"""Scenarios: what tells a network the task of an input, and which outputs tasks share.

    task     the task is told, and each task has a head of its own (streams may say otherwise, see StreamSpec.heads)
    domain   the task is not told; all tasks have as many outputs, those of one shared head
    class    the task is not told; one head has an output for each class seen so far

Source: van de Ven, Tuytelaars & Tolias, "Three types of incremental learning", 2022.
"""

from dataclasses import replace

import torch
from torch import Tensor

from datasets.task import TRAIN, Examples, Table, Task, TaskStream
from utils.errors import UserError
from utils.seeding import generator

SCENARIOS = ("task", "domain", "class")


def in_scenario(stream: TaskStream, scenario: str) -> TaskStream:
    """The same tasks with the heads and targets of a scenario; UserError if they do not fit it."""
    if scenario == "task":
        return stream
    spec = stream.spec
    if scenario == "class":
        if spec.objective.energy(torch.zeros(1, 2)) is None or spec.heads != "task":
            raise UserError("--scenario class needs tasks of classes, with a head for each task otherwise")
        spec = replace(spec, heads="growing", scenario=scenario)
        return replace(stream, spec=spec, tasks=_with_own_outputs(stream), sums={})
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


def blurred(stream: TaskStream, share: float, seed: int) -> TaskStream:
    """A stream without sharp boundaries: a share of each task's training examples arrives with its neighbours.

    Half of the share arrives with the task before and half with the task after, drawn by the seed; the first and the
    last task give to one neighbour alone. Test examples stay where they are. UserError if tasks do not share a head and
    a way to see the images.
    """
    tables = [task.train.examples for task in stream.tasks if isinstance(task.train, Table) and task.train.repeat == 1]
    if stream.spec.heads == "task" or len(tables) < len(stream.tasks):
        raise UserError("data.blur needs --scenario domain or class, and tasks with tables of examples")
    if any(table.view is not None or table.store is not tables[0].store for table in tables):
        raise UserError("data.blur needs tasks that are sets of classes of one data set, not rotations or permutations")
    stays, before, after = list[Examples](), list[Examples](), list[Examples]()  # of each task, by where they arrive
    for task, table in zip(stream.tasks, tables, strict=True):
        order = torch.randperm(len(table), generator=generator(seed, "blur", task.id))
        neighbours = torch.tensor([task is not stream.tasks[0], task is not stream.tasks[-1]])
        parts = order.tensor_split((round(share / 2 * len(table)) * neighbours).cumsum(0).tolist())
        for found, part in zip((before, after, stays), parts, strict=True):
            found.append(table.subset(part.sort().values))
    empty = tables[0].subset(torch.zeros(0, dtype=torch.long))
    arriving = zip(stays, [empty, *after[:-1]], [*before[1:], empty], strict=True)
    return replace(stream, tasks=tuple(map(_with_table, stream.tasks, map(_joined, arriving))))


def _joined(parts: tuple[Examples, ...]) -> Examples:
    """Examples of one store as one."""
    rows, targets = (torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "targets"))
    return replace(parts[0], rows=rows, targets=targets)


def _with_table(task: Task, examples: Examples) -> Task:
    """A task that is trained on other examples, with outputs for all classes among them."""
    width = task.num_outputs if not task.classes else max(task.num_outputs, int(examples.targets.max()) + 1)
    return replace(task, num_outputs=width, train=Table(examples), splits={**task.splits, TRAIN: examples})
