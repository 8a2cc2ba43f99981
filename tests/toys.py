"""Toy streams: a few 8x8 images of two classes per task, as finite tables or drawn fresh every epoch; tokens; numbers.

What a stream of tokens or of numbers needs is here in its smallest form: an objective, a generator, a trunk.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.config import DataConfig, TaskConfig
from datasets.images.stream import ImagePreprocess
from datasets.objectives import CrossEntropy, RealNumbers, Tokens
from datasets.task import Episode, Examples, Generator, Preprocess, StreamSpec, Table, Task, TaskStream
from evaluation.members import Learned
from methods import METHODS, build_method
from methods.base import Context, Method
from methods.config import RunConfig
from methods.memory.audit import Budget
from methods.memory.replay import ReplayMemory
from net import settings_class
from net.config import DropoutSettings, NetConfig
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


TOKENS, LENGTH = 5, 4


@dataclass(frozen=True)
class Shifted(Generator):
    """Random tokens; the target of each is the token `shift` further in the vocabulary."""

    shift: int
    epoch_size: int = 64

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        tokens = torch.randint(TOKENS, (n, LENGTH), generator=rng)
        return table(tokens, (tokens + self.shift) % TOKENS)


@dataclass(frozen=True)
class Turned(Generator):
    """Points of the plane; the target of each is the point turned by `angle`."""

    angle: float
    epoch_size: int = 64

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        points, turn = torch.randn(n, 2, generator=rng), torch.tensor(self.angle)
        rotation = torch.stack([turn.cos(), turn.sin(), -turn.sin(), turn.cos()]).view(2, 2)
        return table(points, points @ rotation)


def drawn_stream(spec: StreamSpec, sources: Sequence[Generator], outputs: int, frozen: bool = False) -> TaskStream:
    """One task for each generator, trained on fresh examples or, if `frozen`, on a table of them."""
    made = []
    for number, source in enumerate(sources, 1):
        kept, test = source.freeze(64, 0, number, "train"), source.freeze(40, 0, number, "test").examples
        splits = {"train": kept.examples, "test": replace(test, slices={"first": torch.arange(10)})}
        made.append(Task(number, f"task {number}", outputs, kept if frozen else source, splits))
    return TaskStream(spec, tuple(made))


def token_stream(tasks: int = 2, frozen: bool = False, heads: str = "task") -> TaskStream:
    """Task t shifts every token by t."""
    spec = StreamSpec("tokens", (LENGTH,), Tokens(), Preprocess(), heads)
    return drawn_stream(spec, [Shifted(number) for number in range(1, tasks + 1)], TOKENS, frozen)


def number_stream(tasks: int = 2, frozen: bool = False, heads: str = "task") -> TaskStream:
    """Task t turns points by 40 t degrees."""
    spec = StreamSpec("numbers", (2,), RealNumbers(), Preprocess(), heads)
    return drawn_stream(spec, [Turned(0.7 * number) for number in range(1, tasks + 1)], 2, frozen)


class TokenTrunk(nn.Module):
    """Token numbers [B, T] -> features [B, T, 16]."""

    Settings = DropoutSettings
    input_dtype = torch.long

    def __init__(self, shape: tuple[int, ...], settings: DropoutSettings) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)  # type: ignore[no-any-return]


def configured(model: str, **settings: object) -> NetConfig:
    """The configuration of a network; settings that are not given have their defaults."""
    return NetConfig(model, settings=read(settings_class(model), model, settings))


def toy_config(
    settings: Mapping[str, object] | None = None,
    hp: Mapping[str, object] | None = None,
    model: str = "conv",
    **options: object,
) -> RunConfig:
    """Two epochs of batches of 8 of the small conv net of width 32, continual unless said otherwise.

    Args:
        settings: of the method, where they are not those that ship with it.
        hp: fields of the recipe. options: the other fields of RunConfig.
    """
    recipe: dict[str, Any] = {"epochs": 2, "batch": 8, "augment": True, **(hp or {})}
    values: dict[str, Any] = {"continual": True, **options}
    toy = DataConfig("toy", (TaskConfig((0, 1)),), data_dir=Path("none"), path="toy.yaml")
    config = RunConfig(
        data=toy,
        net=configured(model, dropout=0.0, **({"width": 32} if model == "conv" else {})),
        hp=Recipe(**recipe),
        **values,
    )
    known = METHODS[config.method].Settings
    shipped: dict[str, Any] = {}
    if declarations(known):
        shipped = method_settings(default_method_config(config.method), config.stream)
    return replace(config, settings=read(known, config.method, {**shipped, **(settings or {})}))


def filled(budget: Budget, tasks: Sequence[Task], seed: int = 0, buffer: str = "balanced") -> ReplayMemory:
    """A replay memory that these tasks have arrived at, one after the other."""
    memory = ReplayMemory(budget, seed, buffer)
    for number, task in enumerate(tasks, 1):
        with memory.auditor.lending(Episode(number, (task,))) as episode:
            memory.add(episode.new[0])
    return memory


def run_toy(
    config: RunConfig, stream: TaskStream, episodes: int | None = None
) -> tuple[Method, list[Learned], list[dict[int, Tensor]]]:
    """Learn the whole stream or its first episodes; the predictions on every task seen, after every episode."""
    method = build_method(Context(config, stream.spec, CPU))
    rounds = config.rounds or len(stream.tasks)
    every = stream.continual() if config.continual else stream.multitask(rounds)
    history, predictions = [], []
    for episode in islice(every, episodes):
        history.append(method.learn(episode, Monitor()))
        seen = stream.tasks[: episode.number] if config.continual else stream.tasks
        predictions.append({task.id: method.predict(task).clone() for task in seen})
    return method, history, predictions
