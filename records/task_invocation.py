"""The command line of train_task.py: the configuration of one run for each seed, and the options of the command."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from records.commandline import HOW, LEARNED, WHERE, BaseCommand, Parsed, Program, shipped
from records.preparing import resuming_command
from records.task_config import TaskRunConfig
from utils.errors import UserError
from utils.settings import Range, setting


@dataclass(frozen=True, kw_only=True)
class TaskCommand(BaseCommand):
    """The options of a command that do not change what a run learns."""

    data_config: str = shipped("dataset", "2nd_argmax.yaml", "which task", "data_config")
    hp_config: str = shipped("hyperparam", "rnn.yaml", "which network and how it is trained", "hp_config")
    run_dir: Path | None = setting(
        Path, "where results go; with --seeds, each seed's are in DIR/seed<N> (default: runs/<stream>-<net>-seed<N>, "
        "with --seeds runs/<stream>-<net>)", default=None, option="run_dir", group=WHERE, metavar="DIR",
    )  # fmt: skip
    task: str | None = setting(
        str, "the task of --data_config, by number or name (default: the only one)", default=None, option="task",
        group=LEARNED, metavar="TASK",
    )  # fmt: skip
    seeds: int = setting(
        Range(1, 1000), "train N networks at once, with the seeds from --seed on, each a run of its own (default: 1)",
        default=1, option="seeds", group=HOW,
    )  # fmt: skip


PROGRAM = Program(
    "train_task.py",
    "Train one network on one task, keep its weights along the way, and ask questions about it. The command line wins "
    "over the hyperparameter YAML, which wins over the defaults.",
    TaskCommand, TaskRunConfig,
)  # fmt: skip


@dataclass(frozen=True)
class TaskInvocation:
    """A command: the configuration of the runs but for their seeds, and the options of this command alone."""

    config: TaskRunConfig
    command: TaskCommand
    given: frozenset[str]

    @property
    def folder(self) -> Path:
        """The run directory, or with several seeds the folder of their run directories."""
        if self.command.run_dir is not None:
            return self.command.run_dir
        name = f"{self.config.stream}-{self.config.net.model.replace('/', '_')}"
        return Path("runs") / (name if self.command.seeds > 1 else f"{name}-seed{self.config.seed}")

    @property
    def runs(self) -> dict[Path, TaskRunConfig]:
        """The configuration of each run by its directory."""
        if self.command.seeds == 1:
            return {self.folder: self.config}
        seeds = range(self.config.seed, self.config.seed + self.command.seeds)
        return {self.folder / f"seed{seed}": replace(self.config, seed=seed) for seed in seeds}

    @property
    def resuming(self) -> str:
        """The command that resumes the runs, for people to copy."""
        command, first, count = resuming_command(self.folder, PROGRAM.name), self.config.seed, self.command.seeds
        return command + (f" --seeds {count}" + (f" --seed {first}" if first else "") if count > 1 else "")

    @property
    def describes_run(self) -> bool:
        """Whether an option says what is to be learned or how, not only where."""
        return PROGRAM.describing(self.given - {"seeds"})


def parse(argv: Sequence[str] | None) -> TaskInvocation:
    """Parse the command line, and check all that can be checked without loading data."""
    return _invocation(PROGRAM.parse(argv))


def configure(**values: Any) -> TaskInvocation:
    """Like `parse`, from Python: options of train_task.py by name, and `set` for other settings by dotted key."""
    return _invocation(PROGRAM.configure(values))


def _invocation(parsed: Parsed[TaskCommand, TaskRunConfig]) -> TaskInvocation:
    command, config = parsed.command, parsed.config
    if parsed.changes:
        key = next(iter(parsed.changes))
        raise UserError(f"--set settings.{key}: these are settings of a method, of which train_task.py has none")
    if len(config.data.tasks) > 1 and command.task is None and not command.resume:
        raise UserError(f"{config.data.path} has {len(config.data.tasks)} tasks; say which with --task NUMBER or NAME")
    return TaskInvocation(config, command, parsed.given)
