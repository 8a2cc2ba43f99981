"""The contents of the files of a run: config.yaml, targets, members, a line of episodes.csv, summary.json."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets.objectives import ACCURACY, Metric
from datasets.task import HELD_OUT, Episode, Examples, TaskStream
from datasets.validation import NOTICE
from evaluation.accuracy import further_splits
from evaluation.measurements import TRAINED
from evaluation.members import Learned
from methods.base import Method
from methods.config import RunConfig
from methods.memory.replay import ReplayMemory
from net import count_parameters
from net.config import NetConfig
from net.multihead import MultiHead
from records.configuration import plain_config
from records.directory import RunDirectory
from records.members import SavedMember
from records.monitor import EpisodeFacts
from records.summary import costs, selection_entropy
from records.task_config import TaskRunConfig
from utils.compute import Compute, peak_memory, provenance
from utils.machine import notice
from utils.settings import plain

_HEADS = {
    "task": "a head per task",
    "shared": "one head",
    "growing": "one head of the classes seen",
    "identity": "no head",
}


def header_of(
    config: RunConfig, stream: TaskStream, parameters: int, device: str, path: Path, done: int
) -> list[tuple[str, str]]:  # fmt: skip
    """Names and values that describe a run to people; `done`: episodes of earlier processes."""
    mode = "continual" if config.continual else "multi-task"
    mode += "" if config.data.scenario == "task" else f", {TRAINED[config.data.scenario]}"
    metric = main_metric(stream)
    better = f"{metric.name}, {'higher' if metric.higher_is_better else 'lower'} is better"
    held = [f"{count / 1e6:,.1f} MB on {where}" for where, count in stream.held().items()]
    return [
        ("stream", f"{config.stream}: {len(stream.tasks)} tasks, {mode}"),
        ("data", ", ".join(held)),
        *([("images", stream.notice)] if stream.notice else []),
        *([("validation", NOTICE)] if config.data.validation else []),
        ("method", config.method),
        *([] if metric == ACCURACY else [("metric", better)]),
        ("network", f"{config.net.model}, {parameters:,} parameters and {_HEADS[stream.spec.heads]}"),
        ("device", device),
        *([("machine", text)] if (text := notice()) else []),
        ("run", f"{path}, resumed after episode {done}" if done else str(path)),
    ]


def targets_of(stream: TaskStream) -> dict[tuple[int, str], Tensor]:
    """Targets of all splits whose predictions are saved, by task and split."""
    return {place: examples.targets for place, examples in _predicted(stream).items()}


def names_of(stream: TaskStream) -> dict[tuple[int, str], list[str]]:
    """Names of the examples whose predictions are saved, such as files, by task and split; of those that have names."""
    return {place: [examples.names[row] for row in examples.rows.tolist()]
            for place, examples in _predicted(stream).items() if examples.names is not None}  # fmt: skip


def _predicted(stream: TaskStream) -> dict[tuple[int, str], Examples]:
    splits = {task.id: {"test": task.test, HELD_OUT: task.held_out, **further_splits(task)} for task in stream.tasks}
    return {(task, split): examples
            for task, parts in splits.items() for split, examples in parts.items() if examples is not None}  # fmt: skip


def main_metric(stream: TaskStream) -> Metric:
    """The main metric, which the matrix R holds."""
    return next(iter(stream.spec.objective.metrics.values()))


def save_kept(directory: RunDirectory, memory: ReplayMemory, episode: int) -> None:
    """Save which training examples are kept, and their targets, of the tasks where an episode has changed them."""
    if memory.changed:
        parts = {"positions": memory.positions, "targets": {t: memory.examples(t).targets for t in memory.changed}}
        directory.add_kept(episode, {(t, name): part[t] for name, part in parts.items() for t in memory.changed})


def save_members(directory: RunDirectory, method: Method, stream: TaskStream) -> None:
    """Save the weights and predictions of the networks of the last episode."""
    for member in method.new_members:
        facts = saved_member(
            member.number, member.episode, member.net, stream, method.config.net, member.tasks, member.weights,
            member.replaces,
        )  # fmt: skip
        # Trunk weights of a single task, see MultiHead.for_task.
        own = {f"task_{task}/{name}": value
               for task, parts in member.task_weights.items() for name, value in parts.items()}  # fmt: skip
        directory.add_member(facts, {**member.net.state_dict(), **own}, member.predictions)


def saved_member(
    number: int, episode: int, net: MultiHead, stream: TaskStream, config: NetConfig, tasks: Sequence[int] = (1,),
    weights: Sequence[float] = (1.0,), replaces: bool = True,
) -> SavedMember:  # fmt: skip
    """The description of a network, by default the only one, of the only task."""
    found = [stream.task(number) for number in tasks]
    return SavedMember(
        number=number, episode=episode, replaces_earlier=replaces, tasks=tuple(tasks), weights=tuple(weights),
        task_names=tuple(task.name for task in found),
        classes=tuple(task.output_names[: net.head_sizes[task.id]] for task in found),
        net={"model": config.model, **plain(config.settings)}, input_shape=stream.spec.input_shape,
        parameters=count_parameters(net), heads=stream.spec.heads, asked=stream.spec.asked,
    )  # fmt: skip


def episode_facts(episode: Episode, learned: Learned, seconds: float, device: torch.device) -> EpisodeFacts:
    """The line of episodes.csv."""
    stats = learned.stats
    return EpisodeFacts(
        episode.number, learned.tasks, learned.weights, stats.examples, stats.images, stats.gradients, stats.steps,
        seconds, stats.seconds, stats.images / stats.seconds, stats.loss, peak_memory(device),
    )  # fmt: skip


def facts_of(stream: TaskStream, method: Method, history: Sequence[EpisodeFacts]) -> dict[str, Any]:
    """The first part of summary.json: what was run, and its cost."""
    config = method.config
    storage, budget = method.storage(), method.memory.budget
    return {
        "method": config.method,
        "stream": config.stream,
        "model": config.net.model,
        "seed": config.seed,
        "continual": config.continual,
        "tasks": len(stream.tasks),
        "episodes": len(history),
        "epochs": config.hp.epochs,
        "samples": config.data.samples,
        "replay_frac": budget.fraction,
        "tasks_per_round": config.tasks_per_round,
        "memory": budget.total,
        "memory_per_class": budget.per_class,
        "memory_per_task": budget.per_task,
        "settings": plain(config.settings),
        "held_out_examples": sum(len(task.held_out) for task in stream.tasks if task.held_out is not None),
        "stored_examples": storage.examples,
        "stored_bytes": storage.bytes,
        "parameters_total": storage.parameters,
        "members_per_prediction": storage.members_per_prediction,
        "parameters_per_prediction": storage.parameters_per_prediction,
        "selection_entropy": selection_entropy(history),
        **costs(history),
    }


def task_facts(
    config: TaskRunConfig, stream: TaskStream, net: MultiHead, history: Sequence[EpisodeFacts], together: int
) -> dict[str, Any]:  # fmt: skip
    """The first part of summary.json of a run of train_task.py; `together`: networks that computed as one."""
    task, parameters = stream.tasks[0], count_parameters(net)
    return {
        "method": config.method,
        "stream": config.stream,
        "model": config.net.model,
        "seed": config.seed,
        "continual": True,
        "tasks": 1,
        "episodes": 1,
        "epochs": config.hp.epochs,
        "examples": history[-1].images,
        "steps": history[-1].steps,
        "trained_together": together,
        "uninformed_loss": stream.spec.objective.uninformed_loss(task.num_outputs, task.train_eval.targets),
        "parameters_total": parameters,
        "members_per_prediction": 1,
        "parameters_per_prediction": parameters,
        "state_bytes": state_bytes(net),
        "stored_examples": 0,
        "stored_bytes": 0,
        **costs(history),
    }


def state_bytes(net: MultiHead) -> int | None:
    """Bytes in float32 of what a network of sequence mixers remembers of its longest input; None for other networks."""
    trunk = net.trunk
    return 4 * trunk.state_size(trunk.length) if hasattr(trunk, "state_size") else None  # type: ignore[operator]


def resolve(
    config: RunConfig | TaskRunConfig, compute: Compute, stream: TaskStream, isolated: Path | None, base: Path | None,
    base_sha256: str | None = None, made: Mapping[str, object] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The content of config.yaml of a run that is compared with `isolated` and extends `base`, if any.

    `made`: the `provenance`, where it is known.
    """
    metric = main_metric(stream)
    config = replace(config, data=replace(config.data, data_dir=config.data.data_dir.absolute()))  # found from anywhere
    return {
        "stream": config.stream,
        **plain_config(config),
        "device": str(compute.device),
        "precision": "bf16" if compute.bf16 else "fp32",
        "threads": torch.get_num_threads(),
        "compared_with": None if isolated is None else str(isolated.absolute()),
        "extended_from": None if base is None else str(base.absolute()),
        "extended_from_sha256": base_sha256,
        "metric": metric.name,
        "higher_is_better": metric.higher_is_better,
        "objective": type(stream.spec.objective).__name__,
        "preprocess": type(stream.spec.preprocess).__name__,
        "inputs": stream.spec.preprocess.facts,
        "targets": stream.spec.objective.facts,
        "data_sha256": stream.fingerprints(),
        **(made or provenance()),
    }
