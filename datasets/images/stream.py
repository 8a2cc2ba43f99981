"""Streams of tasks made of the classes of an image data set.

Every image lies on the device once, as uint8; tasks are row numbers. Crops, flips and normalisation act on whole
batches.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.config import DataConfig, TaskConfig, class_name
from datasets.images.settings import HALF, ImageSettings, Normalisation
from datasets.objectives import CrossEntropy
from datasets.task import HELD_OUT, TEST, TRAIN, Examples, Preprocess, StreamSpec, Table, Task, TaskStream
from datasets.validation import VALIDATION, real_test, taken
from utils.compute import place
from utils.errors import UserError, unknown
from utils.seeding import derive_seed, generator
from utils.settings import plain, read


@dataclass(frozen=True)
class ImagePreprocess(Preprocess):
    """uint8 [B, C, H, W] -> float32 [B, C, H + 2 pad, W + 2 pad], normalised; augmented if asked to.

    First of all `pad` black pixels are put on each side. Augmentation: a crop at a random place of the image with
    `padding` more black pixels on each side, and a horizontal flip with probability 1/2 if `flip`.
    """

    padding: int
    flip: bool
    pad: int = 0
    normalisation: Normalisation = HALF

    def draw(self, count: int, rng: torch.Generator) -> Tensor | None:
        """Top and left of the crop in the padded image, and whether it is flipped, [count, 3]."""
        if not self.padding and not self.flip:
            return None
        crop = torch.randint(2 * self.padding + 1, (2, count), generator=rng)
        flip = torch.rand(count, generator=rng) < 0.5 if self.flip else torch.zeros(count)
        return torch.stack([*crop, flip.long()], 1)

    def __call__(self, inputs: Tensor, choices: Tensor | None = None) -> Tensor:
        if self.pad:
            inputs = F.pad(inputs, [self.pad] * 4)
        if choices is not None:
            inputs = self._augment(inputs, choices)
        mean, sd = self.normalisation.mean, self.normalisation.sd
        normal = inputs.to(torch.float32)
        # Numbers, not a tensor of them: no batch waits until they have been copied to the device.
        parts = [normal] if len(mean) == len(sd) == 1 else [normal[:, c] for c in range(normal.shape[1])]
        for channel, part in enumerate(parts):
            part.sub_(mean[channel % len(mean)] * 255).mul_(1 / (sd[channel % len(sd)] * 255))
        return normal.contiguous(memory_format=torch.channels_last)

    @property
    def facts(self) -> dict[str, Any]:
        return {"normalize": plain(self.normalisation), "pad": self.pad}

    @classmethod
    def saved(cls, where: str, facts: Mapping[str, Any]) -> "ImagePreprocess":
        settings = read(ImageSettings, where, facts)
        return cls(0, False, settings.pad, settings.normalisation)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        channels, height, width = shape
        return channels, height - 2 * self.pad, width - 2 * self.pad

    def _augment(self, inputs: Tensor, choices: Tensor) -> Tensor:
        top, left, flip = choices.unbind(1)
        count, _, height, width = inputs.shape
        if self.padding:
            # All crops as a view without a copy, [N, C, 2p+1, 2p+1, H, W], of which each image takes one.
            crops = F.pad(inputs, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
            inputs = crops[torch.arange(count, device=inputs.device), :, top, left]
        if self.flip:
            inputs = torch.where(flip.bool()[:, None, None, None], inputs.flip(-1), inputs)
        return inputs


@dataclass(frozen=True)
class Images:
    """All images of one split of a data set."""

    pixels: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N], class numbers
    names: Sequence[str] | None = None  # of the images, such as files, where these may be added and removed


class Label(NamedTuple):
    """The meaning of an entry of a task's `classes`."""

    number: int  # class in the data set
    view: int = 0  # which permutation or rotation
    random: bool = False  # whether the training labels of this class are random


@dataclass(frozen=True)
class ImageDataset:
    """A data set, and what the entries of `classes` mean in its streams; `test` reads the test images."""

    train: Images
    test: Callable[[], Images]
    class_names: Sequence[str]
    preprocess: ImagePreprocess
    decode: Callable[[int], Label] | None = Label  # meaning of a whole number; None: it names a class, as a text does
    views: Callable[[int], Tensor | None] = lambda view: None  # pixel map of each view, see Examples.view
    view_name: Callable[[int], str] | None = None


def image_stream(config: DataConfig, data: ImageDataset, seed: int, device: torch.device) -> TaskStream:
    """The stream whose tasks have the classes that the dataset YAML names; UserError if the data set lacks one."""
    preprocess = _preprocess(config, data)
    data, test = _placed(config, data, seed, device)
    known: dict[tuple[bytes, torch.device], Tensor] = {}

    def share(tensor: Tensor, where: torch.device = device) -> Tensor:
        """The tensor on a device, where equal ones are held once: all permutations have the same rows and targets."""
        key = sha256(tensor.numpy().tobytes()).digest(), where
        if key not in known:
            known[key] = tensor.to(where)
        return known[key]

    tasks = tuple(_build_task(config, data, test, seed, share, number) for number in config.numbers)
    shape = tuple(preprocess(data.train.pixels[:1]).shape[1:])
    spec = StreamSpec(config.stream, shape, CrossEntropy(), preprocess)
    return TaskStream(spec, tasks, validated=config.validation > 0)


def _placed(
    config: DataConfig, data: ImageDataset, seed: int, device: torch.device
) -> tuple[ImageDataset, Images]:  # fmt: skip
    """The data set and its test images on the device; with validation, training images of each class in their place.

    Which these are depends on the seed and the class alone, so that no task is trained on those of another.
    """
    whole = replace(data.train, pixels=place(data.train.pixels, device))
    if not config.validation:
        test = real_test(config, data.test)
        return replace(data, train=whole), replace(test, pixels=place(test.pixels, device))
    chosen = torch.zeros(len(whole.labels), dtype=torch.bool)
    for number in whole.labels.unique().tolist():
        rows = (whole.labels == number).nonzero().flatten()
        order = _order(seed, whole, number, rows, VALIDATION)
        chosen[rows[order[: taken(config.validation, len(rows))]]] = True
    # The images are shared; no class has the label -1.
    train, test = (replace(whole, labels=whole.labels.where(part, -1)) for part in (~chosen, chosen))
    return replace(data, train=train), test


def _preprocess(config: DataConfig, data: ImageDataset) -> ImagePreprocess:
    """The preprocessing of a data set with what the dataset YAML says about it."""
    settings = config.settings
    if not isinstance(settings, ImageSettings):
        return data.preprocess
    settings.check_channels(config.path, data.train.pixels.shape[1])
    return replace(data.preprocess, pad=settings.pad, normalisation=settings.normalisation)


def _build_task(
    config: DataConfig, data: ImageDataset, test: Images, seed: int, share: Callable[..., Tensor], number: int
) -> Task:  # fmt: skip
    where, task = f"{config.path}: task {number}", config.tasks[number - 1]
    labels = [_decode(where, data, entry) for entry in task.classes]
    view, pixel_map = _view(where, data, labels)
    names = tuple(data.class_names[label.number] for label in labels)
    train_rows = _class_rows(where, "training", data.train, labels, names)
    test_rows = _class_rows(where, VALIDATION if config.validation else "test", test, labels, names)

    def examples(images: Images, rows: list[Tensor], targets: list[Tensor]) -> Examples:
        store, on_device = images.pixels, None if pixel_map is None else share(pixel_map)
        parts = share(torch.cat(rows), store.device), share(torch.cat(targets))
        return Examples(store, *parts, on_device, names=images.names)

    rng = generator(seed, "samples", number)
    limits = _limits(config, [len(rows) for rows in train_rows], rng)
    chosen: list[Tensor] = []  # of each class: the rows to train on, the rows held out
    for label, written, rows, limit in zip(labels, names, train_rows, limits, strict=True):
        order = _order(seed, data.train, label.number, rows) if config.hold_out else torch.arange(len(rows))
        chosen += _chosen(config, f"class {written!r} of task {number}", rows, order, limit, rng)
    counts = [len(rows) for rows in chosen]
    class_sizes = [kept + held for kept, held in zip(counts[::2], counts[1::2], strict=True)]
    outputs, output_names = _outputs(where, task.groups, names)
    parts = list(outputs[_noisy_targets(seed, number, task, labels, class_sizes)].split(counts))
    splits = {
        TRAIN: examples(data.train, chosen[::2], parts[::2]),
        TEST: examples(test, test_rows, [outputs[_targets([len(rows) for rows in test_rows])]]),
    }
    if config.hold_out:
        splits[HELD_OUT] = examples(data.train, chosen[1::2], parts[1::2])
    name = task.name or (data.view_name(view) if data.view_name else "/".join(output_names))
    return Task(number, name, len(output_names), Table(splits[TRAIN]), splits, output_names)


def _outputs(where: str, groups: Sequence[int] | None, names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """The output of each class, [classes], and the names of the outputs."""
    if groups is None:
        return torch.arange(len(names)), tuple(names)
    if len(groups) != len(names):
        raise UserError(f"{where}: groups has {len(groups)} numbers; it needs one for each of the {len(names)} classes")
    members = [[name for name, group in zip(names, groups, strict=True) if group == g] for g in range(max(groups) + 1)]
    return torch.tensor(groups), tuple("+".join(each) for each in members)


def _view(where: str, data: ImageDataset, labels: Sequence[Label]) -> tuple[int, Tensor | None]:
    """Number and pixel map of the one view of a task."""
    view = labels[0].view
    if any(label.view != view for label in labels):
        raise UserError(f"{where} mixes several permutations or rotations; its labels must be 10x + y of one x")
    if len({label.number for label in labels}) < len(labels):
        raise UserError(f"{where} names the same class twice, in two ways; name each class of a task once")
    try:
        return view, data.views(view)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _decode(where: str, data: ImageDataset, entry: int | str) -> Label:
    names = data.class_names
    if isinstance(entry, str) or data.decode is None:
        if str(entry) not in names:
            raise UserError(f"{where}: {unknown('class', entry, names)}")
        return Label(names.index(str(entry)))
    try:
        label = data.decode(entry)
    except ValueError as error:
        raise UserError(f"{where}: class {entry}: {error}") from None
    if entry < 0 or label.number >= len(names):
        raise UserError(f"{where}: class {entry} is not in the data set, which has the classes 0 to {len(names) - 1}")
    return label


def _class_rows(where: str, split: str, images: Images, labels: Sequence[Label], names: Sequence[str]) -> list[Tensor]:
    """Rows of the images of each class."""
    rows = [(images.labels == label.number).nonzero().flatten() for label in labels]
    for name, found in zip(names, rows, strict=True):
        if not len(found):
            raise UserError(f"{where}: class {name!r} has no {split} images")
    return rows


def _order(seed: int, images: Images, number: int, rows: Tensor, purpose: str = "hold_out") -> Tensor:
    """The order in which images of a class are set aside; if they have names, it does not depend on other images."""
    if images.names is None:
        return torch.randperm(len(rows), generator=generator(seed, purpose, number))
    ranks = [derive_seed(seed, purpose, class_name(images.names[row])) for row in rows.tolist()]
    return torch.tensor(ranks).argsort()


def _limits(config: DataConfig, sizes: Sequence[int], rng: torch.Generator) -> Sequence[int | None]:
    """How many training examples a task may have of each class, which has `sizes` of them; None: all."""
    total = getattr(config.settings, "samples_per_task", None)
    if total is None:
        return [config.samples] * len(sizes)
    if config.samples is not None:
        raise UserError(f"{config.path}: samples and samples_per_task are two ways to limit a task; leave one out")
    # As many as a random subset of the task has of the class.
    subset = torch.randperm(sum(sizes), generator=rng)[:total]
    return _targets(sizes)[subset].bincount(minlength=len(sizes)).tolist()


def _chosen(
    config: DataConfig, name: str, rows: Tensor, order: Tensor, limit: int | None, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The rows of one class that its task is trained on, and those that are held out: together at most `limit`.

    No task is trained on what another holds out: `order` depends on the seed and the class alone.
    """
    count = len(rows) if limit is None else min(limit, len(rows))
    if not count:
        raise UserError(f"{config.path}: samples_per_task leaves no training image of {name}; it must be larger")
    if config.hold_out and count < 2:
        raise UserError(f"--hold_out {config.hold_out:g} leaves no training image of {name}, of one; leave it out")

    def share(of: int) -> int:
        return taken(config.hold_out, of) if config.hold_out else 0

    held, kept = (rows[part.sort().values] for part in order.tensor_split([share(len(rows))]))
    if limit is not None:
        held = held[torch.randperm(len(held), generator=rng)[: share(count)]]
        kept = kept[torch.randperm(len(kept), generator=rng)[: count - len(held)]]
    return kept, held


def _targets(counts: Sequence[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def _noisy_targets(seed: int, number: int, task: TaskConfig, labels: Sequence[Label], counts: Sequence[int]) -> Tensor:
    """Training targets, of which those of random classes and a share `label_noise` of all are drawn uniformly."""
    targets = _targets(counts)
    rng = generator(seed, "noise", number)
    random = torch.tensor([label.random for label in labels])[targets]
    noisy = torch.randperm(len(targets), generator=rng)[: round(task.label_noise * len(targets))]
    random[noisy] = True
    return torch.where(random, torch.randint(len(counts), targets.shape, generator=rng), targets)
