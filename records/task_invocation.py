"""The command line of train_task.py: the configuration of one run for each seed, and the options of the command."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from records.commandline import HOW, LEARNED, LENGTHS, WHERE, BaseCommand, Parsed, Program, shipped
from records.preparing import resuming_command
from records.task_config import TaskRunConfig
from records.tiny import HANDCRAFTED
from training.recipe import Recipe
from utils.errors import UserError
from utils.settings import Range, counts, declarations, setting


class Rates:
    """Accepts learning rates: a list, or a text with commas between them."""

    @staticmethod
    def read(where: str, value: object) -> tuple[float, ...]:
        """The checked rates; a UserError begins with `where`."""
        if not isinstance(value, (str, list, tuple)) or not value:
            raise UserError(f"{where} is {value!r}; it must be learning rates, such as 0.01,0.03")
        try:
            rates = [float(rate) for rate in value.split(",")] if isinstance(value, str) else value
        except ValueError:
            raise UserError(f"{where} is {value!r}; it must be learning rates, such as 0.01,0.03") from None
        declared = declarations(Recipe)["lr"]
        return tuple(dict.fromkeys(declared.check(where, rate) for rate in rates))


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
    rates: tuple[float, ...] = setting(
        Rates, "learning rates with commas between them: one run for each and each seed, all trained at once, in "
        "DIR/lr<rate>/seed<N> (default: the one of --hp_config)", default=(), option="rates", group=HOW,
        metavar="LR,...",
    )  # fmt: skip
    zoo_dir: str | None = setting(
        str, "begin with the network of this folder that fits task, sizes and seed, a published file or a checkpoint "
        f"of another run; {HANDCRAFTED}: with weights that were written down (default: drawn weights)",
        default=None, option="zoo_dir", group=LEARNED, metavar="DIR",
    )  # fmt: skip
    n_seqs: int | None = setting(
        counts(Range(0)), "which network of --zoo_dir: the one that has seen N examples, such as 2^20 (default: the "
        "one trained longest)", default=None, option="n_seqs", group=LEARNED,
    )  # fmt: skip


PROGRAM = Program(
    "train_task.py",
    "Train one network on one task, keep its weights along the way, and ask questions about it. The command line wins "
    "over the hyperparameter YAML, which wins over the defaults.",
    TaskCommand, TaskRunConfig,
)  # fmt: skip


@dataclass(frozen=True)
class TaskInvocation:
    """A command: the configuration of the runs but for seeds and rates, and the options of this command alone."""

    config: TaskRunConfig
    command: TaskCommand
    given: frozenset[str]

    @property
    def folder(self) -> Path:
        """The run directory, or with several seeds the folder of their run directories."""
        if self.command.run_dir is not None:
            return self.command.run_dir
        name = f"{self.config.stream}-{self.config.net.title.replace('/', '_')}"
        several = self.command.seeds > 1 or len(self.command.rates) > 1
        return Path("runs") / (name if several else f"{name}-seed{self.config.seed}")

    @property
    def runs(self) -> dict[Path, TaskRunConfig]:
        """The configuration of each run by its directory."""
        rates, first = self.command.rates or (self.config.hp.lr,), self.config.seed
        found = {}
        for rate in rates:
            folder = self.folder / f"lr{rate}" if len(rates) > 1 else self.folder
            for seed in range(first, first + self.command.seeds):
                path = folder / f"seed{seed}" if len(rates) > 1 or self.command.seeds > 1 else folder
                found[path] = replace(self.config, seed=seed, hp=replace(self.config.hp, lr=rate))
        return found

    @property
    def resuming(self) -> str:
        """The command that resumes the runs, for people to copy."""
        command, first, count = resuming_command(self.folder, PROGRAM.name), self.config.seed, self.command.seeds
        command += f" --rates {','.join(map(str, self.command.rates))}" if self.command.rates else ""
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
    if command.n_seqs is not None and command.zoo_dir in (None, HANDCRAFTED):
        raise UserError(f"--n_seqs {command.n_seqs} chooses a network of a folder; name one with --zoo_dir")
    if config.evaluate_only and (lengths := LENGTHS & parsed.given):
        raise UserError(f"--evaluate_only trains nothing; leave --{min(lengths).removeprefix('hp.')} out")
    if len(config.data.tasks) > 1 and command.task is None and not command.resume:
        raise UserError(f"{config.data.path} has {len(config.data.tasks)} tasks; say which with --task NUMBER or NAME")
    given = parsed.given
    if command.rates:
        if "hp.lr" in given:
            raise UserError("--rates and --set hp.lr are two ways to say the same; leave one out")
        given |= {"hp.lr"}
    return TaskInvocation(config, command, given)
