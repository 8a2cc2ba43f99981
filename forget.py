"""Take a task out of a zoo.

RUN -> the members that never saw the task, and others trained again without it -> a new run directory
    -> what that costs the other tasks; certificate.json: which weights ever saw the task
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from methods import METHODS, check_name
from methods.closed_form import ClosedForm
from methods.ensemble import Ensemble
from records.console import Console
from records.directory import CONFIG, check_free
from records.preparing import prepared
from training.loop import TrainingStats
from training.threads import use_threads
from utils.compute import provenance
from utils.errors import UserError, enough_memory, one_line, run_program
from utils.files import beside
from utils.options import Parser
from zoo import Zoo
from zoo.forgetting import CERTIFICATE, LoadedMember, retrained, without_head, write
from zoo.options import REPEAT, add_machine, add_new_run, finished, new_run, repeatable


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if training or writing cannot go on; 2 if the input is wrong; 130 or 143 if stopped."""
    return run_program("forget.py", lambda: forget(arguments(argv)), f"interrupted; {REPEAT}")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; a UserError names a wrong one."""
    about = "Take a task out of a zoo: members that saw it are dropped, or trained again without. RUN stays as it is."
    parser = Parser(prog="forget.py", allow_abbrev=False, description=about)
    add = parser.add_argument
    add("run", metavar="RUN", help="a finished run of the zoo or another ensemble, or of closed_form")
    add("--task", metavar="NAME", required=True, help="number or name of the task, or number=N or name=NAME (needed)")
    add("--retrain", action="store_true", help="train a member in place of each dropped one, on its other tasks, with "
        "the examples that were kept of them; needs the data (default: only drop)")  # fmt: skip
    add_new_run(parser, "the new zoo", "RUN-without-<number of the task>")
    add_machine(parser, "as many as the network is worth")
    add("--data_dir", metavar="DIR", help="where the data lies, for --retrain (default: where the run had it)")
    add("--quiet", action="store_true", help="print only the costs (default: progress)")
    return parser.parse_known(argv)


@repeatable()
def forget(options: argparse.Namespace) -> None:
    """Check everything that can be wrong, then train and write."""
    begin, zoo = time.perf_counter(), finished(options.run, options.device)
    prepared(replace(zoo.config, device=options.device, threads=options.threads))
    method = zoo.config.method
    check_name(method, f"{zoo.path / CONFIG}: method: ")
    task = zoo.task(options.task)
    closed = issubclass(METHODS[method], ClosedForm)
    if not closed and not issubclass(METHODS[method], Ensemble):
        raise UserError(f"{zoo.path} is of --method {method}, one network that saw every task: train it again without")
    if (scenario := zoo.config.data.scenario) != "task":
        raise UserError(f"{zoo.path} is of --scenario {scenario}: all its tasks share a head; train it again without")
    if closed and options.retrain:
        raise UserError(f"--retrain: in {zoo.path} no head was computed from the examples of another; leave it out")
    path = Path(options.run_dir) if options.run_dir else beside(options.run, f"-without-{task.number}")
    check_free(path, options.overwrite, [zoo.path])
    with new_run(path, options.overwrite, [zoo.path]):
        before = [LoadedMember(member, zoo.net(member)[0], zoo.predictions(member)) for member in zoo.members]
        stats = TrainingStats()
        after = [member for member in before if task.number not in member.saved.tasks]
        if closed:
            after = [without_head(member, task) for member in before if len(member.saved.tasks) > 1]
        if options.retrain:
            with enough_memory(f"training on {zoo.device}", "leave --retrain out"):
                if options.threads is None:
                    use_threads(before[0].net.trunk, zoo.members[0].input_shape, zoo.config.hp.batch, zoo.device)
                more, stats = retrained(zoo, task, options.data_dir, Console(options.quiet))
                after += more
        if not after:
            raise UserError(
                f"every member of {zoo.path} has learned {task.name}: nothing would be left"
                + "; add --retrain" * (not closed)
            )
        write(zoo, task, before, after, stats, path, provenance(), time.perf_counter() - begin)
    print_costs(zoo, Zoo.load(path, options.device))
    print(f"\n{len(before)} members before, {len(after)} now; which ever saw the task: {path / CERTIFICATE}")
    print(f"{zoo.path} still holds the task: remove it when it is not needed any more")


def print_costs(old: Zoo, new: Zoo) -> None:
    """A table of what the other tasks have lost."""
    before, after = old.test_scores(), new.test_scores()
    average = "average of those with a member"
    names = {task.number: one_line(f"{task.number} {task.name}") for task in old.tasks}
    del names[new.config.data.forgotten[-1]]
    width = max(map(len, [*names.values(), average]))
    print(f"{'task':<{width}}  members     accuracy")
    for number, name in names.items():
        asked, left = (sum(number in member.tasks for member in zoo.members) for zoo in (old, new))
        change = "no member is left"
        if number in after:
            change = f"{before[number]['accuracy'].value:.4f} -> {after[number]['accuracy'].value:.4f}"
        print(f"{name:<{width}}  {asked:>2} -> {left:<2}    {change}")
    means = (statistics.mean(scores[number]["accuracy"].value for number in after) for scores in (before, after))
    print(f"{average:<{width}}              " + " -> ".join(f"{mean:.4f}" for mean in means))


if __name__ == "__main__":
    sys.exit(main())
