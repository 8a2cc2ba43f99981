"""Opening runs of train_task.py: everything is built and checked before the first step.

TaskInvocation -> TaskPlans (what is to be run) -> TaskGroups of runs whose networks train as one computation
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from datasets.task import TEST, TaskStream, TrainSource
from datasets.validation import NOTICE
from evaluation.watching import Watching
from methods.base import new_network
from net import count_parameters
from net.multihead import MultiHead
from net.stack import stackable
from records.checkpoints import TaskCheckpoints
from records.configuration import hyperparameter_kinds, hyperparameters
from records.directory import RunDirectory
from records.monitor import RunStart
from records.preparing import fitting, prepared, trial_network, writable
from records.resume import check_same_data, warn_of_versions
from records.task_group import NAME, OneRun, TaskGroup
from records.task_invocation import TaskCommand, TaskInvocation
from records.task_monitor import TaskBoard, TaskConsole, TaskMonitor, task_header
from records.task_plan import TaskPlan
from records.writing import resolve
from training.features import task_stream
from training.launch import choose_launch
from training.loop import Training
from training.recipe import Recipe
from training.stacked import StackedTraining
from training.threads import use_threads
from training.times import times
from utils.compute import Compute, provenance, runs_in_bf16
from utils.errors import UserError, enough_memory
from utils.files import side_by_side
from utils.seeding import derive_seed, seeded
from utils.trees import Tree, from_bytes


def groups(
    plans: Sequence[TaskPlan], invocation: TaskInvocation, console: TaskConsole, stack: ExitStack
) -> Iterator[TaskGroup]:  # fmt: skip
    """Build and check everything, then open the run directories, which are closed with `stack`.

    Runs whose networks can be stacked and that have taken the same number of steps are one group.
    """
    begin, config = time.perf_counter(), plans[0].config
    compute = Compute(device := prepared(config), runs_in_bf16(config.precision, prepared(config)))
    with enough_memory(f"the data on {device}", "fewer examples need less"):
        stream = task_stream(config.data, config.net, config.seed, device)
        trial = trial_network(config, stream)
    together, count = _stacks(trial, config.hp), len(stream.tasks[0].train)
    if config.until is not None and Watching(stream.tasks[0], stream.spec, compute).split == TEST:
        raise UserError(f"--until {config.until:g}: there are no development examples to tell when; leave it out")
    for policy in (config.checkpoints, config.evaluations):
        times(policy, config.hp.length(count, config.hp.batch_size(count)))
    if config.threads is None:
        networks = len(plans) if together else 1
        use_threads(trial.trunk, stream.spec.input_shape, config.hp.batch, device, networks)
    if any(plan.saved for plan in plans):
        stack.enter_context(fitting(invocation.folder))
    stack.enter_context(writable(invocation.folder, invocation.resuming))
    streams, made = {config.seed: stream}, provenance()  # runs of one seed have the same data
    for plan in plans:
        if (seed := plan.config.seed) not in streams:
            streams[seed] = task_stream(plan.config.data, plan.config.net, seed, device)
    resolved = [resolve(plan.config, compute, streams[plan.config.seed], None, None, made=made) for plan in plans]
    directories = side_by_side(lambda pair: _directory(*pair, stack), zip(plans, resolved, strict=True))
    opened = [_opened(plan, compute, streams[plan.config.seed], directory, facts)
              for plan, directory, facts in zip(plans, directories, resolved, strict=True)]  # fmt: skip
    by_step: dict[tuple[int, int], list[tuple[OneRun, Tree | None]]] = {}
    for place, (run, state) in enumerate(opened):
        done = state["steps"]["done"] if state else 0
        by_step.setdefault((done, 0 if together else place), []).append((run, state))
    for found in by_step.values():
        with enough_memory(f"training on {device}", "a smaller batch or model in --hp_config needs less"):
            group = _group(found, compute, invocation.command, console, begin, stack)
        yield group


def _stacks(net: MultiHead, recipe: Recipe) -> bool:
    """Whether several networks can be trained as one computation; their parameters are told apart by no name then."""
    return stackable(net) and recipe.decayed == "all"


def _directory(plan: TaskPlan, resolved: dict[str, Any], stack: ExitStack) -> RunDirectory:
    """The directory of a run, begun or reopened, which is closed with `stack`."""
    path = plan.path
    if plan.saved is not None:
        check_same_data(path, plan.saved, resolved["data_sha256"], plan.config.data.data_dir)
        warn_of_versions(plan.saved, resolved)
    directory = RunDirectory.begin(path, resolved) if plan.saved is None else RunDirectory.reopen(path)
    stack.callback(directory.close)
    return directory


def _opened(
    plan: TaskPlan, compute: Compute, stream: TaskStream, directory: RunDirectory, resolved: dict[str, Any]
) -> tuple[OneRun, Tree | None]:  # fmt: skip
    """A run with its network, and the saved state of its training, if there is one."""
    config, device = plan.config, compute.device
    task = stream.tasks[0]
    with seeded(config.seed, *NAME):
        net = new_network(config, stream.spec, {task.id: task.num_outputs}).to(device)
    if config.begun_from is not None:
        _begin(net, plan, directory)
    content = directory.training("_".join(map(str, NAME)))
    state = None if content is None else from_bytes(content, device)
    start = RunStart((), resolved, hyperparameters(config), 1, None, (), tuple(directory.rows))
    watching = Watching(task, stream.spec, compute, config.evaluate, config.ask)
    return OneRun(config, stream, directory, net, watching, start), state


def _begin(net: MultiHead, plan: TaskPlan, directory: RunDirectory) -> None:
    """Give a network its first weights, which the run keeps: a resumed one does not need the folder they came from."""
    if plan.begin is not None:
        directory.add_checkpoint(0, plan.begin.state)
        directory.keep_training(0.0, {})
    if not directory.has_checkpoint(0):
        raise UserError(f"{plan.path} was stopped before it held its first weights; begin it again with --overwrite")
    net.load_state_dict(directory.checkpoint(0))


def _group(
    found: Sequence[tuple[OneRun, Tree | None]], compute: Compute, command: TaskCommand, console: TaskConsole,
    begin: float, stack: ExitStack,
) -> TaskGroup:  # fmt: skip
    runs, states = [run for run, _ in found], [state for _, state in found]
    first, seeds = runs[0], [run.config.seed for run in runs]
    earlier = max(run.directory.manifest.seconds for run in runs)
    checkpoints = TaskCheckpoints(
        [run.directory for run in runs], command.checkpoint_minutes,
        lambda: earlier + time.perf_counter() - begin, compute.device,
    )  # fmt: skip
    kinds = hyperparameter_kinds()
    boards = [TaskBoard(run.directory.log, kinds) for run in runs]
    monitor = TaskMonitor(console, boards)
    stack.callback(monitor.close)
    for board, run in zip(boards, runs, strict=True):
        board.run_begins(run.start)
    training = _training(runs, states, compute, monitor, checkpoints)
    monitor.trains(training)
    network = f"{first.config.net.model}, {count_parameters(first.net):,} parameters"
    rates = [run.config.hp.lr for run in runs]
    only = first.config.evaluate_only
    header = task_header(first.watching, network, training, seeds, rates, _where(runs), only)
    console.begins([*header, *([("validation", NOTICE)] if first.config.data.validation else [])])
    console.training(training, only)
    return TaskGroup(runs, training, checkpoints, monitor)


def _where(runs: Sequence[OneRun]) -> Path:
    """The run directory of a single run, or the folder of several."""
    return Path(os.path.commonpath([run.directory.path for run in runs]))


def _training(
    runs: Sequence[OneRun], states: Sequence[Tree | None], compute: Compute, monitor: TaskMonitor,
    checkpoints: TaskCheckpoints,
) -> Training:  # fmt: skip
    """The training of the networks of these runs, resumed from their saved states if there are any."""
    first, seeds = runs[0], [run.config.seed for run in runs]
    task, spec, recipe = first.stream.tasks[0], first.stream.spec, first.config.hp
    common: dict[str, Any] = {"monitor": monitor, "checkpoints": checkpoints}
    # A stack computes faster on a CPU, also alone; steps of a single network can be CUDA graphs.
    alone = len(runs) == 1 and (compute.device.type == "cuda" or not _stacks(first.net, recipe))
    if alone:
        with seeded(first.config.seed, "trial"):
            trial = new_network(first.config, spec, first.net.head_sizes).to(compute.device)
            compute, _ = choose_launch(trial, task.id, task.train, spec, recipe, compute)
        sources = [(task.id, task.train)]
        training = Training(first.net, sources, spec, recipe, compute, seeds[0], NAME, **common)
        if states[0]:
            training.restore(states[0])
        else:
            torch.manual_seed(derive_seed(seeds[0], *NAME, "training"))  # of dropout
        return training
    every: list[list[tuple[int, TrainSource]]] = [[(task.id, run.stream.tasks[0].train)] for run in runs]
    rates, nets = [run.config.hp.lr for run in runs], [run.net for run in runs]
    stacked = StackedTraining(nets, every, spec, recipe, compute, seeds, NAME, rates=rates, **common)
    if states[0]:
        stacked.restore(states)
    return stacked
