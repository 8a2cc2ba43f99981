"""The stream of sequences with questions: drawn fresh while a network trains, and frozen for evaluation.

    {dataset: sequences, vocabulary: 8192, length: 64, pairs: 4, tasks: [mqar, {task: forgetting, updates: 2},
     {task: mqar, train: [{length: 64, examples: 100000}, {length: 128, pairs: 8, examples: 20000}], test: [...]}]}

Training examples are a mixture of segments, test examples have equal numbers of each. Training examples depend on the
seed of the run; development and test examples are the same in all runs, like the test images of a data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.config import DataConfig, TaskList
from datasets.objectives import Tokens, TokenVectors
from datasets.synthetic.amounts import COUNT, Amounts
from datasets.synthetic.asked import UNASKED, Kind, Layout, Shape, TokenLayout, VectorLayout, describe
from datasets.synthetic.circuits import CIRCUITS
from datasets.synthetic.recall import RECALL
from datasets.task import DEV, TEST, TRAIN, Examples, Generator, Preprocess, StreamSpec, Table, Task, TaskStream
from datasets.validation import random_stream
from utils.errors import UserError
from utils.seeding import generator, on_device
from utils.settings import Range, read, setting

KINDS = {**RECALL, **CIRCUITS}
_CHUNK = 2**18  # values of sequences that are drawn at once: more would need more memory, and be no faster
_LENGTH, _PAIRS, _UPDATES = Range(2, 2**16), Range(1, 2**14), Range(0, 2**14)


@dataclass(frozen=True)
class Segment:
    """Examples of one difficulty; what it does not say, the task says."""

    length: int | None = setting(_LENGTH, "tokens of a sequence", default=None)
    pairs: int | None = setting(_PAIRS, "keys with a value", default=None)
    updates: int | None = setting(_UPDATES, "keys that get another value", default=None)


@dataclass(frozen=True)
class TrainSegment(Segment):
    """Training examples of one difficulty."""

    examples: int = setting(COUNT, "its share of the training examples is proportional to this number", default=1)


class Segments:
    """A list of segments, each a mapping."""

    def __init__(self, kind: type[Segment]) -> None:
        self.kind = kind

    def read(self, where: str, value: object) -> tuple[Segment, ...]:
        """The checked segments; a UserError names the wrong one."""
        if not isinstance(value, list) or not value or not all(isinstance(entry, Mapping) for entry in value):
            raise UserError(f"{where} must be a list of segments, such as [{{length: 64}}, {{length: 128}}]")
        return tuple(read(self.kind, f"{where}: segment {number}", entry) for number, entry in enumerate(value, 1))


@dataclass(frozen=True, kw_only=True)
class SequenceTask(Segment):
    """One task of a stream, as written in the dataset YAML; what it does not say, the stream says."""

    task: str = setting(tuple(KINDS), "name of the kind of task")
    name: str | None = setting(str, "name of the task", default=None)
    train: tuple[TrainSegment, ...] | None = setting(
        Segments(TrainSegment), "mixture of training examples", default=None
    )
    test: tuple[Segment, ...] | None = setting(
        Segments(Segment), "what is tested, and scored on its own (default: the segments of `train`)", default=None
    )
    label_noise: ClassVar[float] = 0.0  # answers are computed


@dataclass(frozen=True)
class SequenceConfig(DataConfig):
    """Which tasks, in which order."""

    tasks: tuple[Any, ...] = setting(TaskList(SequenceTask, "task", "task, such as [mqar, forgetting]"), "the tasks")

    def baselines(self, task: int) -> dict[str, float]:
        """Of what tests ask, if all of it is of one difficulty."""
        asked = self.tasks[task]
        shapes = {_shape(self.settings, part, asked) for part in asked.test or asked.train or [Segment()]}
        return KINDS[asked.task].baselines(shapes.pop()) if len(shapes) == 1 else {}


@dataclass(frozen=True)
class SequenceKeys:
    """Keys of the dataset YAML; `length`, `pairs` and `updates` hold where a task or segment has none of its own."""

    vocabulary: int = setting(Range(2, 2**20), "different tokens, or vectors", default=256)
    length: int = setting(_LENGTH, "tokens of a sequence", default=64)
    pairs: int = setting(_PAIRS, "keys with a value", default=4)
    updates: int | None = setting(
        _UPDATES, "keys of forgetting that get another value (default: half of the pairs)", default=None
    )
    power: float = setting(
        Range(0, 1, whole=False, open_low=True), "where questions stand: 1 anywhere, near 0 early", default=0.01
    )
    noise: bool = setting(bool, "the tokens around questions are random; false: 0", default=True)
    passes: int = setting(Range(1, 256), "how often continuous_mqar shows all pairs", default=1)
    dimension: int = setting(Range(1, 4096), "values of a key or a value of continuous_mqar", default=32)


@dataclass(frozen=True)
class SequenceSettings(Amounts, SequenceKeys):
    """All keys of the dataset YAML: how many examples there are stands last."""


class Blend(NamedTuple):
    """Segments, and what their shares are proportional to."""

    shapes: tuple[Shape, ...]
    weights: tuple[int, ...]

    def edges(self, count: int, rng: torch.Generator) -> list[int]:
        """Where each segment begins, and the last one ends, if `count` examples stand in the order of segments.

        Each has its exact share, rounded up or down: up as often as makes the expectation right.
        """
        sums = [0, *accumulate(self.weights)]
        start = int(torch.randint(sums[-1], (), generator=rng))
        return [(before * count + start) // sums[-1] for before in sums]


@dataclass(frozen=True)
class FreshSequences(Generator):
    """Examples of a mixture, drawn on the device."""

    kind: Kind
    blend: Blend
    layout: Layout
    epoch_size: int
    device: torch.device

    def draw(self, n: int, rng: torch.Generator) -> Examples:
        return self.with_segments(n, rng)[0]

    def frozen(self, n: int, seed: int, *name: object) -> Examples:
        """`n` examples from the random stream `name` of `seed`, the same on every device, with a slice a segment."""
        cpu = replace(self, device=torch.device("cpu"), layout=self.layout.to(torch.device("cpu")))
        shapes = [astuple(shape) for shape in self.blend.shapes]
        rng = generator(seed, "sequences", *name, shapes, self.blend.weights)
        examples, segments = cpu.with_segments(n, rng)
        slices = {}
        if len(segments) > 1:
            names = (describe(self.kind.difficulty(shape)) for shape in self.blend.shapes)
            slices = {name: part.sort().values for name, part in zip(names, segments, strict=True) if len(part)}
        if self.kind.by_answer:
            answers = examples.targets[:, 0]
            slices |= {f"answer {answer}": (answers == answer).nonzero()[:, 0] for answer in answers.unique().tolist()}
        store, rows, targets = (part.to(self.device) for part in (examples.store, examples.rows, examples.targets))
        return Examples(store, rows, targets, slices=slices)

    def with_segments(self, n: int, rng: torch.Generator) -> tuple[Examples, list[Tensor]]:
        """`n` examples in random order, and the positions of those of each segment."""
        edges = self.blend.edges(n, rng)
        rng = on_device(rng, self.device)
        order = torch.randperm(n, generator=rng, device=self.device)
        segments = [order[start:stop] for start, stop in pairwise(edges)]
        inputs = torch.empty(n, *self.layout.shape, dtype=self.layout.dtype, device=self.device)
        targets = torch.empty(n, self.layout.asked, dtype=torch.int64, device=self.device)
        for shape, segment in zip(self.blend.shapes, segments, strict=True):
            for part in segment.split(max(1, _CHUNK // self.layout.values(shape))):
                if len(part):  # a split of nothing is a part
                    drawn = self.layout.stored(self.kind.draw(len(part), shape, rng))
                    inputs.index_copy_(0, part, drawn[0])
                    targets.index_copy_(0, part, drawn[1])
        return Examples(inputs, torch.arange(n, device=self.device), targets), segments


def sequences(config: DataConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream whose tasks the dataset YAML names; UserError if there are no such sequences."""
    assert isinstance(config, SequenceConfig)
    own = config.settings
    blends = [_blends(config, number) for number in range(1, len(config.tasks) + 1)]
    kinds = [KINDS[task.task] for task in config.tasks]
    layouts, objective = _layouts(config, kinds, blends, device)
    outputs = own.dimension if kinds[0].vectors else own.vocabulary
    tasks = []
    for number, (task, kind, blend) in enumerate(zip(config.tasks, kinds, blends, strict=True), 1):
        if number not in config.numbers:
            continue
        fresh = FreshSequences(kind, blend[TRAIN], layouts[TRAIN], own.epoch_examples, device)
        splits = {}
        for split, count in own.splits.items():
            source = replace(fresh, blend=blend[split], layout=layouts[split])
            own_seed, name = random_stream(config, split, seed)
            examples = source.frozen(count, own_seed, task.task, name)
            splits[split] = replace(examples, slices={}) if split == TRAIN else examples
        tasks.append(Task(number, _name(task), outputs, fresh if own.fresh else Table(splits[TRAIN]), splits))
    layout = max(layouts.values(), key=lambda layout: layout.length)
    spec = StreamSpec(config.stream, layout.shape, objective, Preprocess(), heads="identity", asked=layout.asked)
    return TaskStream(spec, tuple(tasks), validated=config.validation > 0)


sequences.Settings = SequenceSettings  # type: ignore[attr-defined]
sequences.Config = SequenceConfig  # type: ignore[attr-defined]


def _blends(config: SequenceConfig, number: int) -> dict[str, Blend]:
    """What each split of a task consists of; UserError if there are no such sequences."""
    task, where = config.tasks[number - 1], f"{config.path}: task {number}"
    kind = KINDS[task.task]

    def shapes(key: str, segments: Sequence[Segment]) -> tuple[Shape, ...]:
        found = []
        for place, segment in enumerate(segments, 1):
            shape = _shape(config.settings, segment, task)
            if fault := kind.fault(shape):
                which = f": {key}: segment {place}" if getattr(task, key) else ""
                raise UserError(f"{where}{which}: {' '.join(fault)}")
            found.append(shape)
        return tuple(found)

    for part in (task, *(task.train or ()), *(task.test or ())):
        for key in ("length", "pairs", "updates"):
            if getattr(part, key) is not None and key not in kind.keys:
                raise UserError(f"{where}: {key} means nothing to {task.task}; leave it out")
    train = shapes("train", task.train or [Segment()])
    test = shapes("test", task.test) if task.test else tuple(dict.fromkeys(train))
    if len(set(test)) < len(test):
        raise UserError(f"{where}: test has two segments of one difficulty; name each once")
    evenly = Blend(test, (1,) * len(test))
    return {
        TRAIN: Blend(train, tuple(segment.examples for segment in task.train or [TrainSegment()])),
        DEV: evenly,
        TEST: evenly,
    }


def _shape(own: SequenceSettings, *parts: Segment) -> Shape:
    """What sequences look like: a setting is that of the first part that has it, or else of the stream."""

    def setting_of(key: str, otherwise: int) -> int:
        return next((value for part in (*parts, own) if (value := getattr(part, key)) is not None), otherwise)

    length, pairs = setting_of("length", own.length), setting_of("pairs", own.pairs)
    updates = setting_of("updates", pairs // 2)
    return Shape(length, own.vocabulary, pairs, updates, own.power, own.noise, own.passes)


def _layouts(
    config: SequenceConfig, kinds: Sequence[Kind], blends: Sequence[Mapping[str, Blend]], device: torch.device
) -> tuple[dict[str, Layout], Tokens]:  # fmt: skip
    """The layout of each split, for the sequences of all tasks, and the objective; UserError for tokens beside vectors.

    Splits have lengths of their own: training on short sequences does not wait for the long ones that are tested.
    """
    if len({kind.vectors for kind in kinds}) > 1:
        raise UserError(f"{config.path}: tasks: continuous_mqar has vectors, the others tokens; make two streams")
    found = {split: [(kind, shape) for kind, blend in zip(kinds, blends, strict=True) for shape in blend[split].shapes]
             for split in blends[0]}  # fmt: skip
    asked = max(kind.questions(shape) for parts in found.values() for kind, shape in parts)
    own = config.settings
    if not kinds[0].vectors:
        longest = {split: max(shape.length for _, shape in parts) for split, parts in found.items()}
        return {split: TokenLayout(length, asked) for split, length in longest.items()}, Tokens(ignored=UNASKED)
    rng = generator(0, "sequences", "table", own.vocabulary, own.dimension)
    table = F.normalize(torch.randn(own.vocabulary, own.dimension, generator=rng), dim=-1).to(device)
    layout = VectorLayout((own.passes + 1) * asked, asked, F.pad(table, (0, 0, 0, 1)))
    return dict.fromkeys(found, layout), TokenVectors(table[own.vocabulary // 2 :], ignored=UNASKED)


def _name(task: SequenceTask) -> str:
    """The name of a task: the given one, or its kind and what sets it apart."""
    own = {key: getattr(task, key) for key in KINDS[task.task].keys}
    given = {key: value for key, value in own.items() if value is not None}
    return task.name or (f"{task.task} of {describe(given)}" if given else task.task)
