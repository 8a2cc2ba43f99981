"""The files of a saved network in members/: its description (JSON) and its weights (safetensors)."""

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
from utils.settings import plain


@dataclass(frozen=True)
class SavedMember:
    """A saved network: members/member_<number>.json."""

    number: int  # from 0, in the order of joining
    episode: int
    replaces_earlier: bool  # whether earlier members no longer answer
    tasks: tuple[int, ...]
    weights: tuple[float, ...]  # of its predictions in the mean of each task
    task_names: tuple[str, ...]
    classes: tuple[tuple[str, ...], ...]  # of each task
    net: Mapping[str, Any]  # model and settings
    input_shape: tuple[int, ...]
    parameters: int

    def weight(self, task: int) -> float:
        """The weight of its predictions in the mean of a task."""
        return self.weights[self.tasks.index(task)]

    def on(self, tasks: Sequence[int]) -> SavedMember:
        """The same network, restricted to some of its tasks."""
        places = [self.tasks.index(task) for task in tasks]
        return replace(
            self, tasks=tuple(tasks), weights=tuple(self.weights[place] for place in places),
            task_names=tuple(self.task_names[place] for place in places),
            classes=tuple(self.classes[place] for place in places),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        content = asdict(self)
        return {"member": content.pop("number"), **content}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SavedMember:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError: the facts do not fit together.
        """
        values: dict[str, Any] = {"number" if key == "member" else key: value for key, value in content.items()}
        for key in ("tasks", "weights", "task_names", "input_shape"):
            values[key] = tuple(values[key])
        values["classes"] = tuple(map(tuple, values["classes"]))
        lists = [values[key] for key in ("tasks", "weights", "task_names", "classes")]
        if len(set(map(len, lists))) > 1 or not all(isinstance(name, str) for name in values["task_names"]):
            raise ValueError("there is not a weight, a name and a list of classes for each task")
        return cls(**values)


def saved_net(net: NetConfig) -> dict[str, Any]:
    """The model and settings of a network, as `SavedMember.net` has them."""
    return {"model": net.model, **plain(net.settings)}


def facts_file(number: int) -> str:
    """Name of the file of a SavedMember."""
    return f"members/member_{number:03d}.json"


def weights_file(number: int) -> str:
    """Name of the file of a member's weights."""
    return f"members/member_{number:03d}.safetensors"


def predictions_file(number: int) -> str:
    """Name of the file of a member's predictions."""
    return f"predictions/member_{number:03d}.safetensors"


def read_members(path: Path, manifest: Manifest) -> list[SavedMember]:
    """All saved networks of a run, in the order of joining."""
    return [_read(path, manifest, facts_file(number)) for number in range(manifest.members)]


def _read(path: Path, manifest: Manifest, name: str) -> SavedMember:
    content = checked(path, manifest, name)
    try:
        return SavedMember.from_json(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, name, error) from None


def read_network(
    path: Path, manifest: Manifest, member: SavedMember, config: RunConfig, device: torch.device
) -> tuple[MultiHead, Mapping[int, TaskWeights]]:
    """The network of a member, in test mode, and by task the trunk weights that only this task has."""
    name = weights_file(member.number)
    tensors = read_tensors_of(path, manifest, name)
    task_weights: dict[int, dict[str, Tensor]] = {}
    sizes = dict(zip(member.tasks, map(len, member.classes), strict=True))
    try:
        for key in [key for key in tensors if key.startswith("task_")]:
            task, _, tensor_name = key.removeprefix("task_").partition("/")
            task_weights.setdefault(int(task), {})[tensor_name] = tensors.pop(key).to(device)
        with torch.random.fork_rng(devices=[]):
            net = build_net(config.net.model, member.input_shape, config.net.settings, sizes)
        net.load_state_dict(tensors)
    except Exception as error:  # torch names no narrower classes
        raise damaged(path, name, error) from None
    return net.to(device).eval(), task_weights


def read_tensors_of(path: Path, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a run, on the CPU."""
    content = checked(path, manifest, name)
    try:
        return safetensors.torch.load(content)
    except Exception as error:  # safetensors names no narrower class
        raise damaged(path, name, error) from None


def answering(members: Sequence[SavedMember]) -> Sequence[SavedMember]:
    """The members that no later member replaces."""
    first = max((place for place, member in enumerate(members) if member.replaces_earlier), default=0)
    return members[first:]
