"""Train a continual learner on a stream of tasks.

config/*.yaml + argv -> Invocation -> Plan -> Session
for each episode: method.learn -> evaluation of the tasks seen -> measurements
measurements -> run directory (facts) -> summary, final table, TensorBoard (derived)
"""

from utils.startup import prepare

prepare(__name__)  # before torch is loaded

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from evaluation.accuracy import AVERAGES
from records.checkpoints import ending_on_sigterm
from records.configuration import hyperparameter_kinds
from records.console import Console
from records.directory import holds_run
from records.invocation import Invocation, parse
from records.manifest import SUMMARY, reading
from records.monitor import Monitors, RunMonitor
from records.preparing import resuming_command, verify_run
from records.session import Session, opened, planned
from records.summary import final_table, summarize
from records.writing import episode_facts, facts_of, main_metric, names_of, save_kept, save_members, targets_of
from utils.errors import SignalError, enough_memory, run_program
from utils.trees import to_bytes


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 if training cannot go on; 2 if the input is wrong; 128 + n after signal n; one line on stderr."""
    stopped = "interrupted; what was saved before is in the run directory"
    return run_program("modelzoo.py", lambda: do(parse(argv)), stopped)


def do(invocation: Invocation) -> None:
    """Verify or make a run; the exceptions of utils/errors.py say in one line why this is not possible."""
    if invocation.command.verify is not None:
        return verify_run(invocation.command.verify)
    try:
        run(invocation)
    except SignalError as error:
        resume = f"resume with: {resuming_command(invocation.run_dir)}"
        raise SignalError(error.number, resume if holds_run(invocation.run_dir) else "repeat the command") from None


def run(invocation: Invocation) -> Path:
    """Check everything that can be wrong, then train and write; returns the run directory."""
    remedy = "a smaller batch or model in --hp_config needs less"
    with ExitStack() as stack:
        stack.enter_context(ending_on_sigterm())
        plan = planned(invocation, stack)
        if plan.summary is not None:
            with reading(invocation.run_dir, SUMMARY):
                table = final_table(plan.summary)
            print(table)
            return invocation.run_dir
        session = opened(plan, stack)
        with enough_memory(f"training on {session.method.compute.device}", remedy):
            from records.tensorboard import TensorBoard  # slow to import

            directory = session.directory
            epochs = directory.manifest.members * (session.config.hp.epochs or 0)
            board = TensorBoard(directory.log, hyperparameter_kinds(), epochs)
            monitor = Monitors([Console(invocation.command.quiet), board])
            stack.callback(monitor.close)
            monitor.run_begins(session.start)
            with session.checkpoints.catching():
                learn(session, monitor)
    return invocation.run_dir


def learn(session: Session, monitor: RunMonitor) -> None:
    """Run all episodes that are not complete yet: reveal tasks, learn, measure, write."""
    directory, config, stream = session.directory, session.config, session.stream
    method, evaluation, checkpoints = session.method, session.evaluation, session.checkpoints
    done = directory.manifest.episode
    if not done:
        directory.add_targets(targets_of(stream), names_of(stream))
    for episode in session.episodes[done:]:
        checkpoints.episode_begins()
        monitor.episode_begins(episode.number, len(session.episodes))
        learned = method.learn(episode, monitor)
        seen = stream.tasks[: episode.number] if config.continual else stream.tasks
        rows = evaluation.after(episode, learned, seen)
        before = evaluation.untrained() if episode.number == 1 else []
        save_members(directory, method, stream)
        save_kept(directory, method.memory, episode.number)
        facts = episode_facts(episode, learned, checkpoints.episode_seconds(), method.compute.device)
        directory.add_episode(facts, [*before, *rows])
        monitor.episode_ends(facts, rows)
        members = directory.manifest.members + len(method.new_members)
        trees = {**method.state_dict(), **evaluation.state_dict()}
        state = {part: None if tree is None else to_bytes(tree) for part, tree in trees.items()}
        directory.commit(episode.number, members, checkpoints.seconds(), state)
        checkpoints.stop_if_asked()
    summary = {
        **facts_of(stream, method, directory.episodes),
        **summarize(directory.rows, config.continual, session.start.isolated, main_metric(stream).higher_is_better),
        "total_seconds": checkpoints.seconds(),
    }
    monitor.run_measured(summary)
    directory.finish(summary, AVERAGES)
    monitor.run_ends(final_table(summary))


if __name__ == "__main__":
    sys.exit(main())
