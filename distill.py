"""Teach a finished run to one network, and compare them.

RUN -> zoo, and the training examples that the run has kept
the zoo's answers to these -> one network with a head per task -> a run directory of its own
zoo, zoo of fewer members, student, isolated networks -> a table: accuracy, parameters, time
"""

from __future__ import annotations

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datasets import build_stream
from datasets.task import TaskStream
from evaluation.accuracy import AVERAGES, Evaluation
from evaluation.measurements import Measurement
from methods import check_name
from methods.base import Context
from methods.config import RunConfig
from methods.joint import Joint
from records.checkpoints import ending_on_sigterm
from records.console import Console
from records.directory import CONFIG, RunDirectory, check_free, read_config
from records.lock import locked
from records.monitor import EpisodeFacts, RunMonitor, RunStart
from records.session import trial_network, try_network
from records.summary import load_isolated, read_summary, summarize
from records.writing import episode_facts, facts_of, resolve, save_members, targets_of
from training.recipe import Recipe
from training.threads import use_threads
from utils.compute import (
    Compute,
    describe_device,
    enough_memory,
    keep_freed_memory,
    make_reproducible,
    pick_device,
)
from utils.errors import TrainingError, UserError, run_program
from utils.files import beside
from utils.options import Parser, check_text, whole
from utils.settings import NoSettings, Range
from zoo import Zoo
from zoo.distillation import EPOCHS, STUDENT, accuracies, compared, lesson, middle_task, table
from zoo.options import add_combination

_NUMBERS = {
    "epochs": Range(1, 10**6), "seed": Range(0, 2**63 - 1), "threads": Range(1, 1024), "budget": Range(1, 10**6),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if training or writing cannot go on; 2 if the input is wrong; 130 or 143 if stopped."""
    return run_program("distill.py", lambda: distill(arguments(argv)))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: names the option.
    """
    parser = Parser(prog="distill.py", allow_abbrev=False, description="Teach a finished run to one network, with the "
                    "training examples that the run has kept, and compare them.")  # fmt: skip
    add = parser.add_argument
    add("run", metavar="RUN", help="a run directory")
    add("--run_dir", metavar="DIR", help="where the student goes, a run directory as well (default: RUN-student)")
    add("--overwrite", action="store_true", help="replace the run that is in --run_dir (default: refuse)")
    add("--epochs", metavar="N", help=f"of the student, which learns all tasks in one network (default: {EPOCHS} times "
        "those of a member)")  # fmt: skip
    add("--data_dir", metavar="DIR", help="where the data lies (default: where the run had it)")
    add_combination(
        parser, "also compare with the zoo of which at most K members answer, chosen on held-out examples (default: no)"
    )
    add("--isolated", metavar="RUN", help="also compare with this finished run of --method isolated, same options "
        "(default: no)")  # fmt: skip
    add("--seed", metavar="N", help="of the student's first weights and the order of its examples; the seed of the run "
        "says which these are (default: that of the run)")  # fmt: skip
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--threads", metavar="N", help="CPU threads (default: as many as the network is worth)")
    add("--quiet", action="store_true", help="print only the table (default: progress)")
    options = parser.parse_known(argv, (), "")
    check_text("--data_dir", options.data_dir)
    for name, accepted in _NUMBERS.items():
        given = getattr(options, name)
        if given is not None:
            setattr(options, name, whole(f"--{name}", given, accepted))
    return options


def distill(options: argparse.Namespace) -> None:
    """Check everything that can be wrong, train, then write: until the student is done nothing is replaced.

    Raises:
        UserError: the run, its data or an option is wrong.
        TrainingError: training cannot go on, or the student cannot be written.
    """
    begin, device = time.perf_counter(), pick_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    make_reproducible()
    keep_freed_memory()
    with ExitStack() as stack:
        stack.enter_context(ending_on_sigterm())
        zoos = loaded(options)
        zoo = zoos["zoo"]
        out = Path(options.run_dir) if options.run_dir else beside(options.run, f"-{STUDENT}")
        check_place(out, options)
        saved = read_config(zoo.path)
        reference = None if options.isolated is None else Path(options.isolated)
        isolated = None if reference is None else load_isolated(reference, saved)
        alone = None if reference is None else comparable(reference, zoo, options.device)
        stream = stream_of(zoo, saved.get("data_sha256"), options.data_dir, device)
        config = student_config(zoo.config, options)
        compute = zoo.as_trained
        with enough_memory(f"training on {device}", "try --device cpu"):
            taught = lesson(zoo, stream)
            joint = replace(config, method="joint")
            net = trial_network(joint, taught)
            if options.threads is None:
                use_threads(net.trunk, taught.spec.input_shape, config.hp.batch, device)
            parameters, compute, launch = try_network(net, joint, taught, compute)
            stack.enter_context(locked(out, "--run_dir "))
            check_place(out, options)  # nobody else has begun there meanwhile
            monitor = Console(options.quiet)
            stack.callback(monitor.close)
            header = [
                ("teacher", f"{zoo.path}: {len(zoo.members)} members, {len(taught.tasks)} tasks"),
                ("data", f"{sum(len(task.train_eval) for task in taught.tasks):,} training examples that it has kept"),
                ("network", f"{config.net.model}, {parameters:,} parameters and a head per task"),
                ("device", ", ".join(filter(None, [describe_device(device), launch]))),
                ("run", str(out)),
            ]
            monitor.run_begins(RunStart(header, {}, {}, len(taught.tasks), isolated, (), ()))
            student, facts, rows = teach(taught, config, compute, monitor)
        described = {
            **resolve(config, compute, stream, reference, None),
            "derived": f"a student of {zoo.path}",
            "distilled_from": str(zoo.path.absolute()),
            "teacher": {"combine": options.combine, "temperature": options.temperature},
        }
        write(out, described, taught, student, facts, rows, isolated, time.perf_counter() - begin)
        zoos[STUDENT] = Zoo.load(out, options.device)
        if alone is not None:
            zoos["isolated"] = alone
        print(table(compared(zoos, stream.task(middle_task(zoo)))), flush=True)


def loaded(options: argparse.Namespace) -> dict[str, Zoo]:
    """The zoos that the student is compared with, and that its teacher, the first, is one of.

    Raises:
        UserError: the run cannot be read or is not finished, or nothing was held out to fit a combination on.
    """
    run = Zoo.load(options.run, options.device)
    if read_summary(run.path) is None:
        raise UserError(f"{run.path} is not finished; go on with it first (modelzoo.py --resume)")
    check_name(run.config.method, f"{run.path / CONFIG}: method: ")
    zoos = {"zoo": run.combined(options.combine, options.temperature)}
    if options.budget is not None:
        zoos[f"zoo, at most {options.budget}"] = run.combined(options.combine, options.temperature, options.budget)
    for zoo in zoos.values():
        check_answers(zoo)
    return zoos


def comparable(reference: Path, zoo: Zoo, device: str) -> Zoo:
    """The isolated networks.

    Raises:
        UserError: they cannot be read, or are not of the zoo's tasks.
    """
    alone = Zoo.load(reference, device)
    if (alone.tasks, alone.input_shape) != (zoo.tasks, zoo.input_shape):
        raise UserError(
            f"--isolated {reference} has not learned the tasks of {zoo.path}; name a run with the same tasks"
        )
    check_answers(alone)
    return alone


def check_answers(zoo: Zoo) -> None:
    """What is damaged is told before anything is trained.

    Raises:
        UserError: a file cannot be read.
    """
    accuracies(zoo)
    zoo.answers(torch.zeros(1, *zoo.input_shape), [task.number for task in zoo.tasks])


def check_place(out: Path, options: argparse.Namespace) -> None:
    """Check that the student may be put at `out`.

    Raises:
        UserError: there is a run and --overwrite is not set, one that is read here, or something that is not a run.
    """
    check_free(out, options.overwrite, [Path(run) for run in (options.run, options.isolated) if run])


def stream_of(zoo: Zoo, fingerprint: object, data_dir: str | None, device: torch.device) -> TaskStream:
    """The stream that a run was trained on.

    Raises:
        UserError: the data are not there, or others.
    """
    config = zoo.config
    if data_dir is not None:
        config = replace(config, data=replace(config.data, data_dir=Path(data_dir)))
    with enough_memory(f"the data on {device}", "try --device cpu"):
        stream = build_stream(config.data, config.seed, device)
    if fingerprint is not None and stream.fingerprint() != fingerprint:  # not known where a task was forgotten
        raise UserError(
            f"{config.data.data_dir}: the data are not those that {zoo.path} was trained on (data_sha256 in its "
            f"{CONFIG}); name their folder with --data_dir"
        )
    return stream


def longer(recipe: Recipe, epochs: int | None) -> Recipe:
    """The recipe of a student: EPOCHS times as long as that of a member, or of so many epochs."""
    if epochs is not None:
        return replace(recipe, epochs=epochs, steps=None, examples=None)
    lengths = {name: getattr(recipe, name) for name in ("epochs", "steps", "examples")}
    return replace(recipe, **{name: EPOCHS * value for name, value in lengths.items() if value is not None})


def student_config(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """Members and student are trained alike, but for the number of epochs."""
    return replace(
        config, method=STUDENT, continual=False, rounds=None, warm_start=False, settings=NoSettings(),
        hp=longer(config.hp, options.epochs),
        seed=config.seed if options.seed is None else options.seed,
        data=replace(config.data, data_dir=Path(options.data_dir or config.data.data_dir)),
    )  # fmt: skip


def teach(
    taught: TaskStream, config: RunConfig, compute: Compute, monitor: RunMonitor
) -> tuple[Joint, EpisodeFacts, list[Measurement]]:
    """Train the student and measure it: one episode that reveals all tasks.

    Raises:
        TrainingError: training diverged.
    """
    monitor.episode_begins(1, 1)
    begin, student = time.perf_counter(), Joint(Context(config, taught.spec, compute))
    (episode,) = taught.multitask(1)
    learned = student.learn(episode, monitor)
    evaluation = Evaluation(taught, student, config.seed)
    rows = evaluation.after(episode, learned, taught.tasks)
    facts = episode_facts(episode, learned, time.perf_counter() - begin, compute.device)
    monitor.episode_ends(facts, rows)
    return student, facts, [*evaluation.untrained(), *rows]


def write(
    out: Path, config: Mapping[str, Any], taught: TaskStream, student: Joint, facts: EpisodeFacts,
    rows: Sequence[Measurement], isolated: Sequence[float] | None, seconds: float,
) -> None:  # fmt: skip
    """The student's run directory.

    Raises:
        UserError, TrainingError: it cannot be written.
    """
    summary = {**facts_of(taught, student, [facts]), **summarize(rows, False, isolated), "total_seconds": seconds}
    directory = RunDirectory.begin(out, config)
    try:
        directory.add_targets(targets_of(taught))
        save_members(directory, student, taught)
        directory.add_episode(facts, rows)
        directory.commit(1, len(student.new_members), seconds, {})
        directory.finish(summary, AVERAGES)
    except OSError as error:
        raise TrainingError(f"{error.filename or out} cannot be written: {error.strerror or error}") from None


if __name__ == "__main__":
    sys.exit(main())
