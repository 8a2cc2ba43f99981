"""Teach a finished run to one network, and compare them.

RUN -> Zoo, and the training examples that the run has kept
the zoo's answers to these -> one network with a head per task -> a new run directory
zoo, zoo of fewer members, student, isolated networks -> a table: accuracy, parameters, time
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datasets import build_stream
from datasets.task import TaskStream
from evaluation.accuracy import AVERAGES, Evaluation
from evaluation.measurements import Measurement
from methods import check_name
from methods.base import Context
from methods.bounds import Joint
from methods.config import RunConfig
from records.console import Console
from records.directory import CONFIG, RunDirectory, check_free, read_config
from records.monitor import EpisodeFacts, RunMonitor, RunStart
from records.preparing import prepared, trial_network
from records.resume import check_same_data
from records.session import try_network
from records.summary import load_isolated, summarize
from records.writing import episode_facts, facts_of, header_of, names_of, resolve, save_members, targets_of
from training.threads import use_threads
from utils.compute import Compute, describe_device
from utils.errors import UserError, enough_memory, run_program
from utils.files import beside
from utils.options import Parser, whole
from utils.settings import NoSettings, Range
from zoo import Zoo
from zoo.distillation import COLUMNS, EPOCHS, STUDENT, compared, lesson, middle_task
from zoo.options import REPEAT, add_combination, add_machine, add_new_run, finished, new_run, repeatable


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if training or writing cannot go on; 2 if the input is wrong; 130 or 143 if stopped."""
    return run_program("distill.py", lambda: distill(arguments(argv)), f"interrupted; {REPEAT}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; a UserError names a wrong one."""
    parser = Parser(prog="distill.py", allow_abbrev=False, description="Teach a finished run to one network, with the "
                    "training examples that the run has kept, and compare them.")  # fmt: skip
    add = parser.add_argument
    add("run", metavar="RUN", help="a run directory")
    add_new_run(parser, "the student", f"RUN-{STUDENT}")
    add("--epochs", metavar="N", type=partial(whole, "--epochs"),
        help=f"of the student, one network for all tasks (default: {EPOCHS} times those of a member)")  # fmt: skip
    add("--data_dir", metavar="DIR", help="where the data lies (default: where the run had it)")
    add_combination(
        parser, "also compare with the zoo of which at most K members answer, chosen on held-out examples (default: no)"
    )
    add("--isolated", metavar="RUN", help="also compare with this finished run of --method isolated, same options "
        "(default: no)")  # fmt: skip
    add("--seed", metavar="N", type=partial(whole, "--seed", accepted=Range(0, 2**63 - 1)),
        help="of the student's first weights and the order of its examples; which these are, the seed of the run says "
        "(default: that of the run)")  # fmt: skip
    add_machine(parser, "as many as the network is worth")
    add("--quiet", action="store_true", help="print only the table (default: progress)")
    return parser.parse_known(argv)


@repeatable()
def distill(options: argparse.Namespace) -> None:
    """Check everything that can be wrong, train, then write: until the student is done nothing is replaced."""
    begin = time.perf_counter()
    with ExitStack() as stack:
        zoos = loaded(options)
        zoo = zoos["zoo"]
        if options.seed not in (None, zoo.config.seed) and zoo.config.data.drawn:
            why = f"the tasks of {zoo.path} were drawn from its seed ({zoo.config.data.drawn})"
            raise UserError(f"--seed {options.seed}: {why}; leave --seed out")
        out = Path(options.run_dir) if options.run_dir else beside(options.run, f"-{STUDENT}")
        reference = None if options.isolated is None else Path(options.isolated)
        reads = [zoo.path] if reference is None else [zoo.path, reference]
        check_free(out, options.overwrite, reads)
        config = student_config(zoo.config, options)
        device = prepared(config)
        saved = read_config(zoo.path)
        isolated = None if reference is None else load_isolated(reference, saved)
        stream = stream_of(zoo, config, saved, device)
        with enough_memory(f"training on {device}", "try --device cpu"):
            taught = lesson(zoo, stream)
            joint = replace(config, method="joint")
            net = trial_network(joint, taught)
            if options.threads is None:
                use_threads(net.trunk, taught.spec.input_shape, config.hp.batch, device)
            parameters, compute, launch = try_network(net, joint, taught, zoo.compute)
            stack.enter_context(new_run(out, options.overwrite, reads))
            monitor = Console(options.quiet)
            stack.callback(monitor.close)
            kept = sum(len(task.train_eval) for task in taught.tasks)
            launched = ", ".join(filter(None, [describe_device(device), launch]))
            teacher = f"{zoo.path}: {len(zoo.members)} members, {kept:,} training examples that it has kept"
            header = [("teacher", teacher), *header_of(config, stream, parameters, launched, out, 0)]
            monitor.run_begins(RunStart(header, {}, {}, len(taught.tasks), isolated, (), ()))
            student, facts, rows = teach(taught, config, compute, monitor)
        described = {
            **resolve(config, compute, stream, reference, None),
            "derived": f"a student of {zoo.path}",
            "distilled_from": str(zoo.path.absolute()),
            "teacher": {"combine": options.combine, "temperature": options.temperature},
        }
        write(out, described, taught, student, facts, rows, isolated, time.perf_counter() - begin)
        everything = {**zoos, STUDENT: Zoo.load(out, options.device)}
        figures = compared(everything, stream.task(middle_task(zoo)))
        print(f"\n{figures.to_string(formatters=dict(COLUMNS), col_space=18)}", flush=True)


def loaded(options: argparse.Namespace) -> dict[str, Zoo]:
    """The zoos that the student is compared with, by their names in the table; the first one is its teacher."""
    run = finished(options.run, options.device)
    if run.frozen is not None:
        raise UserError(f"{run.path} was trained on frozen features, whose members are small already: use it as it is")
    check_name(run.config.method, f"{run.path / CONFIG}: method: ")
    zoos = {"zoo": run.combined(options.combine, options.temperature)}
    if options.budget is not None:
        zoos[f"zoo, at most {options.budget}"] = run.combined(options.combine, options.temperature, options.budget)
    if options.isolated is not None:
        zoos["isolated"] = alone = Zoo.load(options.isolated, options.device)
        learned = [[(task.number, task.classes) for task in zoo.tasks] for zoo in (alone, run)]
        if learned[0] != learned[1] or alone.input_shape != run.input_shape:
            raise UserError(
                f"--isolated {alone.path} has not learned the tasks of {run.path}; name a run with the same tasks"
            )
    for zoo in zoos.values():  # reads all files that are needed later
        zoo.saved_predictions("test")
        zoo.answers(torch.zeros(1, *zoo.input_shape), [task.number for task in zoo.tasks])
    return zoos


def stream_of(zoo: Zoo, config: RunConfig, saved: Mapping[str, Any], device: torch.device) -> TaskStream:
    """The stream that a run was trained on; a UserError if the data are not where the student's config says."""
    with enough_memory(f"the data on {device}", "try --device cpu"):
        stream = build_stream(config.data, zoo.config.seed, device)
    check_same_data(zoo.path, saved, stream.fingerprints(), config.data.data_dir)
    return stream


def student_config(config: RunConfig, options: argparse.Namespace) -> RunConfig:
    """The configuration of a student: that of the run, but for method, length of training and the options."""
    lengths = {name: getattr(config.hp, name) for name in ("epochs", "steps", "examples")}
    longer: dict[str, Any] = {name: value and EPOCHS * value for name, value in lengths.items()}
    if options.epochs is not None:
        longer = {"epochs": options.epochs, "steps": None, "examples": None}
    return replace(
        config, method=STUDENT, continual=False, rounds=None, warm_start=False, settings=NoSettings(),
        hp=replace(config.hp, **longer), device=options.device, threads=options.threads,
        seed=config.seed if options.seed is None else options.seed,
        data=replace(config.data, data_dir=Path(options.data_dir or config.data.data_dir)),
    )  # fmt: skip


def teach(
    taught: TaskStream, config: RunConfig, compute: Compute, monitor: RunMonitor
) -> tuple[Joint, EpisodeFacts, list[Measurement]]:
    """Train the student and measure it: one episode that reveals all tasks; a TrainingError if it diverges."""
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
    rows: Sequence[Measurement], isolated: Mapping[int, float] | None, seconds: float,
) -> None:  # fmt: skip
    """Write the student's run directory."""
    summary = {**facts_of(taught, student, [facts]), **summarize(rows, False, isolated), "total_seconds": seconds}
    with closing(RunDirectory.begin(out, config)) as directory:
        directory.add_targets(targets_of(taught), names_of(taught))
        save_members(directory, student, taught)
        directory.add_episode(facts, rows)
        directory.commit(1, len(student.new_members), seconds, {})
        directory.finish(summary, AVERAGES)


if __name__ == "__main__":
    sys.exit(main())
