"""Take a task out of a zoo.

RUN -> the members that never saw the task, and others trained again without it -> a new run directory
    -> what that costs the other tasks; certificate.json: which weights ever saw the task
"""

from __future__ import annotations

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from methods import METHODS, check_name
from methods.ensemble import Ensemble
from records.console import Console
from records.directory import CONFIG, check_free
from records.lock import locked
from records.summary import read_summary
from training.loop import TrainingStats
from training.threads import use_threads
from utils.compute import enough_memory, keep_freed_memory, make_reproducible, provenance
from utils.errors import TrainingError, UserError, one_line, run_program
from utils.files import beside
from utils.options import Parser, whole
from utils.settings import Range
from zoo import Zoo
from zoo.forgetting import CERTIFICATE, Cost, kept, retrained, write


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if training cannot go on; 2 if the input is wrong."""
    return run_program("forget.py", lambda: forget(arguments(argv)), "interrupted; the zoo is as it was")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: names the option.
    """
    about = "Take a task out of a zoo: members that saw it are dropped, or trained again without. RUN stays as it is."
    parser = Parser(prog="forget.py", allow_abbrev=False, description=about)
    add = parser.add_argument
    add("run", metavar="RUN", help="a finished run of the zoo or another ensemble")
    add("--task", metavar="NAME", help="name or number of the task (needed)")
    add("--retrain", action="store_true", help="train a member in place of each dropped one, on its other tasks, with "
        "what was kept of them; needs the data (default: only drop)")  # fmt: skip
    add("--run_dir", metavar="DIR", help="where the new zoo goes (default: RUN-without-<number of the task>)")
    add("--overwrite", action="store_true", help="replace the run that is in --run_dir (default: refuse)")
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    add("--data_dir", metavar="DIR", help="where the data lies, for --retrain (default: where the run had it)")
    add("--threads", metavar="N", help="CPU threads (default: as many as the network is worth)")
    add("--quiet", action="store_true", help="print only what it costs (default: progress)")
    options = parser.parse_known(argv, (), "")
    if options.task is None:
        raise UserError("--task is missing: the name or the number of the task that is to be forgotten")
    if options.threads is not None:
        options.threads = whole("--threads", options.threads, Range(1, 1024))
    return options


def forget(options: argparse.Namespace) -> None:
    """Everything that can be wrong is checked before anything is trained or written.

    Raises:
        UserError: the run cannot be read, has no such task, or is no ensemble; or nothing can be written.
        TrainingError: training cannot go on.
    """
    make_reproducible()
    keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    zoo = Zoo.load(options.run, options.device)
    check_name(zoo.config.method, f"{zoo.path / CONFIG}: method: ")
    task = zoo.task(options.task)
    method = zoo.config.method
    if read_summary(zoo.path) is None:
        raise UserError(f"{zoo.path} is not finished; go on with it first")
    if not issubclass(METHODS[method], Ensemble):
        raise UserError(f"{zoo.path} is of --method {method}, one network that saw every task: train it again without")
    path = Path(options.run_dir) if options.run_dir else beside(options.run, f"-without-{task.number}")
    check_free(path, options.overwrite, [zoo.path])
    with locked(path, "--run_dir "):
        check_free(path, options.overwrite)  # nobody else has begun there meanwhile
        successors, stats, fingerprint = kept(zoo, task), TrainingStats(), None
        if options.retrain:
            with enough_memory(f"training on {zoo.device}", "leave --retrain out"):
                if options.threads is None:
                    trunk = zoo.net(zoo.members[0])[0].trunk
                    use_threads(trunk, zoo.input_shape, zoo.config.hp.batch, zoo.device)
                more, stats, fingerprint = retrained(zoo, task, options.data_dir, Console(options.quiet))
                successors += more
        if not successors:
            raise UserError(f"every member of {zoo.path} has learned {task.name}: nothing would be left; add --retrain")
        try:
            costs = write(zoo, task, successors, stats, path, {**provenance(), "data_sha256": fingerprint})
        except OSError as error:
            raise TrainingError(f"{error.filename or path} cannot be written: {error.strerror or error}") from None
    print_costs({task.number: f"{task.number} {task.name}" for task in zoo.tasks}, costs)
    print(f"\n{len(zoo.members)} members before, {len(successors)} now; which ever saw the task: {path / CERTIFICATE}")
    print(f"{zoo.path} still holds the task: remove it when it is not needed any more")


def print_costs(names: Mapping[int, str], costs: Mapping[int, Cost]) -> None:
    """What the other tasks have lost."""
    average = "average of those with a member"
    width = max(map(len, [*names.values(), average]))
    print(f"{'task':<{width}}  members     accuracy")
    both = []
    for number, cost in costs.items():
        said = "no member is left"
        if cost.accuracy_after is not None:
            both.append((cost.accuracy_before, cost.accuracy_after))
            said = f"{cost.accuracy_before:.4f} -> {cost.accuracy_after:.4f}"
        print(one_line(names[number]).ljust(width) + f"  {cost.members_before:>2} -> {cost.members_after:<2}    {said}")
    before, after = (sum(column) / max(1, len(both)) for column in zip(*both, strict=True))
    print(f"{average:<{width}}              {before:.4f} -> {after:.4f}")


if __name__ == "__main__":
    sys.exit(main())
