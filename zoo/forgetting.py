"""A zoo without a task: members that saw it are dropped, or trained again without it; a certificate says which.

RUN -> members that never saw the task (their files as they are) + retrained ones -> a new run directory
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datasets import build_stream
from datasets.objectives import CrossEntropy, Scores
from datasets.task import Episode, TaskStream
from evaluation.accuracy import AVERAGES, HELD_OUT
from evaluation.measurements import TASK_INCREMENTAL, Measurement
from methods import build_method
from methods.base import Context
from methods.ensemble import Ensemble
from net import count_parameters
from records.directory import RunDirectory, read_config
from records.manifest import MANIFEST
from records.members import SavedMember, weights_file
from records.monitor import EpisodeFacts, RunMonitor
from records.summary import read_summary, summarize
from training.loop import TrainingStats
from utils.compute import peak_memory
from utils.errors import UserError
from utils.files import tensor_bytes
from utils.seeding import derive_seed
from zoo.combine import weighted_mean
from zoo.saved import SavedTask, Zoo

CERTIFICATE = "certificate.json"
# What a certificate cannot say.
LIMITS = (
    "Which tasks the kept members were trained on was drawn with the losses of the zoo on all tasks before, the "
    "forgotten one among them: the draw may depend on it, their weights were never computed from its examples.",
    "Images that other tasks have in common with the forgotten one were seen through those tasks.",
    "Name and classes of the task are in config.yaml and here; nothing that was computed from its examples is.",
    "The directory that the zoo was made from still holds the task, and so do reports, exports and copies of it.",
)


@dataclass(frozen=True)
class Successor:
    """A member of the new zoo."""

    member: SavedMember  # as it was, with the tasks that it has now
    tensors: Mapping[str, Tensor]
    predictions: Mapping[tuple[int, str], Tensor]  # (task, split) -> [N, C]
    retrained: bool


class Cost(NamedTuple):
    """What forgetting another task has cost a task: members that answer it, and its accuracy on test examples."""

    members_before: int
    members_after: int
    accuracy_before: float
    accuracy_after: float | None  # None: no member is left


def kept(zoo: Zoo, forgotten: SavedTask) -> list[Successor]:
    """The members that never saw the task, as they are.

    Raises:
        UserError: a file is damaged.
    """
    found = []
    for member in zoo.members:
        # Those of the others are read too: the certificate is of all members.
        tensors, said = zoo.tensors(weights_file(member.number)), zoo.predictions(member)
        if forgotten.number not in member.tasks:
            zoo.net(member)  # what is damaged is not passed on
            found.append(Successor(member, tensors, said, retrained=False))
    return found


def retrained(
    zoo: Zoo, forgotten: SavedTask, data_dir: str | None, monitor: RunMonitor
) -> tuple[list[Successor], TrainingStats, str]:
    """Members in place of those that saw the task: on their other tasks, from what is kept of these.

    Args:
        data_dir: None where the run had its data.

    Returns:
        The members, what training took, and the fingerprint of the data.

    Raises:
        UserError: the data are not there, or the method keeps examples in a way that depends on the forgotten task.
        TrainingError: training diverged.
    """
    config = replace(
        zoo.config, data=replace(zoo.config.data, forgotten=(*zoo.config.data.forgotten, forgotten.number))
    )
    if data_dir is not None:
        config = replace(config, data=replace(config.data, data_dir=Path(data_dir)))
    if config.memory is not None:
        raise UserError(
            f"{zoo.path} shares --memory {config.memory} between tasks, so that what it kept of others depends on the "
            "forgotten one; leave --retrain out"
        )
    stream = build_stream(config.data, config.seed, zoo.device)
    _check_targets(zoo, stream, config.data.data_dir)
    compute = zoo.as_trained
    method = build_method(Context(config, stream.spec, compute))
    assert isinstance(method, Ensemble)
    method.revisit([Episode(task.id, (task,)) for task in stream.tasks])
    # Other random numbers than those that the members had while they saw the task.
    seed = derive_seed(config.seed, "without", forgotten.number)
    found: list[Successor] = []
    stats = TrainingStats()
    for member in zoo.members:
        others = [task for task in member.tasks if task != forgotten.number and task in method.memory.tasks]
        if forgotten.number not in member.tasks or not others:
            continue
        monitor.episode_begins(len(found) + 1, sum(forgotten.number in other.tasks for other in zoo.members))
        new, took = method.train_member_on(others, member.number, member.episode, seed, monitor)
        stats += took
        for number in others:
            held = stream.task(number).held_out
            if held is not None:
                new.predictions[number, HELD_OUT] = method.predictions_of(new, number, held)
        successor = replace(
            member.on(others), weights=new.weights, parameters=count_parameters(new.net)
        )  # fmt: skip
        found.append(Successor(successor, new.net.state_dict(), new.predictions, retrained=True))
    return found, stats, stream.fingerprint()


def write(
    zoo: Zoo, forgotten: SavedTask, successors: Sequence[Successor], stats: TrainingStats, path: Path,
    facts: Mapping[str, Any],
) -> dict[int, Cost]:  # fmt: skip
    """The run directory of the new zoo, in a folder that is locked and free.

    Args:
        facts: of this process, for config.yaml.

    Returns:
        By remaining task.

    Raises:
        UserError: the folder cannot be written.
    """
    successors = sorted(successors, key=lambda successor: successor.member.number)
    saved = read_config(zoo.path)
    config = {
        **saved, **facts, "data": {**saved["data"], "forgotten": [*zoo.config.data.forgotten, forgotten.number]},
        "compared_with": None,
        "extended_from": None, "retrained": any(successor.retrained for successor in successors),
        "derived": f"{zoo.path} without task {forgotten.number}, {forgotten.name}",
    }  # fmt: skip
    remaining = [task for task in zoo.tasks if task != forgotten]
    targets = zoo.targets
    before, after = _scores(zoo, remaining), _scores_of(successors, remaining, targets)
    document, of_zoo = certificate(zoo, forgotten, successors), read_summary(zoo.path) or {}
    directory = RunDirectory.begin(path, config)
    directory.add_targets({key: values for key, values in targets.items() if key[0] != forgotten.number})
    for number, successor in enumerate(successors):
        facts_now = replace(successor.member, number=number, replaces_earlier=not number)
        directory.add_member(facts_now, successor.tensors, successor.predictions)
    rows = [
        Measurement(1, stats.steps, stats.images, task.number, task.name, "test", "", TASK_INCREMENTAL, scores)
        for task in remaining if (scores := after[task.number]) is not None
    ]  # fmt: skip
    seconds = stats.seconds or 1e-9
    trained = sorted({task for successor in successors if successor.retrained for task in successor.member.tasks})
    directory.add_episode(
        EpisodeFacts(1, trained, {}, stats.examples, stats.images, stats.gradients, stats.steps, stats.seconds,
                     stats.seconds, stats.images / seconds, stats.loss if stats.images else 0.0,
                     peak_memory(zoo.device)), rows)  # fmt: skip
    directory.add_document(CERTIFICATE, document)
    members = {task.number: sum(task.number in s.member.tasks for s in successors) for task in remaining}
    summary = {
        **of_zoo, **summarize(rows, False, None), "continual": False, "tasks": len(rows),
        "episodes": 1, "derived": config["derived"], "images_trained": stats.images, "train_seconds": stats.seconds,
        "sample_gradients": stats.gradients, "images_per_second": stats.images / seconds,
        "total_seconds": stats.seconds,
        "held_out_examples": sum(len(values) for (task, split), values in targets.items()
                                 if split == HELD_OUT and task != forgotten.number),
        "stored_examples": None, "stored_bytes": None,  # of what was kept nothing is known but the images themselves
        "parameters_per_prediction": sum(
            _answering(successor, len(task.classes))
            for task in remaining for successor in successors if task.number in successor.member.tasks
        ) / max(1, len(remaining)),
        "parameters_total": sum(successor.member.parameters for successor in successors),
        "members_per_prediction": sum(members.values()) / max(1, len(remaining)),
    }  # fmt: skip
    directory.commit(1, len(successors), stats.seconds, {})
    directory.finish(summary, AVERAGES)
    return {task.number: _cost(zoo, task, members[task.number], before, after) for task in remaining}


def _cost(
    zoo: Zoo, task: SavedTask, members: int, before: Mapping[int, Scores], after: Mapping[int, Scores | None]
) -> Cost:  # fmt: skip
    scores = after[task.number]
    accuracy = None if scores is None else scores["accuracy"].value
    return Cost(len(zoo.members_for(task)), members, before[task.number]["accuracy"].value, accuracy)


def certificate(zoo: Zoo, forgotten: SavedTask, successors: Sequence[Successor]) -> dict[str, Any]:
    """Which weights ever saw the examples of a task, and what became of them."""
    new = {successor.member.number: (place, successor) for place, successor in enumerate(successors)}
    members = []
    for member in zoo.members:
        saw = forgotten.number in member.tasks
        place, successor = new.get(member.number, (None, None))
        what = "kept" if not saw else "dropped" if successor is None else "dropped, trained again without the task"
        members.append({
            "member": member.number, "trained_on": list(member.tasks), "saw_the_task": saw, "what_became_of_it": what,
            "weights_sha256": _sum(zoo.tensors(weights_file(member.number))),
            "member_now": place, "trained_on_now": None if successor is None else list(successor.member.tasks),
            "weights_sha256_now": None if successor is None else _sum(successor.tensors),
        })  # fmt: skip
    return {
        "forgotten": {"task": forgotten.number, "name": forgotten.name, "classes": list(forgotten.classes)},
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": str(zoo.path.absolute()),
        "from_manifest_sha256": hashlib.sha256((zoo.path / MANIFEST).read_bytes()).hexdigest(),
        "members": members,
        "limits": list(LIMITS),
    }


def _scores(zoo: Zoo, tasks: Sequence[SavedTask]) -> dict[int, Scores]:
    """Of the zoo as it is, from its saved predictions."""
    said = zoo.said_about("test")
    plain = zoo.combined().combinations
    return {task.number: CrossEntropy().evaluate(said[task.number].of(plain[task.number]), said[task.number].targets)
            for task in tasks}  # fmt: skip


def _answering(successor: Successor, classes: int) -> int:
    """Parameters that answer a task: the trunk's and those of one head."""
    weight, bias = successor.tensors["weight"], successor.tensors["bias"]
    return successor.member.parameters - weight.numel() - bias.numel() + classes * (weight.shape[1] + 1)


def _scores_of(
    successors: Sequence[Successor], tasks: Sequence[SavedTask], targets: Mapping[tuple[int, str], Tensor]
) -> dict[int, Scores | None]:
    found: dict[int, Scores | None] = {}
    for task in tasks:
        mine = [successor for successor in successors if task.number in successor.member.tasks]
        said = [successor.predictions[task.number, "test"].float().cpu() for successor in mine]
        weights = [successor.member.weight(task.number) for successor in mine]
        right = targets[task.number, "test"]
        found[task.number] = CrossEntropy().evaluate(weighted_mean(said, weights), right) if mine else None
    return found


def _check_targets(zoo: Zoo, stream: TaskStream, data_dir: Path) -> None:
    nothing = torch.empty(0)
    for task in stream.tasks:
        if not torch.equal(zoo.targets.get((task.id, "test"), nothing), task.test.targets.cpu()):
            raise UserError(
                f"{data_dir}: the data are not those that {zoo.path} was trained on; name their folder with --data_dir"
            )


def _sum(tensors: Mapping[str, Tensor]) -> str:
    """Of the file that holds them."""
    return hashlib.sha256(tensor_bytes(tensors)).hexdigest()
