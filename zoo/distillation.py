"""Distillation of a zoo into one network, with the training examples that its run has kept.

stream, memory -> the examples kept -> the zoo's predictions on them -> a stream whose targets are probabilities
that stream -> Joint -> the student: one network with a head per task

Source: Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network", arXiv 1503.02531 (2015).
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import CrossEntropy
from datasets.task import Examples, Table, Task, TaskStream
from methods import build_method
from methods.base import Context
from net import count_parameters
from utils.compute import Compute
from utils.errors import UserError
from zoo.saved import Zoo

if TYPE_CHECKING:
    import pandas as pd

STUDENT = "student"
# Chosen by docs/measure_using.py.
EPOCHS = 4  # times those of a member
LABELS = 0.5  # weight of the true class in a target; the zoo's prediction has the rest
_CHUNK = 1024  # images that the zoo predicts at once
_TIMED_IMAGES, _TIMES = 1000, 11
# Of a comparison of zoos, with their format.
COLUMNS = {"accuracy": "{:.4f}".format, "parameters a task": "{:,.0f}".format, "parameters": "{:,}".format,
           "ms an image": "{:.4f}".format}  # fmt: skip


class Imitation(CrossEntropy):
    """Cross-entropy with target probabilities, [N, C], padded with 0 for narrower heads; scores need class numbers."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logs = outputs.float().log_softmax(-1)
        return -(targets * logs.masked_fill(targets == 0, 0.0)).sum(-1).mean()  # 0 log 0 = 0


def kept_examples(zoo: Zoo, stream: TaskStream) -> dict[int, Examples]:
    """By task, the examples in the replay memory at the end of a run, drawn again from its stream (UserError: none)."""
    config = zoo.config
    if config.data.forgotten and config.memory is not None:
        raise UserError(
            f"{zoo.path} shared --memory {config.memory} with a task that was forgotten: which examples it kept of the "
            "others is not known any more"
        )
    memory = build_method(Context(config, stream.spec, Compute(torch.device("cpu")))).memory
    memory.revisit(list(stream.continual() if config.continual else stream.multitask(1)))
    lacking = [task for task in stream.tasks if task.id not in memory.tasks]
    if lacking:
        what = f"of task {lacking[0].id} {lacking[0].name!r}" if memory.tasks else f"(--method {config.method})"
        raise UserError(f"{zoo.path} has kept no training examples {what}, so that a student has none to learn from")
    return {task: memory.examples(task) for task in memory.tasks}


def lesson(zoo: Zoo, stream: TaskStream, labels: float = LABELS) -> TaskStream:
    """The run's stream with the examples that were kept, and soft targets for them.

    A target is (1 - labels) p + labels y: p the zoo's probabilities for the image un-augmented, y the true class.
    """
    kept = kept_examples(zoo, stream)
    if untaught := [task for task in stream.tasks if task.id not in zoo.combinations]:
        raise UserError(f"no member of {zoo.path} has learned task {untaught[0].id} {untaught[0].name!r}")
    widest = max(task.num_outputs for task in stream.tasks)

    def taught(task: Task) -> Task:
        examples = kept[task.id]
        predicted = torch.cat([zoo.predict(images, task.id).probabilities for images in stored_inputs(examples)])
        targets = predicted.lerp(F.one_hot(examples.targets, predicted.shape[1]).to(predicted), labels)
        soft = replace(examples, targets=F.pad(targets, (0, widest - targets.shape[1])))
        return replace(task, train=Table(soft)).with_splits(train=examples)

    return TaskStream(replace(stream.spec, objective=Imitation()), tuple(map(taught, stream.tasks)))


def stored_inputs(examples: Examples) -> list[Tensor]:
    """The images of examples as stored, in parts [n, C, H, W]."""
    data = Mixture([(0, examples)])
    return [data.inputs(slice(start, start + _CHUNK)) for start in range(0, len(data), _CHUNK)]


def compared(zoos: Mapping[str, Zoo], task: Task) -> "pd.DataFrame":
    """How accurate zoos of the same tasks are, and what they cost, a line a zoo.

    Columns: accuracy on the test examples, mean over tasks; parameters used to answer a task, mean over tasks (heads of
    other tasks do not count); parameters of all members that answer some task; milliseconds an image of `task`.
    """
    import pandas as pd  # slow to import

    images = torch.cat(stored_inputs(task.test.subset(torch.arange(min(len(task.test), _TIMED_IMAGES)))))
    times: dict[str, list[float]] = {name: [] for name in zoos}
    for _ in range(1 + _TIMES):
        for name, zoo in zoos.items():  # in turn, so that other load on the machine slows all of them
            begin = time.perf_counter()
            zoo.predict(images, task.id).chosen.cpu()  # waits for the device
            times[name].append(1000 * (time.perf_counter() - begin) / len(images))
    found = {}
    for name, zoo in zoos.items():
        asked = {task: [member for member in zoo.members if member.number in one.members]
                 for task, one in zoo.combinations.items()}  # fmt: skip
        nets = [(task, zoo.net(member)[0]) for task, members in asked.items() for member in members]
        answering = sum(count_parameters(net.trunk) + net.head_parameters(task) for task, net in nets)
        sizes = {member.number: member.parameters for members in asked.values() for member in members}
        accuracies = [scores["accuracy"].value for scores in zoo.test_scores().values()]
        median = statistics.median(times[name][1:])  # the first time is for warming up
        found[name] = statistics.mean(accuracies), answering / len(asked), sum(sizes.values()), median
    return pd.DataFrame.from_dict(found, orient="index", columns=list(COLUMNS))


def middle_task(zoo: Zoo) -> int:
    """The task with the median number of members."""
    ordered = sorted(zoo.combinations, key=lambda task: len(zoo.combinations[task].members))
    return ordered[len(ordered) // 2]
