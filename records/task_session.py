"""Starting and resuming runs of train_task.py, and recording what is measured on the way.

TaskInvocation -> TaskPlans (what is to be run) -> Groups of runs whose networks train as one computation
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import build_stream
from datasets.task import TaskStream, TrainSource
from evaluation.measurements import ANYTIME, Measurement
from evaluation.watching import Watching
from methods.base import new_network
from net import count_parameters
from net.multihead import MultiHead
from net.stack import stackable
from records.checkpoints import TaskCheckpoints
from records.configuration import hyperparameter_kinds, hyperparameters, saved_config
from records.directory import RunDirectory, check_free, check_whole, holds_run, read_config
from records.lock import locked
from records.manifest import SUMMARY
from records.monitor import EpisodeFacts, RunStart
from records.preparing import fitting, prepared, trial_network, writable
from records.resume import check_same_data, differs, warn_of_versions, with_free
from records.run import task_number
from records.summary import read_summary, summarize
from records.task_config import METHOD, TaskRunConfig
from records.task_invocation import PROGRAM, TaskCommand, TaskInvocation
from records.task_monitor import TaskBoard, TaskConsole, TaskMonitor, task_header
from records.tiny import Begin, first_network
from records.writing import main_metric, resolve, saved_member, task_facts
from training.launch import choose_launch
from training.loop import Clock, Training
from training.stacked import StackedTraining
from training.threads import use_threads
from training.times import times
from utils.compute import Compute, enough_memory, peak_memory, runs_in_bf16
from utils.errors import TrainingError, UserError
from utils.seeding import seeded
from utils.settings import declarations
from utils.trees import Tree, from_bytes

_SECONDS = 10.0  # between two savings of the state of training when something was recorded, at least
NAME = ("member", 0)  # of the network's random streams, as in a run of modelzoo.py on this task alone


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


@dataclass
class OneRun:
    """A run under way."""

    config: TaskRunConfig
    stream: TaskStream
    directory: RunDirectory
    net: MultiHead
    watching: Watching
    start: RunStart
    failure: str = ""  # why it cannot go on

    def measured(self, step: int) -> bool:
        """Whether it was evaluated at this step, the latest one."""
        rows = self.directory.rows
        return bool(rows) and rows[-1].step == step


class Group:
    """Runs whose networks train together: their state, and what is done at which step."""

    def __init__(
        self, runs: Sequence[OneRun], training: Training, checkpoints: TaskCheckpoints, monitor: TaskMonitor
    ) -> None:  # fmt: skip
        self.runs, self.training, self.checkpoints, self.monitor = runs, training, checkpoints, monitor
        first = runs[0].config
        length = 0 if first.evaluate_only else training.length
        self._kept, self._watched = set(times(first.checkpoints, length)), set(times(first.evaluations, length))
        self._saved = time.monotonic()

    def moments(self) -> Iterator[int]:
        """The steps at which something is still to be recorded, in their order."""
        begun = self.training.clock.steps
        for step in sorted(self._kept | self._watched):
            if step > begun or (step == begun and not all(self._recorded(run, step) for run in self.runs)):
                yield step

    def _recorded(self, run: OneRun, step: int) -> bool:
        measured = step not in self._watched or run.measured(step)
        return measured and (step not in self._kept or run.directory.has_checkpoint(step))

    def record(self, step: int) -> None:
        """Evaluate the networks and keep their weights, as it is due at this step; TrainingError if all have failed."""
        for number, when in getattr(self.training, "diverged", {}).items():
            told = f"the training loss is not finite after {when:,} steps; try a smaller lr"
            self.runs[number].failure = self.runs[number].failure or told
        found = [self._record(run, step) for run in self.runs]
        if any(found):
            self.monitor.measured(found, sum(step < later for later in self._watched))
        if self.checkpoints.due() or time.monotonic() - self._saved > _SECONDS:
            self.checkpoints.save("_".join(map(str, NAME)), self.training.state)
            self._saved = time.monotonic()
        if all(run.failure for run in self.runs):
            raise TrainingError(self.runs[0].failure)

    def _record(self, run: OneRun, step: int) -> Sequence[Measurement]:
        rows: Sequence[Measurement] = ()
        if not run.failure and step in self._watched and not run.measured(step):
            try:
                rows = run.watching.rows(run.net, self.training.clock)
            except TrainingError as error:
                run.failure = str(error)
            run.directory.add_rows(rows)
        if not run.failure and step in self._kept and not run.directory.has_checkpoint(step):
            run.directory.add_checkpoint(step, run.net.state_dict())
        return rows

    def failed(self, reason: str) -> None:
        """No run can go on; `reason` is that of those that have no other."""
        for run in self.runs:
            run.failure = run.failure or reason

    def finish(self) -> dict[Path, Mapping[str, Any]]:
        """Ask the final networks about the test examples and write the results; summaries by run directory."""
        found: dict[Path, Mapping[str, Any]] = {}
        for number, run in enumerate(self.runs):
            if run.failure:
                continue
            try:
                rows = [*run.watching.test(run.net, self.training.clock, final=True), *_best(run, self.training.clock)]
            except TrainingError as error:
                run.failure = str(error)
                continue
            summary = _summary(run, self._facts(number), rows, len(self.runs))
            self.monitor.finished(number, rows, summary)  # before its file is committed
            run.directory.add_document(SUMMARY, summary)  # with the episode: a run cannot do without both state and it
            run.directory.commit(1, 1, summary["total_seconds"], {})
            run.directory.finish(summary, "")
            found[run.directory.path] = summary
        return found

    def _facts(self, number: int) -> EpisodeFacts:
        stats, losses = self.training.stats, getattr(self.training, "losses", None)
        loss = stats.loss if losses is None else losses[number]
        return EpisodeFacts(
            1, [1], {}, stats.examples, stats.images, stats.gradients, stats.steps, self.checkpoints.seconds(),
            stats.seconds, stats.images / stats.seconds if stats.images else 0.0, loss,
            peak_memory(self.runs[0].net.weight.device),
        )  # fmt: skip


def _best(run: OneRun, clock: Clock) -> list[Measurement]:
    """The test scores of the checkpoint that is best on the development examples, if it is not the last one."""
    step = best_step(run.directory.rows, run.watching.split, main_metric(run.stream).higher_is_better)
    if step is None or step == clock.steps or not run.directory.has_checkpoint(step):
        return []
    net = new_network(run.config, run.stream.spec, run.net.head_sizes)
    net.load_state_dict(run.directory.checkpoint(step))
    examples = next(row.examples for row in run.directory.rows if row.step == step)
    return run.watching.test(net.to(run.net.weight.device), Clock(step, examples, None), final=False)


def best_step(rows: Sequence[Measurement], split: str, higher_is_better: bool) -> int | None:
    """The step at which the main metric on a split was best; the first of equals; None if it was not measured."""
    if split == "test":
        return None  # there are no examples to choose by
    found = [row for row in rows if row.split == split and not row.slice and row.main == row.main]
    watched = [row for row in found if row.scenario == ANYTIME]
    sign = 1 if higher_is_better else -1
    return max(watched, key=lambda row: (sign * row.main, -row.step)).step if watched else None


def _summary(run: OneRun, facts: EpisodeFacts, rows: Sequence[Measurement], together: int) -> dict[str, Any]:
    """Write the last files of a run but for summary.json, whose content is returned."""
    directory, stream = run.directory, run.stream
    directory.add_targets({}, {})
    directory.add_member(saved_member(0, 1, run.net, stream, run.config.net), run.net.state_dict(), {})
    directory.add_episode(facts, rows)
    higher = main_metric(stream).higher_is_better
    return {
        **task_facts(run.config, stream, run.net, directory.episodes, together),
        **summarize([row for row in directory.rows if row.scenario != ANYTIME], True, None, higher),
        **chosen(directory.rows, run.watching.split, higher),
        "total_seconds": facts.seconds,
    }


def chosen(rows: Sequence[Measurement], split: str, higher_is_better: bool) -> dict[str, Any]:
    """What is known of the final network and of the best checkpoint, by development examples; None where it is not."""
    by_step = {row.step: row for row in rows if row.split == split and not row.slice and row.scenario == ANYTIME}
    last = max(row.step for row in rows)
    test = {row.step: row for row in rows if row.split == "test" and not row.slice and (split != "test" or row.is_test)}
    step = best_step(rows, split, higher_is_better)
    final = next(iter(test[last].scores.values()))
    found = {"dev": by_step[last].main if last in by_step and split != "test" else None, "test_stderr": final.stderr}
    best = test.get(last if step is None else step)
    return found | {
        "best_step": step,
        "best_dev": None if step is None else by_step[step].main,
        "best_test": None if best is None else best.main,
    }


def tidy(path: Path) -> None:
    """Remove what is left of the state of a finished run whose process was killed before it did so."""
    RunDirectory.reopen(path)
    with suppress(OSError):  # it is not empty
        (path / "state").rmdir()


def groups(
    plans: Sequence[TaskPlan], invocation: TaskInvocation, console: TaskConsole, stack: ExitStack
) -> Iterator[Group]:  # fmt: skip
    """Build and check everything, then open the run directories, which are closed with `stack`.

    Runs whose networks can be stacked and that have taken the same number of steps are one group.
    """
    begin, config = time.perf_counter(), plans[0].config
    compute = Compute(device := prepared(config), runs_in_bf16(config.precision, prepared(config)))
    with enough_memory(f"the data on {device}", "fewer examples need less"):
        stream = build_stream(config.data, config.seed, device)
        trial = trial_network(config, stream)
    count = len(stream.tasks[0].train)
    for policy in (config.checkpoints, config.evaluations):
        times(policy, config.hp.length(count, config.hp.batch_size(count)))
    if config.threads is None:
        networks = len(plans) if stackable(trial) else 1
        use_threads(trial.trunk, stream.spec.input_shape, config.hp.batch, device, networks)
    if any(plan.saved for plan in plans):
        stack.enter_context(fitting(invocation.folder))
    stack.enter_context(writable(invocation.folder, invocation.resuming))
    together = stackable(trial)
    streams = {config.seed: stream}  # runs of one seed have the same data
    opened = []
    for plan in plans:
        if (seed := plan.config.seed) not in streams:
            streams[seed] = build_stream(plan.config.data, seed, device)
        opened.append(_opened(plan, compute, stack, streams[seed]))
    by_step: dict[tuple[int, int], list[tuple[OneRun, Tree | None]]] = {}
    for place, (run, state) in enumerate(opened):
        done = state["steps"]["done"] if state else 0
        by_step.setdefault((done, 0 if together else place), []).append((run, state))
    for found in by_step.values():
        with enough_memory(f"training on {device}", "a smaller batch or model in --hp_config needs less"):
            group = _group(found, compute, invocation.command, console, begin, stack)
        yield group


def _opened(
    plan: TaskPlan, compute: Compute, stack: ExitStack, stream: TaskStream
) -> tuple[OneRun, Tree | None]:  # fmt: skip
    """A run with its directory open, and the saved state of its training, if there is one."""
    config, path, device = plan.config, plan.path, compute.device
    resolved = resolve(config, compute, stream, None, None)
    if plan.saved is not None:
        check_same_data(path, plan.saved, resolved["data_sha256"], config.data.data_dir)
        warn_of_versions(plan.saved, resolved)
    directory = RunDirectory.begin(path, resolved) if plan.saved is None else RunDirectory.reopen(path)
    stack.callback(directory.close)
    task = stream.tasks[0]
    with seeded(config.seed, *NAME):
        net = new_network(config, stream.spec, {task.id: task.num_outputs}).to(device)
    if config.begun_from is not None:
        _begin(net, plan, directory)
    content = directory.training("_".join(map(str, NAME)))
    state = None if content is None else from_bytes(content, device)
    start = RunStart((), resolved, hyperparameters(config), 1, None, (), tuple(directory.rows))
    watching = Watching(task, stream.spec, compute, config.evaluate)
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
) -> Group:  # fmt: skip
    runs, states = [run for run, _ in found], [state for _, state in found]
    first, seeds = runs[0], [run.config.seed for run in runs]
    task, spec, recipe = first.stream.tasks[0], first.stream.spec, first.config.hp
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
    common: dict[str, Any] = {"monitor": monitor, "checkpoints": checkpoints}
    training: Training
    # A stack computes faster on a CPU, also alone; steps of a single network can be CUDA graphs.
    alone = len(runs) == 1 and (compute.device.type == "cuda" or not stackable(first.net))
    if alone:
        with seeded(first.config.seed, "trial"):
            trial = new_network(first.config, spec, first.net.head_sizes).to(compute.device)
            compute, _ = choose_launch(trial, task.id, task.train, spec, recipe, compute)
        sources = [(task.id, task.train)]
        training = Training(first.net, sources, spec, recipe, compute, seeds[0], NAME, **common)
        if states[0]:
            training.restore(states[0])
    else:
        every: list[list[tuple[int, TrainSource]]] = [[(task.id, run.stream.tasks[0].train)] for run in runs]
        rates, nets = [run.config.hp.lr for run in runs], [run.net for run in runs]
        training = stacked = StackedTraining(nets, every, spec, recipe, compute, seeds, NAME, rates=rates, **common)
        monitor.losses = lambda: stacked.losses
        if states[0]:
            training.restore(states)
    monitor.trains(training)
    network = f"{first.config.net.model}, {count_parameters(first.net):,} parameters"
    rates = [run.config.hp.lr for run in runs]
    only = first.config.evaluate_only
    console.begins(task_header(first.watching, network, training, seeds, rates, _where(runs), only))
    console.training(training, only)
    return Group(runs, training, checkpoints, monitor)


def _where(runs: Sequence[OneRun]) -> Path:
    """The run directory of a single run, or the folder of several."""
    return runs[0].directory.path if len(runs) == 1 else runs[0].directory.path.parent
