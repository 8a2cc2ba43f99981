"""The files of a saved network in members/: its description (JSON) and its weights (safetensors)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from methods.config import RunConfig
from net import build_net
from net.multihead import MultiHead, TaskWeights
from records.manifest import NAMES, Manifest, checked, reading

# Names of the files of a member, by its number.
FACTS_FILE = "members/member_{:03d}.json"
WEIGHTS_FILE = "members/member_{:03d}.safetensors"
CHECKPOINT_FILE = "checkpoints/step_{:012d}.safetensors"  # by the number of steps
KEPT_FILE = "predictions/kept_{:03d}.safetensors"  # by the number of an episode
PREDICTIONS_FILE = "predictions/member_{:03d}.safetensors"


_CHECKPOINT = re.compile(r"checkpoints/step_(\d{12})\.safetensors")


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
    heads: str = "task"  # one of net.multihead.HEADS
    asked: int = 0  # positions of an input that are asked about, see StreamSpec

    def weight(self, task: int) -> float:
        """The weight of its predictions in the mean of a task."""
        return self.weights[self.tasks.index(task)]

    def on(self, tasks: Sequence[int]) -> "SavedMember":
        """The same network, restricted to some of its tasks."""
        places = [self.tasks.index(task) for task in tasks]
        lists = ("tasks", "weights", "task_names", "classes")
        parts: dict[str, Any] = {key: tuple(getattr(self, key)[place] for place in places) for key in lists}
        return replace(self, **parts)

    def to_json(self) -> dict[str, Any]:
        """The content of the file."""
        content = asdict(self)
        return {"member": content.pop("number"), **content}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SavedMember":
        """The inverse of `to_json`; KeyError, TypeError or ValueError if the facts do not fit together."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}
        values |= {"number": values.pop("member"), "classes": tuple(map(tuple, values["classes"]))}
        lists = [values[key] for key in ("tasks", "weights", "task_names", "classes")]
        if len(set(map(len, lists))) > 1 or not all(isinstance(name, str) for name in values["task_names"]):
            raise ValueError("there is not a weight, a name and a list of classes for each task")
        return cls(**values)


def read_members(path: Path, manifest: Manifest) -> list[SavedMember]:
    """All saved networks of a run, in the order of joining."""
    found = []
    for name in map(FACTS_FILE.format, range(manifest.members)):
        with reading(path, name):
            found.append(SavedMember.from_json(json.loads(checked(path, manifest, name))))
    return found


def read_network(
    path: Path, manifest: Manifest, member: SavedMember, config: RunConfig, device: torch.device
) -> tuple[MultiHead, Mapping[int, TaskWeights]]:
    """The network of a member, in test mode, and by task the trunk weights that only this task has."""
    name = WEIGHTS_FILE.format(member.number)
    tensors = read_tensors_of(path, manifest, name)
    task_weights: dict[int, dict[str, Tensor]] = {}
    with reading(path, name):
        for key in [key for key in tensors if key.startswith("task_")]:
            task, _, tensor_name = key.removeprefix("task_").partition("/")
            task_weights.setdefault(int(task), {})[tensor_name] = tensors.pop(key).to(device)
        sizes = dict(zip(member.tasks, map(len, member.classes), strict=True))
        with torch.random.fork_rng(devices=[]):
            net = build_net(
                config.net.model, member.input_shape, config.net.settings, sizes, member.heads, member.asked,
                getattr(config, "settings", None),  # of a method; train_task.py has none
            )  # fmt: skip
        net.load_state_dict(tensors)
    return net.to(device).eval(), task_weights


def read_tensors_of(path: Path, manifest: Manifest, name: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a run, on the CPU."""
    with reading(path, name):
        return safetensors.torch.load(checked(path, manifest, name))


def read_names(path: Path, manifest: Manifest) -> dict[tuple[int, str], list[str]]:
    """The names of the examples whose predictions are saved, by task and split; none if they have no names."""
    with reading(path, NAMES):
        found = json.loads(checked(path, manifest, NAMES)) if NAMES in manifest.files else {}
        places = {key: key.removeprefix("task_").partition("/") for key in found}
        return {(int(task), split): found[key] for key, (task, _, split) in places.items()}


def answering(members: Sequence[SavedMember]) -> Sequence[SavedMember]:
    """The members that no later member replaces."""
    first = max((place for place, member in enumerate(members) if member.replaces_earlier), default=0)
    return members[first:]


def checkpoint_steps(manifest: Manifest) -> list[int]:
    """The numbers of steps after which the weights of a network were kept, in their order."""
    return sorted(int(found[1]) for name in manifest.files if (found := _CHECKPOINT.fullmatch(name)))
