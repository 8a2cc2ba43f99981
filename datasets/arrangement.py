"""What the tasks of a stream are and in which order they arrive: as written, or drawn."""

from dataclasses import replace
from typing import TypeVar

import torch

from datasets.config import SEED, WRITTEN, DataConfig
from utils.errors import UserError
from utils.seeding import generator

D = TypeVar("D", bound=DataConfig)


def drawn_order(number: int, count: int) -> list[int]:
    """The places of tasks, from 0, in the order that a number draws."""
    found: list[int] = torch.randperm(count, generator=generator(number, "task_order")).tolist()
    return found


def arranged(config: D, seed: int) -> D:
    """The configuration with the tasks of a run in the order in which they arrive, and with the classes that they have.

    The number n as the order gives that of `task_order: seed` with the seed n. UserError if classes of named tasks
    would be dealt anew.
    """
    tasks = list(config.tasks)
    if getattr(config.settings, "class_order", WRITTEN) == SEED:
        if named := [task.name for task in tasks if task.name]:
            raise UserError(
                f"{config.path}: class_order: seed deals the classes anew, so that the name {named[0]!r} would say "
                "nothing; leave the names of tasks out"
            )
        classes = list(dict.fromkeys(entry for task in tasks for entry in task.classes))
        order = torch.randperm(len(classes), generator=generator(seed, "class_order"))
        dealt = {entry: classes[place] for entry, place in zip(classes, order.tolist(), strict=True)}
        tasks = [replace(task, classes=tuple(dealt[entry] for entry in task.classes)) for task in tasks]
    if config.task_order != WRITTEN:
        number = seed if config.numbered_order is None else config.numbered_order
        tasks = [tasks[place] for place in drawn_order(number, len(tasks))]
    return replace(config, tasks=tuple(tasks))
