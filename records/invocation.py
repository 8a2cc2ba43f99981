"""The command line of modelzoo.py: Invocation is the configuration of a run and the options of the command."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import methods.config
from methods import METHODS, check_method
from methods.config import RunConfig
from records.commandline import HOW, WHERE, BaseCommand, Parsed, Program, shipped
from records.configuration import default_method_config, method_settings
from utils.errors import UserError
from utils.files import beside
from utils.settings import Declaration, declarations, read, setting

KEPT = (*methods.config.KEPT, "replay_frac")  # ways to limit the replay memory


@dataclass(frozen=True, kw_only=True)
class Command(BaseCommand):
    """The options of a command that do not change what is learned."""

    data_config: str = shipped(
        "dataset", "split_digits.yaml", "which tasks, in which order; the digits need no download", "data_config"
    )
    hp_config: str = shipped("hyperparam", "conv.yaml", "which network and how it is trained", "hp_config")
    method_config: str | None = setting(
        str, "settings of the method (default: config/method/<method>.yaml)", default=None, option="method_config",
        group=HOW, metavar="YAML",
    )  # fmt: skip
    extend: Path | None = setting(
        Path, "the tasks of --data_config join a finished --continual run as further episodes, with its options, in "
        "--run_dir (default RUN-extended); RUN stays as it is (default: begin with the first task)", default=None,
        option="extend", group=WHERE, metavar="RUN",
    )  # fmt: skip
    isolated: Path | None = setting(
        Path, "finished run of --method isolated, same options: measures forward transfer (default: none)",
        default=None, option="isolated", group=WHERE, metavar="RUN",
    )  # fmt: skip


PROGRAM = Program(
    "modelzoo.py",
    "Train a continual learner on a stream of tasks. The command line wins over the hyperparameter YAML, which wins "
    "over the defaults.",
    Command, RunConfig,
)  # fmt: skip


@dataclass(frozen=True)
class Invocation:
    """A command: the configuration of the run, and the options of this command alone.

    Attributes:
        config: without the settings of the method until `with_settings`.
        given: options of Command and dotted keys of settings that stand on the command line.
        changes: values that --set gives to settings of the method.
    """

    config: RunConfig
    command: Command
    given: frozenset[str]
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        command, config = self.command, self.config
        if command.run_dir is not None:
            return command.run_dir
        if command.extend is not None:
            return beside(command.extend, "-extended")
        return Path("runs") / f"{config.stream}-{config.net.title.replace('/', '_')}-{config.method}-seed{config.seed}"

    @property
    def describes_run(self) -> bool:
        """Whether an option says what is to be learned or how, not only where."""
        return PROGRAM.describing(self.given)

    def settings_of(self, method: str) -> Any:
        """Settings of a method: from --method_config or its own file, changed by --set."""
        kind, path, content = METHODS[method].Settings, self.command.method_config, dict(self.changes)
        source = path or default_method_config(method)
        if declarations(kind):
            content = {**method_settings(source, self.config.stream), **content}
        elif path is not None:
            raise UserError(f"--method_config {path}: --method {method} has no settings; leave it out")
        return read(kind, source, content)


def with_settings(invocation: Invocation) -> RunConfig:
    """The configuration of a new run with its method's settings; UserError if that lacks the mode or an option."""
    config = invocation.config
    _check_new(invocation.given)
    check_method(config, invocation.given)
    config = replace(config, settings=invocation.settings_of(config.method))
    check_method(config, invocation.given)
    return config


def options() -> dict[str, Declaration]:
    """Dotted key -> declaration of every option of modelzoo.py except --set."""
    return PROGRAM.options()


def parse(argv: Sequence[str] | None) -> Invocation:
    """Parse the command line, and check all that can be checked without loading data."""
    return _invocation(PROGRAM.parse(argv))


def configure(**values: Any) -> Invocation:
    """Like `parse`, from Python: options of modelzoo.py by name, and `set` for other settings by dotted key.

    configure(data_config="config/dataset/split_digits.yaml", method="er", epochs=5, set={"hp.lr": 0.03})
    """
    return _invocation(PROGRAM.configure(values))


def _invocation(parsed: Parsed[Command, RunConfig]) -> Invocation:
    command = parsed.command
    if command.extend is not None:
        if command.resume:
            raise UserError("--extend and --resume contradict each other; --resume alone resumes an extension too")
        if "data_config" not in parsed.given:
            raise UserError("--extend needs --data_config with the tasks that are to join")
    return Invocation(parsed.config, command, parsed.given, parsed.changes)


def _check_new(given: Collection[str]) -> None:
    """Check that no two options of a new run contradict each other."""
    kept = [name for name in KEPT if name in given]
    if len(kept) > 1:
        raise UserError(f"--{kept[0]} and --{kept[1]} are two ways to say the same; leave one out")
    if "continual" in given:
        for name in ("rounds", "warm_start"):
            if name in given:
                raise UserError(f"--{name} is for the multi-task mode; leave it or --continual out")
    elif kept:
        raise UserError(f"--{kept[0]} is for past tasks, which only --continual has; add --continual or leave it out")
