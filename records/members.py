"""The facts of a saved network: members/member_<number>.json, which says what its weights and predictions belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from records.manifest import Manifest, checked, damaged
from utils.config import RANGES, Range
from utils.errors import UserError

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
    net: str
    dropout: float
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
        texts = [content["net"], *names, *(text for part in classes for text in part)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("net, task_names and classes are not texts")
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
            classes=tuple(map(tuple, classes)), net=content["net"],
            dropout=RANGES["dropout"].check("dropout", content["dropout"]),
            input_shape=tuple(Range(1).check("input_shape", side) for side in content["input_shape"]),
            parameters=Range(0).check("parameters", content["parameters"]),
        )  # fmt: skip


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


def answering(members: Sequence[SavedMember]) -> Sequence[SavedMember]:
    """Those that no later member replaces."""
    first = max((place for place, member in enumerate(members) if member.replaces_earlier), default=0)
    return members[first:]
