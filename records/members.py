"""The facts of a saved network: members/member_<number>.json, which says what its weights and predictions belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from methods.config import RunConfig
from net import build_net
from net.config import NetConfig
from net.multihead import MultiHead, TaskWeights
from records.manifest import Manifest, checked, damaged
from utils.errors import UserError
from utils.settings import Range, plain

_WEIGHTS = Range(0, 1, whole=False, open_low=True)


@dataclass(frozen=True)
class SavedMember:
    """A network of a run, on the disk."""

    number: int  # from 0, in the order of joining
    episode: int
    replaces_earlier: bool  # whether earlier members do not answer any more
    tasks: tuple[int, ...]
    weights: tuple[float, ...]  # in the mean that answers each of the tasks
    task_names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]  # of each task
    net: Mapping[str, Any]  # model and settings
    input_shape: tuple[int, ...]
    parameters: int

    def weight(self, task: int) -> float:
        """In the mean that answers a task."""
        return self.weights[self.tasks.index(task)]

    def on(self, tasks: Sequence[int]) -> SavedMember:
        """The same network for some of its tasks."""
        places = [self.tasks.index(task) for task in tasks]
        return replace(
            self, tasks=tuple(tasks), weights=tuple(self.weights[place] for place in places),
            task_names=tuple(self.task_names[place] for place in places),
            classes=tuple(self.classes[place] for place in places),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        content = asdict(self)
        return {"member": content.pop("number"), **content}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SavedMember:
        """From the file.

        Raises:
            KeyError, TypeError, ValueError, UserError: not what `to_json` has written.
        """
        tasks = tuple(Range(1).check("tasks", task) for task in content["tasks"])
        if not tasks or len(set(tasks)) < len(tasks):
            raise ValueError("tasks are none, or one is there twice")
        names, classes = tuple(content["task_names"]), tuple(content["classes"])
        if not all(isinstance(part, list) for part in classes):
            raise TypeError("classes are not lists")
        texts = [*names, *(text for part in classes for text in part)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("task_names and classes are not texts")
        if not isinstance(content["net"], Mapping):
            raise TypeError("net is not a model and its settings")
        "".join(texts).encode()  # surrogates cannot be written
        weights = tuple(_WEIGHTS.check("weights", weight) for weight in content["weights"])
        for key, values in {"weight": weights, "name": names, "list of classes": classes}.items():
            if len(values) != len(tasks):
                raise ValueError(f"there is not a {key} for each task")
        if not isinstance(content["replaces_earlier"], bool):
            raise TypeError("replaces_earlier is not true or false")
        return cls(
            number=Range(0).check("member", content["member"]), episode=Range(0).check("episode", content["episode"]),
            replaces_earlier=content["replaces_earlier"], tasks=tasks, weights=weights, task_names=names,
            classes=tuple(map(tuple, classes)), net=dict(content["net"]),
            input_shape=tuple(Range(1).check("input_shape", side) for side in content["input_shape"]),
            parameters=Range(0).check("parameters", content["parameters"]),
        )  # fmt: skip


def saved_net(net: NetConfig) -> dict[str, Any]:
    """A network as the file of a member describes it: its model and settings."""
    return {"model": net.model, **plain(net.settings)}


def facts_file(number: int) -> str:
    """Name of the file that `SavedMember` is read from."""
    return f"members/member_{number:03d}.json"


def weights_file(number: int) -> str:
    """Name of the file of a member's tensors."""
    return f"members/member_{number:03d}.safetensors"


def predictions_file(number: int) -> str:
    """Name of the file of a member's predictions."""
    return f"predictions/member_{number:03d}.safetensors"


def read_members(path: Path, manifest: Manifest) -> list[SavedMember]:
    """All networks that a run has saved, in the order of joining.

    Raises:
        UserError: a file is missing or damaged.
    """
    return [_read(path, manifest, number) for number in range(manifest.members)]


def _read(path: Path, manifest: Manifest, number: int) -> SavedMember:
    name = facts_file(number)
    content = checked(path, manifest, name)
    try:
        member = SavedMember.from_json(dict(json.loads(content)))
        if member.number != number:
            raise ValueError("it is another member")
        return member
    except KeyError as error:
        raise damaged(path, name, f"key {error} is missing") from None
    except (UserError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, name, error) from None


def read_network(
    path: Path, manifest: Manifest, member: SavedMember, config: RunConfig, device: torch.device
) -> tuple[MultiHead, Mapping[int, TaskWeights]]:
    """The network of a member, in test mode, and what tasks have of their own in it.

    Raises:
        UserError: its file is missing or damaged.
    """
    name = weights_file(member.number)
    tensors = read_tensors_of(path, manifest, name)
    for key, tensor in tensors.items():
        if tensor.is_complex() or not tensor.float().isfinite().all():
            raise damaged(path, name, f"{key} is not finite")
    own: dict[int, dict[str, Tensor]] = {}
    sizes = dict(zip(member.tasks, map(len, member.classes), strict=True))
    try:
        for key in [key for key in tensors if key.startswith("task_")]:
            task, _, tensor_name = key.removeprefix("task_").partition("/")
            own.setdefault(int(task), {})[tensor_name] = tensors.pop(key).to(device)
        with torch.random.fork_rng(devices=[]):
            net = build_net(config.net.model, member.input_shape, config.net.settings, sizes)
        net.load_state_dict(tensors)
    except Exception as error:  # whatever the library finds wrong with it
        raise damaged(path, name, error) from None
    trunk = net.trunk.state_dict()
    for parts in own.values():
        for key, tensor in parts.items():
            if key not in trunk or tensor.shape != trunk[key].shape:
                raise damaged(path, name, f"{key} of a task is no part of {config.net.model}")
    return net.to(device).eval(), own


def read_tensors_of(path: Path, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """A safetensors file of a run, on the CPU.

    Raises:
        UserError: it is missing or damaged.
    """
    content = checked(path, manifest, name)
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # whatever the library finds wrong with it
        raise damaged(path, name, error) from None


def answering(members: Sequence[SavedMember]) -> Sequence[SavedMember]:
    """Those that no later member replaces."""
    first = max((place for place, member in enumerate(members) if member.replaces_earlier), default=0)
    return members[first:]
