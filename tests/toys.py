"""Toy streams: a few 8x8 images of two classes per task, as finite tables or drawn fresh every epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.config import DataConfig, TaskConfig
from datasets.images.stream import ImagePreprocess
from datasets.objectives import CrossEntropy
from datasets.task import Episode, Examples, StreamSpec, Table, Task, TaskStream
from methods import METHODS, build_method
from methods.base import Learned, Method, Setting
from methods.config import RunConfig
from methods.memory.audit import Budget
from methods.memory.replay import ReplayMemory
from net import configured
from records.configuration import default_method_config, method_settings
from training.monitor import Monitor
from training.recipe import Recipe
from utils.compute import Compute
from utils.seeding import generator
from utils.settings import declarations, read

CPU = Compute(torch.device("cpu"))
SHAPE = (1, 8, 8)


def draw(task: int, classes: int, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise with a bright row: class c of task t shines in row (c + t) mod 8."""
    targets = torch.arange(count) % classes
    images = torch.randint(0, 100, (count, *SHAPE), generator=rng, dtype=torch.uint8)
    images[torch.arange(count), 0, (targets + task) % 8] += 60
    return images, targets


def table(images: Tensor, targets: Tensor) -> Examples:
    return Examples(images, torch.arange(len(images)), targets)


@dataclass(frozen=True)
class Fresh:
    """A train source that draws new examples in every epoch."""

    task: int
    classes: int
    count: int

    def epoch(self, rng: torch.Generator) -> Examples:
        return table(*draw(self.task, self.classes, self.count, rng))


def toy_stream(tasks: int = 3, fresh: bool = False, classes: int = 2, count: int = 24, seed: int = 0) -> TaskStream:
    """Tasks 1, 2, ...; task t has `classes` classes, one more in every second task."""
    made = []
    for number in range(1, tasks + 1):
        rng = generator(seed, "toy", number)
        width = classes + number % 2
        kept = table(*draw(number, width, count, rng))
        source = Fresh(number, width, count) if fresh else Table(kept)
        test = table(*draw(number, width, 40, rng))
        made.append(Task(number, f"task {number}", tuple("abcdefgh"[:width]), source, kept, test))
    return TaskStream(StreamSpec("toy", SHAPE, CrossEntropy(), ImagePreprocess(1, flip=False)), tuple(made))


def toy_config(
    settings: Mapping[str, object] | None = None,
    hp: Mapping[str, object] | None = None,
    data: Mapping[str, object] | None = None,
    **options: object,
) -> RunConfig:
    """Two epochs of batches of 8, continual unless said otherwise; shipped settings but for `settings`.

    Args:
        hp, data: fields of these parts. options: the other fields of RunConfig.
    """
    recipe: dict[str, Any] = {"epochs": 2, "batch": 8, "augment": True, **(hp or {})}
    values: dict[str, Any] = {"continual": True, "net": configured("conv", dropout=0.0), **options}
    data_values: dict[str, Any] = {"data_dir": Path("none"), **(data or {})}
    config = RunConfig(
        DataConfig("toy", (TaskConfig((0, 1)),), path="toy.yaml", **data_values), hp=Recipe(**recipe), **values
    )
    known = METHODS[config.method].Settings
    shipped: dict[str, object] = {}
    if declarations(known):
        shipped = method_settings(config.method, default_method_config(config.method), config.stream)
    return replace(config, settings=read(known, config.method, {**shipped, **(settings or {})}))


def filled(budget: Budget, tasks: Sequence[Task], seed: int = 0, reservoir: bool = False) -> ReplayMemory:
    """A replay memory that these tasks have arrived at, one after the other."""
    memory = ReplayMemory(budget, seed, reservoir)
    for number, task in enumerate(tasks, 1):
        with memory.auditor.lending(Episode(number, (task,))) as episode:
            memory.add(episode.new[0])
    return memory


def run_toy(
    config: RunConfig, stream: TaskStream, episodes: int | None = None
) -> tuple[Method, list[Learned], list[dict[int, Tensor]]]:
    """Learn the whole stream or its first episodes; the predictions on every task seen, after every episode."""
    method = build_method(Setting(config, stream.spec, CPU))
    rounds = config.rounds or len(stream.tasks)
    every = stream.continual() if config.continual else stream.multitask(rounds)
    history, predictions = [], []
    for episode in islice(every, episodes):
        history.append(method.learn(episode, Monitor()))
        seen = stream.tasks[: episode.number] if config.continual else stream.tasks
        predictions.append({task.id: method.predict(task).clone() for task in seen})
    return method, history, predictions
