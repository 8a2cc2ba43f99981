"""Frozen features: the images of a stream are turned into vectors once, kept on the disk, and trained on as a table."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from datasets import build_stream
from datasets.config import DataConfig
from datasets.images.settings import Normalisation
from datasets.images.stream import ImagePreprocess
from datasets.task import Examples, Preprocess, Table, Task, TaskStream
from net import channels_last
from net.config import NetConfig
from net.images.timm_trunk import TimmSettings, TimmTrunk
from utils.compute import place
from utils.errors import UserError
from utils.files import read_tensors, tensor_bytes, write_bytes
from utils.seeding import seeded

_BATCH, _BATCH_CPU = 256, 64  # images at once
_FORMAT = 1  # of the files; another number makes them anew


def task_stream(data: DataConfig, net: NetConfig, seed: int, device: torch.device) -> TaskStream:
    """The stream that a network is trained on: that of the dataset YAML, or its frozen features.

    UserError if there is no such data, or the network cannot take it.
    """
    stream, settings = build_stream(data, seed, device), net.settings
    if not isinstance(settings, TimmSettings):
        return stream
    try:
        settings.check()
        stream = _normalised(stream, settings)
        return with_frozen_features(stream, net, data.data_dir / "cache", device) if settings.frozen else stream
    except UserError as error:
        raise UserError(f"{net.path}: {error}") from None


def frozen(net: NetConfig) -> NetConfig | None:
    """The configuration of a network that is trained on frozen features; None for others."""
    return net if getattr(net.settings, "frozen", False) else None


@dataclass(frozen=True)
class FrozenFeatures(Preprocess):
    """The stored inputs are features of images; this says of which network, and how it received the images."""

    images: ImagePreprocess
    shape: tuple[int, ...]  # of an image as the network receives it
    weights: str  # SHA-256 of the file

    @property
    def facts(self) -> dict[str, Any]:
        return {**self.images.facts, "shape": list(self.shape), "weights_sha256": self.weights}

    @classmethod
    def saved(cls, where: str, facts: Mapping[str, Any]) -> "FrozenFeatures":
        own = ("shape", "weights_sha256")
        images = ImagePreprocess.saved(where, {key: value for key, value in facts.items() if key not in own})
        return cls(images, tuple(map(int, facts["shape"])), str(facts["weights_sha256"]))

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.images.stored_shape(self.shape)

    def trunk(self, net: NetConfig, device: torch.device) -> nn.Module:
        """The frozen network; UserError if the file of its weights is gone or another one."""
        if (found := digest_of(net.settings.weights)) != self.weights:
            raise UserError(f"weights: {net.settings.weights} has changed since the run: its SHA-256 is {found}")
        return frozen_trunk(net, self.shape, device)


def frozen_trunk(net: NetConfig, shape: tuple[int, ...], device: torch.device) -> nn.Module:
    """The timm model of a configuration with the weights of its file, in test mode; images [B, *shape] -> [B, D]."""
    if len(shape) != 3:
        raise UserError(f"model: {net.model} takes images; the inputs are {'x'.join(map(str, shape))}")
    with seeded(0, "frozen"):  # takes no random numbers from others
        trunk = TimmTrunk(net.model.removeprefix("timm/"), shape, replace(net.settings, dropout=0.0))
    trunk.load_weights(net.settings.weights)
    return channels_last(trunk).requires_grad_(False).to(device).eval()


@torch.no_grad()
def features_of(
    trunk: nn.Module, images: Tensor, preprocess: Preprocess, device: torch.device, view: Tensor | None = None
) -> Tensor:
    """Features, float32 [N, D] on the CPU, of stored images [N, C, H, W], which may be seen through a `view`."""
    found: list[Tensor] = []
    parts = images.split(_BATCH_CPU if device.type == "cpu" else _BATCH)
    for part in tqdm(parts, unit=" batches", desc="frozen features", disable=None if len(parts) > 8 else True):
        inputs = part.to(device)
        if view is not None:
            black = torch.cat([inputs.flatten(1), inputs.new_zeros(len(inputs), 1)], 1)  # the last one stands for -1
            inputs = black[:, view.to(device)].reshape(inputs.shape)
        found.append(trunk(preprocess(inputs)).float().cpu())
    return torch.cat(found)


def _normalised(stream: TaskStream, settings: TimmSettings) -> TaskStream:
    """The stream with the normalisation that belongs to the weights, if that is given."""
    if settings.mean is None or settings.std is None:
        return stream
    before = stream.spec.preprocess
    if not isinstance(before, ImagePreprocess):
        raise UserError("mean and std: are for images")
    channels = stream.spec.input_shape[0]
    for name, values in {"mean": settings.mean, "std": settings.std}.items():
        if len(values) not in (1, channels):
            raise UserError(f"{name}: is for {len(values)} channels; the images have {channels}")
    preprocess = replace(before, normalisation=Normalisation(settings.mean, settings.std))
    return replace(stream, spec=replace(stream.spec, preprocess=preprocess))


def with_frozen_features(stream: TaskStream, net: NetConfig, cache: Path, device: torch.device) -> TaskStream:
    """The stream with the features of its images in their place, from files in the folder `cache` or kept there.

    UserError if its inputs are no images, or the file of weights does not fit the model.
    """
    spec = stream.spec
    if not isinstance(spec.preprocess, ImagePreprocess):
        raise UserError("frozen: is for images")
    if not all(isinstance(task.train, Table) for task in stream.tasks):
        raise UserError("frozen: needs tasks with a table of examples; these are drawn without end")
    made = FrozenFeatures(spec.preprocess, spec.input_shape, digest_of(net.settings.weights))
    identity = json.dumps([_FORMAT, net.model, importlib.metadata.version("timm"), made.facts])
    sums = {task: sha256((identity + found).encode()).hexdigest() for task, found in stream.fingerprints().items()}
    sources: dict[tuple[int, int], list[Examples]] = {}
    for examples in (part for task in stream.tasks for part in _parts(task)):
        sources.setdefault(_source(examples), []).append(examples)
    trunk = functools.cache(partial(frozen_trunk, net, spec.input_shape, device))  # not built if all is on the disk
    known: dict[tuple[int, int], Examples] = {}  # by source, its features; its rows say which row of the store each is
    for source, parts in sources.items():
        rows = torch.cat([part.rows.cpu() for part in parts]).unique()
        images = parts[0].store[rows.to(parts[0].store.device)]
        compute = partial(_computed, trunk, images, spec.preprocess, device, parts[0].view)
        features = _kept(cache, net.model.replace("/", "_"), _fingerprint(identity, images, parts[0].view), compute)
        known[source] = Examples(place(features, device), rows, rows)
    tasks = tuple(_changed(task, known) for task in stream.tasks)
    size = tuple(next(iter(known.values())).store.shape[1:])
    return replace(stream, spec=replace(spec, input_shape=size, preprocess=made), tasks=tasks, sums=sums)


def _parts(task: Task) -> list[Examples]:
    assert isinstance(task.train, Table)
    return [task.train.examples, *task.splits.values()]


def _source(examples: Examples) -> tuple[int, int]:
    """What is the same for examples that are rows of one store, seen in the same way."""
    return id(examples.store), id(examples.view)


def _changed(task: Task, known: Mapping[tuple[int, int], Examples]) -> Task:
    """The task with features as inputs."""

    def changed(examples: Examples) -> Examples:
        made = known[_source(examples)]
        rows = torch.searchsorted(made.rows, examples.rows.cpu()).to(made.store.device)
        names = None if examples.names is None else [examples.names[row] for row in made.rows.tolist()]
        return replace(examples, store=made.store, rows=rows, view=None, names=names)

    assert isinstance(task.train, Table)
    splits = {name: changed(examples) for name, examples in task.splits.items()}
    return replace(task, train=replace(task.train, examples=changed(task.train.examples)), splits=splits)


def _computed(
    trunk: Callable[[], nn.Module], images: Tensor, preprocess: Preprocess, device: torch.device, view: Tensor | None
) -> Tensor:
    return features_of(trunk(), images, preprocess, device, view)


def _kept(cache: Path, model: str, fingerprint: str, compute: Callable[[], Tensor]) -> Tensor:
    """The features with this fingerprint: from their file, or computed and written to it.

    A file that is damaged, or of something else, is replaced.
    """
    path = cache / f"{model}-{fingerprint[:16]}.safetensors"
    with contextlib.suppress(OSError, SafetensorError, KeyError, RuntimeError, TypeError):
        found = read_tensors(path)
        if torch.equal(found["sum"], _sum(fingerprint, found["features"])):
            return found["features"]
    features = compute()
    with contextlib.suppress(OSError):  # a read-only --data_dir only costs computing again next time
        cache.mkdir(parents=True, exist_ok=True)
        write_bytes(path, tensor_bytes({"features": features, "sum": _sum(fingerprint, features)}))
    return features


def _fingerprint(identity: str, images: Tensor, view: Tensor | None) -> str:
    """SHA-256 of how features are computed, and of what."""
    found = sha256(json.dumps([identity, list(images.shape), view is not None]).encode())
    for tensor in (images, *([] if view is None else [view])):
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _sum(fingerprint: str, features: Tensor) -> Tensor:
    found = sha256(fingerprint.encode())
    found.update(features.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return torch.frombuffer(bytearray(found.digest()), dtype=torch.uint8)


def digest_of(path: Path) -> str:
    """SHA-256 of a file of weights; UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"weights: {path} cannot be read: {error.strerror or error}") from None
