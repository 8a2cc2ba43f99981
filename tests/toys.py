"""Toy streams: a few 8x8 images of two classes per task, as finite tables or drawn fresh every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from datasets.images.stream import ImagePreprocess
from datasets.objectives import CrossEntropy
from datasets.task import Episode, Examples, Generator, StreamSpec, Table, Task, TaskStream
from methods import build_method, with_settings
from methods.base import Learned, Method, Setting
from methods.memory.audit import Budget
from methods.memory.replay import ReplayMemory
from training.monitor import Monitor
from utils.compute import Compute
from utils.config import DatasetConfig, HyperConfig, RunConfig, TaskConfig
from utils.seeding import generator

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
class Fresh(Generator):
    """A train source that draws new examples in every epoch."""

    task: int
    classes: int
    epoch_size: int

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        return table(*draw(self.task, self.classes, n, rng))


def toy_stream(tasks: int = 3, fresh: bool = False, classes: int = 2, count: int = 24, seed: int = 0) -> TaskStream:
    """Tasks 1, 2, ...; task t has `classes` classes, one more in every second task."""
    made = []
    for number in range(1, tasks + 1):
        rng = generator(seed, "toy", number)
        width = classes + number % 2
        kept = table(*draw(number, width, count, rng))
        source = Fresh(number, width, count) if fresh else Table(kept)
        test = table(*draw(number, width, 40, rng))
        splits = {"train": kept, "test": test}
        made.append(Task(number, f"task {number}", width, source, splits, tuple("abcdefgh"[:width])))
    return TaskStream(StreamSpec("toy", SHAPE, CrossEntropy(), ImagePreprocess(1, flip=False)), tuple(made))


def toy_config(**options: object) -> RunConfig:
    """Two epochs of batches of 8, continual unless said otherwise."""
    hyper = HyperConfig("conv", epochs=2, batch=8, dropout=0.0)
    dataset = DatasetConfig("toy.yaml", "toy", (TaskConfig((0, 1)),))
    values: dict[str, object] = {"continual": True, "data_dir": Path("none"), **options}
    settings = values.pop("settings", {})
    config = with_settings(RunConfig(dataset, hyper, **values))  # type: ignore[arg-type]
    return replace(config, settings={**config.settings, **settings})  # type: ignore[dict-item]


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
