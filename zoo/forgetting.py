"""A zoo without a task: members that saw it are dropped, or trained again without it; a certificate says which.

RUN -> members that never saw the task (their files as they are) + retrained ones -> a new run directory
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.objectives import CrossEntropy
from datasets.task import HELD_OUT, TEST, TRAIN, Episode
from evaluation.accuracy import AVERAGES
from evaluation.measurements import TRAINED, Measurement
from methods import build_method
from methods.base import Context
from methods.ensemble import Ensemble
from net import count_parameters
from net.multihead import MultiHead
from records.directory import RunDirectory, read_config
from records.manifest import MANIFEST
from records.members import SavedMember, read_names
from records.monitor import EpisodeFacts, RunMonitor
from records.resume import check_same_data
from records.summary import costs, read_summary, summarize
from training.features import task_stream
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

OF_FIRST_TASK = (
    "Inputs are scaled by mean and standard deviation of the forgotten task's training examples, because it was the "
    "first: these numbers are in config.yaml, and every network was trained with them."
)


@dataclass(frozen=True)
class LoadedMember:
    """A member of the old or the new zoo."""

    saved: SavedMember
    net: MultiHead
    predictions: Mapping[tuple[int, str], Tensor]  # (task, split) -> [N, C]
    retrained: bool = False

    def sha256(self) -> str:
        """Checksum of the file of its weights."""
        return hashlib.sha256(tensor_bytes(self.net.state_dict())).hexdigest()


def retrained(
    zoo: Zoo, forgotten: SavedTask, data_dir: str | None, monitor: RunMonitor
) -> tuple[list[LoadedMember], TrainingStats]:
    """Members in place of those that saw the task, trained on their other tasks, on the examples kept of these.

    A UserError if the data are not in `data_dir` (None: where the run had them), or if which examples the method kept
    depends on the forgotten task.
    """
    data = replace(zoo.config.data, forgotten=(*zoo.config.data.forgotten, forgotten.number))
    config = replace(zoo.config, data=data if data_dir is None else replace(data, data_dir=Path(data_dir)))
    if config.memory is not None:
        raise UserError(
            f"{zoo.path} shares --memory {config.memory} between tasks, so that what it kept of others depends on the "
            "forgotten one; leave --retrain out"
        )
    stream = task_stream(config.data, config.net, config.seed, zoo.device)
    check_same_data(zoo.path, read_config(zoo.path), stream.fingerprints(), config.data.data_dir)
    method = build_method(Context(config, stream.spec, zoo.compute))
    assert isinstance(method, Ensemble)
    method.revisit([Episode(task.id, (task,)) for task in stream.tasks])
    # Not the random numbers that the members had while they saw the task.
    seed = derive_seed(config.seed, "without", forgotten.number)
    found: list[LoadedMember] = []
    stats = TrainingStats()
    for member in zoo.members:
        others = [task for task in member.tasks if task != forgotten.number and task in method.memory.tasks]
        if forgotten.number not in member.tasks or not others:
            continue
        monitor.episode_begins(len(found) + 1, sum(forgotten.number in other.tasks for other in zoo.members))
        new, took = method.train_member_on(others, member.number, member.episode, seed, monitor)
        stats += took
        for number in others:
            for split, examples in stream.task(number).splits.items():
                if split not in (TRAIN, TEST):
                    new.predictions[number, split] = method.predictions_of(new, number, examples)
        saved = replace(member.on(others), weights=new.weights, parameters=count_parameters(new.net))
        found.append(LoadedMember(saved, new.net, new.predictions, retrained=True))
    return found, stats


def without_head(member: LoadedMember, forgotten: SavedTask) -> LoadedMember:
    """A network with a head for each task without that of one: all that was computed from it if the trunk is fixed."""
    net, others = member.net, [task for task in member.saved.tasks if task != forgotten.number]
    new = MultiHead(net.trunk, net.weight.shape[1], {task: net.head_sizes[task] for task in others}, net.kind)
    with torch.no_grad():
        for task in others:
            for name, value in new.head_values().items():
                value[new.rows(task)] = net.head_values()[name][net.rows(task)]
    predictions = {key: found for key, found in member.predictions.items() if key[0] != forgotten.number}
    return LoadedMember(replace(member.saved.on(others), parameters=count_parameters(new)), new, predictions)


def write(
    zoo: Zoo, forgotten: SavedTask, before: Sequence[LoadedMember], after: Sequence[LoadedMember],
    stats: TrainingStats, path: Path, facts: Mapping[str, Any], seconds: float,
) -> None:  # fmt: skip
    """Write the run directory of the new zoo into a folder that is locked and free; `facts` go into config.yaml."""
    after = sorted(after, key=lambda member: member.saved.number)
    saved = read_config(zoo.path)
    config = {
        **saved, **facts, "data": {**saved["data"], "forgotten": [*zoo.config.data.forgotten, forgotten.number]},
        "data_sha256": {task: found for task, found in saved["data_sha256"].items() if task != forgotten.number},
        "compared_with": None, "extended_from": None, "extended_from_sha256": None,
        "retrained": any(member.retrained for member in after),
        "derived": f"{zoo.path} without task {forgotten.number}, {forgotten.name}",
    }  # fmt: skip
    remaining = [task for task in zoo.tasks if task != forgotten]
    targets = {key: values for key, values in zoo.targets.items() if key[0] != forgotten.number}
    names = {key: found for key, found in read_names(zoo.path, zoo.manifest).items() if key[0] != forgotten.number}
    answering, rows = list[int](), []
    for task in remaining:
        if asked := [member for member in after if task.number in member.saved.tasks]:
            answering += [count_parameters(m.net.trunk) + m.net.head_parameters(task.number) for m in asked]
            predictions = [member.predictions[task.number, "test"].float().cpu() for member in asked]
            mean = weighted_mean(predictions, [member.saved.weight(task.number) for member in asked])
            scores = CrossEntropy().evaluate(mean, targets[task.number, "test"])
            rows.append(Measurement(1, stats.steps, stats.images, task.number, task.name, "test", "", TRAINED["task"],
                                    scores))  # fmt: skip
    rate = stats.images / stats.seconds if stats.images else math.nan
    trained = sorted({task for member in after if member.retrained for task in member.saved.tasks})
    episode = EpisodeFacts(1, trained, {}, stats.examples, stats.images, stats.gradients, stats.steps, seconds,
                           stats.seconds, rate, stats.loss, peak_memory(zoo.device))  # fmt: skip
    summary = {
        **(read_summary(zoo.path) or {}), **summarize(rows, False, None), "continual": False, "tasks": len(rows),
        "episodes": 1, "derived": config["derived"], **costs([episode]), "total_seconds": seconds,
        "held_out_examples": sum(len(values) for (_, split), values in targets.items() if split == HELD_OUT),
        "stored_examples": None, "stored_bytes": None,  # not known: the memory is not part of the new run
        "parameters_per_prediction": sum(answering) / max(1, len(remaining)),
        "parameters_total": sum(member.saved.parameters for member in after),
        "members_per_prediction": len(answering) / max(1, len(remaining)),
    }  # fmt: skip
    with closing(RunDirectory.begin(path, config)) as directory:
        directory.add_targets(targets, names)
        for number, member in enumerate(after):
            new = replace(member.saved, number=number, replaces_earlier=not number)
            directory.add_member(new, member.net.state_dict(), member.predictions)
        directory.add_episode(episode, rows)
        directory.add_document(CERTIFICATE, certificate(zoo, forgotten, before, after))
        directory.commit(1, len(after), seconds, {})
        directory.finish(summary, AVERAGES)


def certificate(
    zoo: Zoo, forgotten: SavedTask, before: Sequence[LoadedMember], after: Sequence[LoadedMember]
) -> dict[str, Any]:
    """Which weights ever saw the examples of a task, and what became of them."""
    scaled = forgotten.number == 1 and getattr(zoo.preprocess, "mean", None) is not None
    new = {member.saved.number: (number, member) for number, member in enumerate(after)}
    members = []
    for old in before:
        saw = forgotten.number in old.saved.tasks
        number, now = new.get(old.saved.number, (None, None))
        what = "kept" if not saw else "dropped" if now is None else "dropped, trained again without the task"
        if saw and now is not None and not now.retrained:
            what = "kept without the head of the task, its only weights that were computed from the task"
        members.append({
            "member": old.saved.number, "trained_on": list(old.saved.tasks), "saw_the_task": saw,
            "what_became_of_it": what, "weights_sha256": old.sha256(),
            "member_now": number, "trained_on_now": None if now is None else list(now.saved.tasks),
            "weights_sha256_now": None if now is None else now.sha256(),
        })  # fmt: skip
    return {
        "forgotten": {"task": forgotten.number, "name": forgotten.name, "classes": list(forgotten.classes)},
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "from": str(zoo.path.absolute()),
        "from_manifest_sha256": hashlib.sha256((zoo.path / MANIFEST).read_bytes()).hexdigest(),
        "members": members,
        "limits": [*LIMITS, *([OF_FIRST_TASK] if scaled else [])],
    }
