"""Train a continual learner on a stream of tasks.

config/*.yaml + argv -> RunConfig -> TaskStream
for each episode: method.learn -> evaluation of the tasks seen -> rows
rows -> run directory (facts) -> summary, final table, TensorBoard (derived)
"""

from __future__ import annotations

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datasets import build_stream, check_dataset
from datasets.task import Episode, TaskStream
from evaluation.accuracy import HELD_OUT, UNTOLD, Evaluation
from evaluation.members import Member
from methods import (
    METHODS,
    build_method,
    check_method,
    check_saved,
    hyperparameter_kinds,
    hyperparameters,
    with_settings,
)
from methods.base import Learned, Method, Setting
from net import build_net, count_parameters
from net.multihead import MultiHead
from records.checkpoints import RunCheckpoints, ending_on_sigterm, load_state
from records.console import Console
from records.directory import CONFIG, RunDirectory, check_free, holds_run, read_config, read_measurements, read_summary
from records.lock import locked
from records.manifest import checked, is_removed_log, read_manifest, verify
from records.monitor import EpisodeFacts, Monitors, RunMonitor, RunStart
from records.resume import check_data_of, check_same_data, compared_with, extended, extended_from, resumed
from records.summary import final_table, load_isolated, saved_table, summarize
from records.tensorboard import TensorBoard
from training.launch import choose_launch
from training.threads import use_threads
from utils.compute import (
    Compute,
    describe_device,
    enough_memory,
    keep_freed_memory,
    make_reproducible,
    peak_memory,
    pick_device,
    provenance,
    runs_in_bf16,
)
from utils.config import RunConfig
from utils.errors import SignalError, TrainingError, UserError, one_line, print_anything
from utils.machine import notice
from utils.options import Invocation, check_contradictions, parse
from utils.seeding import seeded
from utils.trees import to_bytes
from zoo import Zoo


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if training cannot go on; 2 if the input is wrong; 130 or 143 if stopped; one line on stderr."""
    print_anything()
    try:
        invocation = parse(argv)
        if invocation.verify is not None:
            return verify_run(invocation.verify)
        prepare_and_run(invocation)
    except UserError as error:
        return _fail(error, 2)
    except TrainingError as error:
        return _fail(error, 1)
    except SignalError as error:
        return _fail(f"{error}; go on with: {resuming_command(invocation.run_dir)}", 128 + error.number)
    except KeyboardInterrupt:
        return _fail("interrupted; what was saved before is in the run directory", 130)
    return 0


@dataclass(frozen=True)
class Plan:
    """What is to be run: a new run, one that is gone on with, or one that begins where a finished one has ended."""

    invocation: Invocation
    config: RunConfig
    saved: Mapping[str, Any] | None = None  # config.yaml of the run that is gone on with
    base: Path | None = None  # the finished run
    base_saved: Mapping[str, Any] | None = None  # its config.yaml, while nothing of it was taken over


def planned(invocation: Invocation, stack: ExitStack) -> Plan | None:
    """Options and saved configurations, checked against each other; None if the run is finished: its table is printed.

    Raises:
        UserError: see there.
    """
    path, base = invocation.run_dir, invocation.extend
    if invocation.resume and holds_run(path):
        stack.enter_context(locked(path, "--run_dir "))
        saved = read_config(path)
        invocation = resumed(invocation, saved)
        if summary := read_summary(path):
            if invocation.isolated and invocation.isolated.absolute() != compared_with(saved):
                raise UserError(f"--resume: {path} is finished, so that it cannot be compared any more")
            RunDirectory.reopen(path)
            print(saved_table(path, summary))
            return None
        check_saved(invocation.config, path / CONFIG)
        return Plan(invocation, invocation.config, saved, extended_from(saved))
    if base is not None:
        before = finished_run(base)
        invocation = extended(invocation, before)
        check_saved(invocation.config, base / CONFIG)
        check_free(path, invocation.overwrite, [base])
        return Plan(invocation, invocation.config, base=base, base_saved=before)
    check_contradictions(invocation.given)
    check_method(invocation.config, invocation.given)
    check_free(path, invocation.overwrite)
    return Plan(invocation, with_settings(invocation.config, invocation.method_config))


def prepare_and_run(invocation: Invocation) -> None:
    """Check everything that can be wrong before anything is trained or written, then run."""
    begin, path = time.perf_counter(), invocation.run_dir
    with ExitStack() as stack:
        stack.enter_context(ending_on_sigterm())
        plan = planned(invocation, stack)
        if plan is None:
            return
        invocation, config, base = plan.invocation, plan.config, plan.base
        check_dataset(config)
        device = pick_device(config.device)
        make_reproducible()
        keep_freed_memory()
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        bf16 = runs_in_bf16(config.precision, device)
        with enough_memory(f"the data on {device}", "--samples keeps fewer images"):
            stream = build_stream(config, device)
            net = trial_network(config, stream)
            if config.threads is None:
                use_threads(net.trunk, stream.spec.input_shape, config.hyper.batch, device)
            resolved = resolve(config, device, bf16, stream, invocation.isolated, base)
        if plan.saved is not None:
            check_same_data(path, plan.saved, resolved)
        if base is not None and plan.base_saved is not None:
            first = TaskStream(stream.spec, stream.tasks[: len(plan.base_saved["dataset"]["tasks"])])
            check_data_of(base, plan.base_saved, first.fingerprint(), config.data_dir)
        isolated = load_isolated(invocation.isolated, resolved) if invocation.isolated else None
        with enough_memory(f"training on {device}", "a smaller batch or model in --hp_config needs less"):
            parameters, compute, launch = try_network(net, config, stream, Compute(device, bf16))
            method = build_method(Setting(config, stream.spec, compute))
            directory = stack.enter_context(opened(plan, resolved, stream))
            done, earlier = directory.manifest.episode, directory.manifest.seconds
            if plan.saved is not None or base is not None:
                stack.enter_context(fitting(path))
            evaluation = Evaluation(stream, method, config.seed, (row for row in directory.rows if row.episode == done))
            if done:
                go_on(method, evaluation, directory, schedule(config, stream))
            checkpoints = RunCheckpoints(
                directory, invocation.checkpoint_minutes, lambda: earlier + time.perf_counter() - begin, device
            )
            method.checkpoints = checkpoints
            epochs = directory.manifest.members * config.hyper.epochs
            board = TensorBoard(directory.log, hyperparameter_kinds(), epochs)
            monitor = Monitors([Console(invocation.quiet), board])
            stack.callback(monitor.close)
            launched = ", ".join(filter(None, [describe_device(device), "bf16" if bf16 else "fp32", launch]))
            header = header_of(config, stream, parameters, launched, path, done)
            monitor.run_begins(
                RunStart(header, resolved, hyperparameters(config), len(stream.tasks), isolated,
                         tuple(directory.episodes), tuple(directory.rows))
            )  # fmt: skip
            with checkpoints.catching():
                run(stream, method, evaluation, directory, monitor, checkpoints, isolated)


@contextmanager
def opened(plan: Plan, resolved: Mapping[str, Any], stream: TaskStream) -> Iterator[RunDirectory]:
    """The run directory, as it was last committed, begun, or with what a finished run has left.

    Raises:
        UserError, TrainingError: it cannot be read or written.
    """
    path = plan.invocation.run_dir
    with ExitStack() as stack:
        if plan.saved is None:
            stack.enter_context(locked(path, "--run_dir "))
            check_free(path, plan.invocation.overwrite)  # nobody else has begun there meanwhile
        stack.enter_context(writable(path))
        directory = RunDirectory.begin(path, resolved) if plan.saved is None else RunDirectory.reopen(path)
        if plan.base is not None and not directory.manifest.episode:
            directory = directory.adopting(plan.base, targets_of(stream))
        stack.callback(directory.close)
        yield directory


def header_of(
    config: RunConfig, stream: TaskStream, parameters: int, device: str, path: Path, done: int
) -> list[tuple[str, str]]:  # fmt: skip
    """What is run, for the console; `done`: episodes of earlier processes."""
    mode = "continual" if config.continual else "multi-task"
    held = [f"{count / 1e6:,.1f} MB on {where}" for where, count in stream.held().items()]
    return [
        ("stream", f"{config.stream}: {len(stream.tasks)} tasks, {mode}"),
        ("data", ", ".join(held)),
        ("method", config.method),
        ("network", f"{config.hyper.model}, {parameters:,} parameters and a head per task"),
        ("device", device),
        *([("machine", text)] if (text := notice()) else []),
        ("run", f"{path}, resumed after episode {done}" if done else str(path)),
    ]


def run(
    stream: TaskStream, method: Method, evaluation: Evaluation, directory: RunDirectory, monitor: RunMonitor,
    checkpoints: RunCheckpoints, isolated: Sequence[float] | None,
) -> None:  # fmt: skip
    """The whole experiment: reveal, learn, measure, write down."""
    config = method.config
    episodes, done = schedule(config, stream), directory.manifest.episode
    if not done:
        directory.add_targets(targets_of(stream))
    for episode in episodes[done:]:
        checkpoints.episode_begins()
        monitor.episode_begins(episode.number, len(episodes))
        start = time.perf_counter()
        learned = method.learn(episode, monitor)
        seen = stream.tasks[: episode.number] if config.continual else stream.tasks
        rows = evaluation.after(episode, learned.changed, seen)
        before = evaluation.untrained() if episode.number == 1 else []
        save_members(directory, method, stream)
        facts = episode_facts(episode, learned, time.perf_counter() - start, method.compute.device)
        directory.add_episode(facts, [*before, *rows])
        monitor.episode_ends(facts, rows)
        members = directory.manifest.members + len(method.fresh)
        trees = {**method.state_dict(), **evaluation.state_dict()}
        state = {part: None if tree is None else to_bytes(tree) for part, tree in trees.items()}
        directory.commit(episode.number, members, checkpoints.seconds(), state)
        checkpoints.stop_if_asked()
    summary = {
        **facts_of(stream, method, directory.episodes),
        **summarize(directory.rows, config.continual, isolated),
        "total_seconds": checkpoints.seconds(),
    }
    monitor.run_measured(summary)
    directory.finish(summary, UNTOLD)
    monitor.run_ends(final_table(summary))


def targets_of(stream: TaskStream) -> dict[tuple[int, str], Tensor]:
    """What is right for the examples whose predictions are saved."""
    targets = {(task.id, "test"): task.test.targets for task in stream.tasks}
    held = {(task.id, HELD_OUT): task.held_out.targets for task in stream.tasks if task.held_out is not None}
    return targets | held


def go_on(method: Method, evaluation: Evaluation, directory: RunDirectory, episodes: Sequence[Episode]) -> None:
    """Bring a method and its evaluation to where they were when the run was interrupted; `episodes`: all of it."""
    device, done = method.compute.device, directory.manifest.episode
    seen = [task.id for episode in episodes for task in episode.new]
    measured = {(row.episode, row.task) for row in directory.rows if row.is_test and row.episode}
    expected = {
        (number, task) for number in range(1, min(done, len(episodes)) + 1)
        for task in (seen[:number] if method.config.continual else seen)
    }  # fmt: skip
    if done > len(episodes) or len(directory.episodes) != done or measured != expected:
        raise ValueError(f"the measurements are not those of {done} of {len(episodes)} episodes")
    state = {part: load_state(content, device, str(directory.path)) for part, content in directory.state().items()}
    method.load_state_dict(state, episodes[:done])
    evaluation.load_state_dict(state, lambda: saved_members(directory.path, device))


def saved_members(path: Path, device: torch.device) -> Iterator[Member]:
    """The members of a run that answer, from the disk."""
    zoo = Zoo.load(path, str(device))
    for place, member in enumerate(zoo.members):
        net, own = zoo.net(member)
        yield Member(member.number, member.episode, member.tasks, net, member.weights, replaces=not place, own=own)


def finished_run(path: Path) -> dict[str, Any]:
    """config.yaml of a run that is to be extended.

    Raises:
        UserError: there is no finished run, or nothing to go on from.
    """
    if not holds_run(path) or read_summary(path) is None:
        raise UserError(f"--extend {path} is not the directory of a finished run")
    manifest = read_manifest(path)
    if manifest is None or not any(name.startswith("state/") for name in manifest.files):
        raise UserError(f"--extend {path} has no state to go on from: it was made by an older version, or derived")
    for name in manifest.files:
        if not is_removed_log(path, name):
            checked(path, manifest, name)
    read_measurements(path, manifest)
    return read_config(path)


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """While a run is gone on with: what was saved is taken to be right until it is used.

    Raises:
        UserError: what was saved does not belong to this run.
    """
    try:
        yield
    except (UserError, TrainingError, SignalError, OSError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{path}: what was saved does not fit the run ({reason}); begin anew with --overwrite"
        ) from None


def verify_run(path: Path) -> int:
    """Print what is wrong with the files of a run; exit code 0 if nothing is."""
    wrong, others = verify(path)
    for name in others:
        print(one_line(f"not part of the run: {path / name}"))
    for line in wrong[1:]:
        print(one_line(line))
    if wrong:
        return _fail(wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""), 2)
    print(f"{one_line(path)}: all files are as they were written")
    return 0


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """
    Raises:
        TrainingError: the run directory cannot be written any more.
    """
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still in the buffer has nowhere to go
        raise TrainingError(
            f"nobody reads the output any more (broken pipe); go on with: {resuming_command(path)}"
        ) from None
    except OSError as error:
        raise TrainingError(
            f"{error.filename or path} cannot be written: {error.strerror or error}; "
            f"when it can, go on with: {resuming_command(path)}"
        ) from None


def resuming_command(path: Path) -> str:
    """For people to copy."""
    return f"python modelzoo.py --resume --run_dir {shlex.quote(str(path))}"


def schedule(config: RunConfig, stream: TaskStream) -> list[Episode]:
    """What is revealed when. A method without --rounds learns the multi-task setting in one episode."""
    if config.continual:
        return list(stream.continual())
    if "rounds" not in METHODS[config.method].options:
        return list(stream.multitask(1))
    return list(stream.multitask((config.rounds or len(stream.tasks)) + config.warm_start))


def save_members(directory: RunDirectory, method: Method, stream: TaskStream) -> None:
    """Weights and predictions of the networks that this episode brought."""
    for member in method.fresh:
        tasks = [stream.task(number) for number in member.tasks]
        facts = {
            "member": member.number,
            "episode": member.episode,
            "replaces_earlier": member.replaces,
            "tasks": list(member.tasks),
            "weights": list(member.weights),
            "task_names": [task.name for task in tasks],
            "classes": [list(task.classes) for task in tasks],
            "net": method.config.hyper.model,
            "dropout": method.config.hyper.dropout,
            "input_shape": list(stream.spec.input_shape),
            "parameters": count_parameters(member.net),
        }
        directory.add_member(member.number, member_tensors(member), facts)
        directory.add_predictions(member.number, member.predictions)


def member_tensors(member: Member) -> dict[str, Tensor]:
    """The network, and what tasks have of their own in its trunk (see MultiHead.for_task) as task_<id>/<name>."""
    own = {f"task_{task}/{name}": value for task, parts in member.own.items() for name, value in parts.items()}
    return {**member.net.state_dict(), **own}


def episode_facts(episode: Episode, learned: Learned, seconds: float, device: torch.device) -> EpisodeFacts:
    """A line of episodes.csv."""
    stats = learned.stats
    return EpisodeFacts(
        episode.number, learned.tasks, learned.weights, stats.examples, stats.images, stats.gradients, stats.steps,
        seconds, stats.seconds, stats.images / stats.seconds, stats.loss, peak_memory(device),
    )  # fmt: skip


def facts_of(stream: TaskStream, method: Method, history: Sequence[EpisodeFacts]) -> dict[str, Any]:
    """What was run and what it cost."""
    config = method.config
    storage, budget = method.storage(), method.memory.budget
    images = sum(facts.images for facts in history)
    seconds = sum(facts.train_seconds for facts in history)
    return {
        "method": config.method,
        "stream": config.stream,
        "model": config.hyper.model,
        "seed": config.seed,
        "continual": config.continual,
        "tasks": len(stream.tasks),
        "episodes": len(history),
        "epochs": config.hyper.epochs,
        "samples": config.samples,
        "replay_frac": budget.fraction,
        "tasks_per_round": config.tasks_per_round,
        "memory": budget.total,
        "memory_per_class": budget.per_class,
        "settings": dict(config.settings),
        "held_out_examples": sum(len(task.held_out) for task in stream.tasks if task.held_out is not None),
        "stored_examples": storage.examples,
        "stored_bytes": storage.bytes,
        "parameters_total": storage.parameters,
        "members_per_prediction": storage.members_per_prediction,
        "parameters_per_prediction": storage.parameters_per_prediction,
        "images_trained": images,
        "sample_gradients": sum(facts.sample_gradients for facts in history),
        "train_seconds": seconds,
        "images_per_second": images / seconds,
    }


def resolve(
    config: RunConfig, device: torch.device, bf16: bool, stream: TaskStream, isolated: Path | None, base: Path | None
) -> dict[str, Any]:
    """config.yaml: every default filled in, what the run was made with."""
    plain = asdict(config)
    plain["dataset"]["tasks"] = [{**task, "classes": list(task["classes"])} for task in plain["dataset"]["tasks"]]
    plain |= {
        "forgotten": list(config.forgotten),
        "data_dir": str(config.data_dir),
        "device": str(device),
        "precision": "bf16" if bf16 else "fp32",
    }
    plain |= {
        "threads": torch.get_num_threads(),
        "compared_with": None if isolated is None else str(isolated.absolute()),
        "extended_from": None if base is None else str(base.absolute()),
    }
    return {"stream": config.stream, **plain, "data_sha256": stream.fingerprint(), **provenance()}


def trial_network(config: RunConfig, stream: TaskStream) -> MultiHead:
    """A network, built so that one that does not fit the images fails before anything is written.

    Raises:
        UserError: there is no such network, or it cannot take inputs of this shape.
    """
    task, hyper = stream.tasks[0], config.hyper
    with seeded(config.seed, "trial"):
        try:
            return build_net(hyper.model, stream.spec.input_shape, hyper.dropout, {task.id: task.num_outputs})
        except UserError as error:
            raise UserError(f"{hyper.path}: {error}") from None


def try_network(
    net: MultiHead, config: RunConfig, stream: TaskStream, compute: Compute
) -> tuple[int, Compute, str]:  # fmt: skip
    """Parameters of the trunk, and how training steps are launched: see choose_launch."""
    task, waits = stream.tasks[0], METHODS[config.method].waits
    with seeded(config.seed, "trial"):
        net.to(compute.device)
        compute, launch = choose_launch(net, task.id, task.train, stream.spec, config.hyper, compute, waits)
    return count_parameters(net.trunk), compute, launch


def _fail(reason: object, code: int) -> int:
    print(f"modelzoo.py: {one_line(reason)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
