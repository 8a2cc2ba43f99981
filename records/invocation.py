"""The command line of modelzoo.py: Invocation is the configuration of a run and the options of the command."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import methods.config
from methods import METHODS, check_method
from methods.config import RunConfig
from records.configuration import (
    SECTIONS,
    build,
    data_section,
    default_method_config,
    method_settings,
    net_sections,
    recipe_keys,
)  # fmt: skip
from utils.errors import UserError, unknown
from utils.files import beside
from utils.options import Parser, check_text, value_of
from utils.settings import Declaration, Given, Range, declarations, read, setting
from utils.yaml_files import parse_value

_PROJECT = Path(__file__).resolve().parent.parent
_LEARNED, _HOW, _WHERE = "what is learned", "how", "where to"
_LENGTHS = {"hp.epochs", "hp.steps", "hp.examples"}
KEPT = (*methods.config.KEPT, "replay_frac")  # ways to limit the replay memory


@dataclass(frozen=True)
class Command:
    """The options of a command that do not change what is learned."""

    data_config: str = setting(
        str, "which tasks, in which order (default: split_digits, which needs no download)",
        default=str(_PROJECT / "config" / "dataset" / "split_digits.yaml"), option="data_config", group=_LEARNED,
        metavar="YAML",
    )  # fmt: skip
    hp_config: str = setting(
        str, "which network and how it is trained (default: conv.yaml)",
        default=str(_PROJECT / "config" / "hyperparam" / "conv.yaml"), option="hp_config", group=_LEARNED,
        metavar="YAML",
    )  # fmt: skip
    method_config: str | None = setting(
        str, "settings of the method (default: config/method/<method>.yaml)", default=None, option="method_config",
        group=_HOW, metavar="YAML",
    )  # fmt: skip
    run_dir: Path | None = setting(
        Path, "where results go (default: runs/<stream>-<net>-<method>-seed<N>)", default=None, option="run_dir",
        group=_WHERE, metavar="DIR",
    )  # fmt: skip
    overwrite: bool = setting(
        bool, "replace the run that is in --run_dir (default: refuse)", default=False, option="overwrite", group=_WHERE
    )
    resume: bool = setting(
        bool, "resume the interrupted run in --run_dir, with its options; begin it if there is none and other options "
        "describe it (default: refuse)",
        default=False, option="resume", group=_WHERE,
    )  # fmt: skip
    extend: Path | None = setting(
        Path, "the tasks of --data_config join a finished --continual run as further episodes, with its options, in "
        "--run_dir (default RUN-extended); RUN stays as it is (default: begin with the first task)", default=None,
        option="extend", group=_WHERE, metavar="RUN",
    )  # fmt: skip
    checkpoint_minutes: float = setting(
        Range(0, 1e6, whole=False), "save training that is under way every M minutes; 0 is every epoch (default: 10)",
        default=10.0, option="checkpoint_minutes", group=_WHERE, metavar="M",
    )  # fmt: skip
    verify: Path | None = setting(
        Path, "check all files of a run against their checksums, and do nothing else (default: run)", default=None,
        option="verify", group=_WHERE, metavar="RUN",
    )  # fmt: skip
    isolated: Path | None = setting(
        Path, "finished run of --method isolated, same options: measures forward transfer (default: none)",
        default=None, option="isolated", group=_WHERE, metavar="RUN",
    )  # fmt: skip
    quiet: bool = setting(
        bool, "print only the final table (default: progress, a line per episode)", default=False, option="quiet",
        group=_WHERE,
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
        return Path("runs") / f"{config.stream}-{config.net.model.replace('/', '_')}-{config.method}-seed{config.seed}"

    @property
    def describes_run(self) -> bool:
        """Whether an option says what is to be learned or how, not only where."""
        return bool(self.given - {key for key, of in options().items() if of.machine or of.group == _WHERE})

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
    found = declarations(Command)
    for name, kind in {**SECTIONS, "": RunConfig}.items():
        for key, declaration in declarations(kind).items():
            if declaration.option:
                found[f"{name}.{key}" if name else key] = declaration
    return found


def parse(argv: Sequence[str] | None) -> Invocation:
    """Parse the command line, and check all that can be checked without loading data."""
    parser = Parser(
        prog="modelzoo.py", allow_abbrev=False,
        description="Train a continual learner on a stream of tasks. The command line wins over the "
        "hyperparameter YAML, which wins over the defaults.",
    )  # fmt: skip
    parser.declare(options().values())
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="changes",
        help="any setting of config.yaml by its dotted key, such as hp.lr=0.03, net.width=64 or settings.strength=10; "
        "can be given several times (default: none)",
    )  # fmt: skip
    parsed = vars(parser.parse_known(argv, recipe_keys(), "the --hp_config YAML"))
    changes = dict(_change(text) for text in parsed.pop("changes"))
    values = {
        key: Given(value_of(declared, f"--{declared.option}", text), f"--{declared.option}", "--")
        for key, declared in options().items() if (text := parsed[declared.option]) is not None
    }  # fmt: skip
    return _invocation({**values, **changes})


def configure(**values: Any) -> Invocation:
    """Like `parse`, from Python: options of modelzoo.py by name, and `set` for other settings by dotted key.

    configure(data_config="config/dataset/split_digits.yaml", method="er", epochs=5, set={"hp.lr": 0.03})
    """
    by_name = {declared.option: key for key, declared in options().items()}
    changes = values.pop("set", {})
    found: dict[str, Given] = {}
    for name, value in values.items():
        if name not in by_name:
            raise UserError(f"configure: {unknown('option', name, [*by_name, 'set'])}")
        if value is not None:
            value = str(value) if isinstance(value, Path) else value
            found[by_name[name]] = Given(not value if name.startswith("no_") else value, name, "configure")
    return _invocation(found | {key: Given(value, key, "set") for key, value in changes.items()})


def _invocation(values: Mapping[str, Given]) -> Invocation:
    declared = options()
    for key, value in values.items():
        if key in declared:
            declared[key].check(value.where, value.value)
    for value in values.values():
        if isinstance(value.value, str):
            check_text(value.where, value.value)
    own = declarations(Command)
    command = Command(**{key: own[key].check(v.where, v.value) for key, v in values.items() if key in own})
    check_command(command, values)
    sections = {"data": data_section(command.data_config), **net_sections(command.hp_config), "settings": {}}
    if _LENGTHS & values.keys():  # the length of training on the command line replaces the one of the YAML
        for key in _LENGTHS:
            sections["hp"].pop(key.partition(".")[2], None)
    others = {}
    for key, value in values.items():
        section, dot, name = key.partition(".")
        if dot and section not in sections:
            raise UserError(f"--set {key}: {unknown('part', section, sections)}")
        if dot:
            sections[section][name] = value
        elif key not in own:
            others[key] = value
    changes = sections.pop("settings")
    return Invocation(build("", {**sections, **others}), command, frozenset(values), changes)


def check_command(command: Command, given: Collection[str]) -> None:
    """Check that no two options contradict each other."""
    if command.resume and command.overwrite:
        raise UserError("--resume and --overwrite contradict each other; leave one out")
    if command.extend is not None:
        if command.resume:
            raise UserError("--extend and --resume contradict each other; --resume alone resumes an extension too")
        if "data_config" not in given:
            raise UserError("--extend needs --data_config with the tasks that are to join")
    if command.verify is not None and len(given) > 1:
        other = next(name for name in sorted(given) if name != "verify")
        raise UserError(f"--verify only checks a run; leave --{other.rpartition('.')[2]} out")


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


def _change(text: str) -> tuple[str, Given]:
    """The dotted key and the value of a --set."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: write a key and a value, such as --set hp.lr=0.03")
    try:
        return key, Given(parse_value(value, "tasks" if key == "data.tasks" else "value"), f"--set {key}", "--set")
    except UserError as error:
        raise UserError(f"--set {text}: {error}") from None
