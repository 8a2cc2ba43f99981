"""Starting, resuming, extending and verifying a run.

Invocation -> Plan (what is to be run) -> Session (everything built and checked, the directory open and locked)
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from datasets.task import TEST, TRAIN, Episode, Table, Task, TaskStream
from evaluation.accuracy import Evaluation
from evaluation.anytime import Anytime
from evaluation.members import Member
from methods import METHODS, build_method
from methods.base import Context, Method, check_requirements, new_network
from methods.config import RunConfig
from net import count_parameters
from net.multihead import MultiHead
from records.checkpoints import RunCheckpoints
from records.configuration import hyperparameters
from records.directory import RunDirectory, check_free, check_whole, holds_run, read_config
from records.invocation import Invocation, with_settings
from records.lock import locked
from records.manifest import checked, read_manifest
from records.members import answering, read_members, read_network
from records.monitor import RunStart
from records.preparing import fitting, prepared, trial_network, writable
from records.resume import check_same_data, extended, other_run, resumed, warn_of_versions
from records.summary import load_isolated, read_summary
from records.task_config import METHOD
from records.writing import header_of, names_of, resolve, targets_of
from training.features import task_stream
from training.launch import choose_launch
from training.monitor import Monitor
from training.threads import use_threads
from utils.compute import Compute, describe_device, runs_in_bf16
from utils.errors import TrainingError, UserError, enough_memory, one_line, shortage
from utils.files import tensor_bytes
from utils.seeding import seeded
from utils.trees import from_bytes, to_bytes

_FEW = 4  # examples of a task: enough for every network and method to take a step


@dataclass(frozen=True)
class Plan:
    """What is to be run: a new run, an interrupted one, or the extension of a finished one."""

    invocation: Invocation
    saved: Mapping[str, Any] | None = None  # config.yaml of the interrupted run
    base: Path | None = None  # the finished run that is extended
    base_sha256: str | None = None  # of its manifest when the extension was begun
    base_saved: Mapping[str, Any] | None = None  # config.yaml of the base, if the extension is new
    summary: Mapping[str, Any] | None = None  # of the run, if it is already finished: there is nothing to run


def planned(invocation: Invocation, stack: ExitStack) -> Plan:
    """Check options and saved configurations against each other; an interrupted run is locked until `stack` closes."""
    path, command = invocation.run_dir, invocation.command
    if command.resume and holds_run(path):
        stack.enter_context(locked(path, "--run_dir "))
        check_whole(path)
        saved = read_config(path)
        invocation, summary = resumed(invocation, saved), read_summary(path)
        if summary:
            if command.isolated and command.isolated.absolute() != other_run(saved, "compared_with"):
                raise UserError(f"--resume: {path} is finished, so that it cannot be compared any more")
            with writable(path):
                RunDirectory.reopen(path)
        base = other_run(saved, "extended_from")
        return Plan(invocation, saved, base, saved.get("extended_from_sha256"), summary=summary)
    if command.extend is not None:
        before, sha256 = finished_run(command.extend)
        invocation = extended(invocation, before)
        check_free(path, command.overwrite, [command.extend])
        return Plan(invocation, base=command.extend, base_sha256=sha256, base_saved=before)
    invocation = replace(invocation, config=with_settings(invocation))
    check_free(path, command.overwrite)
    if command.resume and not invocation.describes_run:
        raise UserError(f"--resume: {path} holds no run; check --run_dir, or add the options of a run to begin")
    return Plan(invocation)


@dataclass(frozen=True)
class Session:
    """The objects of a run under way; `directory.manifest.episode` of its episodes are complete."""

    config: RunConfig
    stream: TaskStream
    method: Method
    evaluation: Evaluation
    directory: RunDirectory
    checkpoints: RunCheckpoints
    episodes: Sequence[Episode]
    start: RunStart


def opened(plan: Plan, stack: ExitStack) -> Session:
    """Build and check everything, then open the run directory, which is closed with `stack`."""
    begin, config, path = time.perf_counter(), plan.invocation.config, plan.invocation.run_dir
    device = prepared(config)
    compute = Compute(device, runs_in_bf16(config.precision, device))
    with enough_memory(f"the data on {device}", "--samples keeps fewer images"):
        stream = task_stream(config.data, config.net, config.seed, device)
        net = trial_network(config, stream)
        if config.threads is None:
            use_threads(net.trunk, stream.spec.input_shape, config.hp.batch, device)
        reference = plan.invocation.command.isolated
        resolved = resolve(config, compute, stream, reference, plan.base, plan.base_sha256)
    if before := plan.saved or plan.base_saved:
        begun = path if plan.saved or plan.base is None else plan.base
        check_same_data(begun, before, resolved["data_sha256"], config.data.data_dir)
        warn_of_versions(before, resolved)
    isolated = load_isolated(reference, resolved) if reference else None
    with enough_memory(f"training on {device}", "a smaller batch or model in --hp_config needs less"):
        parameters, compute, launch = try_network(net, config, stream, compute)
        method = build_method(Context(config, stream.spec, compute))
    directory = _directory(plan, resolved, stream, stack)
    done, earlier = directory.manifest.episode, directory.manifest.seconds
    evaluation = Evaluation(
        stream,
        method,
        config.seed,
        (row for row in directory.rows if row.episode == done),
        config.evaluate,
        config.ask,
    )
    episodes = schedule(config, stream)
    if plan.saved is not None or plan.base is not None:
        stack.enter_context(fitting(path))
    if done:
        with enough_memory(f"the saved state on {device}", "try again when more is free"):
            state = {part: from_bytes(content, device) for part, content in directory.state().items()}
            method.load_state_dict(state, episodes[:done])
            evaluation.load_state_dict(state, lambda: saved_networks(directory, config, device))
    checkpoints = RunCheckpoints(
        directory, plan.invocation.command.checkpoint_minutes, lambda: earlier + time.perf_counter() - begin, device
    )
    method.checkpoints = checkpoints
    if config.evaluate_every is not None:
        method.anytime = Anytime(stream, config.evaluate_every, config.seed)
    launched = ", ".join(filter(None, [describe_device(device), resolved["precision"], launch]))
    header = header_of(config, stream, parameters, launched, path, done)
    start = RunStart(header, resolved, hyperparameters(config), len(stream.tasks), isolated,
                     tuple(directory.episodes), tuple(directory.rows))  # fmt: skip
    return Session(config, stream, method, evaluation, directory, checkpoints, episodes, start)


def _directory(plan: Plan, resolved: Mapping[str, Any], stream: TaskStream, stack: ExitStack) -> RunDirectory:
    """The run directory: new, as it was last committed, or with the files of the finished run that is extended."""
    path = plan.invocation.run_dir
    if plan.saved is None:
        stack.enter_context(locked(path, "--run_dir "))
        check_free(path, plan.invocation.command.overwrite)  # no other process has begun there meanwhile
    stack.enter_context(writable(path))
    directory = RunDirectory.begin(path, resolved) if plan.saved is None else RunDirectory.reopen(path)
    if plan.base is not None and not directory.manifest.episode:
        directory = directory.adopting(plan.base, plan.base_sha256 or "", targets_of(stream), names_of(stream))
    stack.callback(directory.close)
    return directory


def saved_networks(directory: RunDirectory, config: RunConfig, device: torch.device) -> Iterator[Member]:
    """The networks of a run that answer, read from the disk."""
    path, manifest = directory.path, directory.manifest
    for place, saved in enumerate(answering(read_members(path, manifest))):
        net, own = read_network(path, manifest, saved, config, device)
        yield Member(saved.number, saved.episode, saved.tasks, net, saved.weights, replaces=not place, task_weights=own)


def finished_run(path: Path) -> tuple[dict[str, Any], str]:
    """config.yaml and the checksum of the manifest of a run to extend, which is finished, undamaged and has a state."""
    manifest = read_manifest(path) if holds_run(path) else None
    if manifest is None or not manifest.finished:
        raise UserError(f"--extend {path} is not the directory of a finished run")
    saved = read_config(path)
    if saved.get("method") == METHOD:
        raise UserError(f"--extend {path} is a run of train_task.py, which learns a single task; no task can join")
    if not any(name.startswith("state/") for name in manifest.files):
        raise UserError(f"--extend {path} has no state to continue from: it was derived from another run")
    for name in manifest.files:
        checked(path, manifest, name)
    return saved, manifest.sha256


def schedule(config: RunConfig, stream: TaskStream) -> list[Episode]:
    """The episodes of a run. A method without --rounds learns the multi-task setting in one episode."""
    if config.continual:
        return list(stream.continual())
    if "rounds" not in METHODS[config.method].options:
        return list(stream.multitask(1))
    return list(stream.multitask((config.rounds or len(stream.tasks)) + config.warm_start))


def try_network(net: MultiHead, config: RunConfig, stream: TaskStream, compute: Compute) -> tuple[int, Compute, str]:
    """Rehearse the run, and find out how to launch steps; the trunk's parameters, and what choose_launch returns."""
    task, method = stream.tasks[0], METHODS[config.method]
    check_requirements(method, stream.spec, net, config.hp)
    with seeded(config.seed, "trial"):
        net.to(compute.device)
        rule = method(Context(config, stream.spec, compute)).rule()
        compute, launch = choose_launch(
            net, task.id, task.train, stream.spec, config.hp, compute, method.no_graph_reason, rule
        )
        rehearse(config, stream, compute)
    return count_parameters(net.trunk), compute, launch


def rehearse(config: RunConfig, stream: TaskStream, compute: Compute) -> None:
    """Learn a few examples of the first tasks in one step each, and save and load all that a run saves."""
    first = stream.tasks[:2] if config.continual else stream.tasks
    tiny = TaskStream(stream.spec, tuple(map(_with_few_examples, first)))
    recipe = replace(config.hp, epochs=None, examples=None, steps=1)
    context = Context(replace(config, hp=recipe, rounds=1, warm_start=False), stream.spec, compute)
    method, episodes = build_method(context), schedule(context.config, tiny)
    try:
        with suppress(TrainingError):  # one step says little about whether training diverges
            for episode in episodes:
                method.learn(episode, Monitor())
            state = {part: from_bytes(to_bytes(tree), compute.device) for part, tree in method.state_dict().items()}
            build_method(context).load_state_dict(state, episodes)
            member = method.new_members[-1]
            again = new_network(config, stream.spec, member.net.head_sizes)
            again.load_state_dict(safetensors.torch.load(tensor_bytes(member.net.state_dict())))
    except (RuntimeError, ValueError, IndexError) as error:
        if shortage(error):
            raise
        what = f"{config.net.model} cannot be trained, saved and loaded with --method {config.method}"
        raise UserError(f"{config.net.path}: model: {what}: {one_line(error)[:300]}") from None


def _with_few_examples(task: Task) -> Task:
    parts = task.train.examples if isinstance(task.train, Table) else task.train_eval, task.train_eval, task.test
    train, train_eval, test = (part.subset(torch.arange(min(_FEW, len(part)))) for part in parts)
    return replace(task, train=Table(train), splits={TRAIN: train_eval, TEST: test})
