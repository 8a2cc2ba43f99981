"""What a command of train_task.py is to run: new runs, interrupted ones, and runs that are already finished."""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import build_stream
from records.configuration import saved_config
from records.directory import RunDirectory, check_free, check_whole, holds_run, read_config
from records.lock import locked
from records.preparing import prepared
from records.resume import differs, with_free
from records.run import task_number
from records.summary import read_summary
from records.task_config import METHOD, TaskRunConfig
from records.task_invocation import PROGRAM, TaskCommand, TaskInvocation
from records.tiny import Begin, first_network
from utils.errors import UserError
from utils.settings import declarations


@dataclass(frozen=True)
class TaskPlan:
    """One run that is to be begun or resumed, or is finished."""

    path: Path
    config: TaskRunConfig
    saved: Mapping[str, Any] | None = None  # config.yaml of the interrupted run
    summary: Mapping[str, Any] | None = None  # of a finished one
    begin: Begin | None = None  # where a new run does not begin with weights that are drawn


def planned(invocation: TaskInvocation, stack: ExitStack) -> list[TaskPlan]:
    """Check options and saved configurations against each other; the runs are locked until `stack` closes."""
    command, runs = invocation.command, invocation.runs
    begun = [path for path in runs if command.resume and holds_run(path)]
    if command.resume and not begun and not invocation.describes_run:
        where = next(iter(runs))
        raise UserError(f"--resume: {where} holds no run; check --run_dir, or add the options of a run to begin")
    for path in runs:
        if path not in begun:
            check_free(path, command.overwrite)
    if not begun or "data_config" in invocation.given or command.task is not None:
        one = of_one_task(invocation.config, command)
        runs = {path: replace(config, data=one.data) for path, config in runs.items()}
    for path in begun:
        stack.enter_context(locked(path, "--run_dir "))
    plans = {path: _interrupted(path, runs[path], invocation) for path in begun}
    missing = {path: config for path, config in runs.items() if path not in begun}
    for path, config in missing.items():
        # Runs that are still to be begun are as those that were, whatever this command line leaves out.
        like = plans[begun[0]].config if begun else config
        plans[path] = _new(path, replace(like, seed=config.seed, hp=replace(like.hp, lr=config.hp.lr)), command)
    for path in missing:  # only now: a refusal leaves no folder
        stack.enter_context(locked(path, "--run_dir "))
    return [plans[path] for path in runs]


def _new(path: Path, config: TaskRunConfig, command: TaskCommand) -> TaskPlan:
    if command.zoo_dir is None:
        if config.begun_from is not None:
            raise UserError(f"--resume: {path} is still to be begun; say with --zoo_dir from which network")
        return TaskPlan(path, config)
    begin = first_network(command.zoo_dir, config, command.n_seqs)
    return TaskPlan(path, replace(config, begun_from=begin.path, begun_from_sha256=begin.sha256), begin=begin)


def of_one_task(config: TaskRunConfig, command: TaskCommand) -> TaskRunConfig:
    """The configuration with the task that --task names as the only one."""
    data = config.data
    if command.task is None:
        return config
    stream = build_stream(data, config.seed, prepared(config))
    number = task_number(Path(data.path), command.task, {task.id: task.name for task in stream.tasks})
    return replace(config, data=replace(data, tasks=(data.tasks[number - 1],)))


def _interrupted(path: Path, asked: TaskRunConfig, invocation: TaskInvocation) -> TaskPlan:
    """The plan of a run that was begun or is finished; UserError if this command line contradicts it."""
    check_whole(path)
    saved, summary = read_config(path), read_summary(path)
    if saved.get("method") != METHOD:
        raise UserError(f"--resume: {path} is a run of modelzoo.py; resume it with that program")
    config: TaskRunConfig = saved_config(str(path / "config.yaml"), saved, TaskRunConfig)
    if invocation.command.zoo_dir is not None and config.begun_from is None:
        raise UserError(f"--resume: {path} began with weights that were drawn; leave --zoo_dir out")
    names = {key: declared.option for key, declared in PROGRAM.options().items()}
    own = declarations(TaskCommand).keys() - {"data_config", "hp_config"}
    differing = sorted(names.get(key, key) for key in invocation.given if differs(key, asked, config, own))
    if differing:
        raise UserError(
            f"--resume: {path}/config.yaml has another {', '.join(differing)}; leave out what has changed, or name "
            "another --run_dir for another run"
        )
    if summary:
        tidy(path)
    return TaskPlan(path, with_free(asked, invocation.given, config), saved, summary)


def tidy(path: Path) -> None:
    """Remove what is left of the state of a finished run whose process was killed before it did so."""
    RunDirectory.reopen(path)
    with suppress(OSError):  # it is not empty
        (path / "state").rmdir()
