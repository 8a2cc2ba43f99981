"""Train one network on one task, keep its weights along the way, and ask questions about it.

config/*.yaml + argv -> TaskInvocation -> TaskPlans -> TaskGroups of runs that train as one computation
at chosen steps: weights -> checkpoints/, evaluations -> metrics.csv
at the end: test examples -> summary.json, final table
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from records.checkpoints import ending_on_sigterm
from records.directory import holds_run
from records.preparing import verify_run
from records.task_group import TaskGroup
from records.task_invocation import TaskInvocation, parse
from records.task_plan import planned
from records.task_session import groups
from records.task_summary import task_table
from utils.errors import SignalError, TrainingError, enough_memory, run_program


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if training cannot go on; 2 if the input is wrong; 128 + n after signal n; one line on stderr."""
    stopped = "interrupted; what was saved before is in the run directory"
    return run_program("train_task.py", lambda: do(parse(argv)), stopped)


def do(invocation: TaskInvocation) -> None:
    """Verify or make runs; the exceptions of utils/errors.py say in one line why this is not possible."""
    if (path := invocation.command.verify) is not None:
        for run_dir in [found for found in sorted(path.glob("seed*")) if holds_run(found)] or [path]:
            verify_run(run_dir)
        return
    try:
        run(invocation)
    except SignalError as error:
        begun = any(holds_run(path) for path in invocation.runs)
        advice = f"resume with: {invocation.resuming}" if begun else "repeat the command"
        raise SignalError(error.number, advice) from None


def run(invocation: TaskInvocation) -> list[Path]:
    """Check everything that can be wrong, then train and write; returns the run directories."""
    with ExitStack() as stack:
        stack.enter_context(ending_on_sigterm())
        plans = planned(invocation, stack)
        from records.task_monitor import TaskConsole  # slow to import

        console, failures = TaskConsole(invocation.command.quiet), dict[Path, str]()
        summaries = {plan.path: plan.summary for plan in plans if plan.summary}
        missing = [plan for plan in plans if not plan.summary]
        for group in groups(missing, invocation, console, stack) if missing else ():
            remedy = "a smaller batch or model in --hp_config needs less"
            with enough_memory("training", remedy), group.checkpoints.catching():
                summaries |= learn(group)
                group.checkpoints.stop_if_asked()
            failures |= {run.directory.path: run.failure for run in group.runs if run.failure}
        if summaries:
            finished = [(plan.config, summaries[plan.path]) for plan in plans if plan.path in summaries]
            console.ends(task_table(finished))
        if failures:
            path, reason = next(iter(failures.items()))
            raise TrainingError(f"{path}: {reason}" + (f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""))
    return [plan.path for plan in plans]


def learn(group: TaskGroup) -> dict[Path, Mapping[str, Any]]:
    """Train from one recorded moment to the next, and to the end; summaries of the runs that have not failed."""
    try:
        for step in group.moments():
            group.training.advance(step)
            group.record(step)
    except TrainingError as error:
        group.failed(str(error))
    return group.finish()


if __name__ == "__main__":
    sys.exit(main())
