"""What the command lines of modelzoo.py and train_task.py have in common.

A Program is a command line: a class of options that concern this command alone (BaseCommand), and a class of the
configuration of a run (BaseConfig). argv -> values by dotted key -> command and configuration
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from methods.config import BaseConfig
from records.configuration import ASK, SECTIONS, build, data_section, net_sections, recipe_keys
from utils.errors import UserError, unknown
from utils.options import Parser, check_text, value_of
from utils.settings import Declaration, Given, Range, declarations, setting
from utils.yaml_files import parse_value

PROJECT = Path(__file__).resolve().parent.parent
LEARNED, HOW, WHERE = "what is learned", "how", "where to"
LENGTHS = {"hp.epochs", "hp.steps", "hp.examples"}


def shipped(folder: str, name: str, what: str, option: str) -> Any:
    """The declaration of an option for a YAML file of config/, by default one that ships with the project."""
    default = str(PROJECT / "config" / folder / name)
    return setting(str, f"{what} (default: {name})", default=default, option=option, group=LEARNED, metavar="YAML")


@dataclass(frozen=True, kw_only=True)
class BaseCommand:
    """The options of a command that do not change what is learned."""

    data_config: str
    hp_config: str
    run_dir: Path | None = setting(
        Path, "where results go (default: runs/<stream>-<net>-<method>-seed<N>)", default=None, option="run_dir",
        group=WHERE, metavar="DIR",
    )  # fmt: skip
    overwrite: bool = setting(
        bool, "replace the run that is in --run_dir (default: refuse)", default=False, option="overwrite", group=WHERE
    )
    resume: bool = setting(
        bool, "resume the interrupted run in --run_dir, with its options; begin it if there is none and other options "
        "describe it (default: refuse)",
        default=False, option="resume", group=WHERE,
    )  # fmt: skip
    checkpoint_minutes: float = setting(
        Range(0, 1e6, whole=False), "save training that is under way every M minutes; 0 is every epoch (default: 10)",
        default=10.0, option="checkpoint_minutes", group=WHERE, metavar="M",
    )  # fmt: skip
    verify: Path | None = setting(
        Path, "check all files of a run against their checksums, and do nothing else (default: run)", default=None,
        option="verify", group=WHERE, metavar="RUN",
    )  # fmt: skip
    quiet: bool = setting(
        bool, "print only the final table (default: progress, and a line for every measurement)", default=False,
        option="quiet", group=WHERE,
    )  # fmt: skip


C = TypeVar("C", bound=BaseCommand)
R = TypeVar("R", bound=BaseConfig)
Values = Mapping[str, Given]  # by option of the command or dotted key of a setting


class Parsed(NamedTuple, Generic[C, R]):
    """A command line: its command, the configuration, the keys that were given, and those of a method's settings."""

    command: C
    config: R
    given: frozenset[str]
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Program(Generic[C, R]):
    """A program by its name, its description for --help, and the classes of its command and configuration."""

    name: str
    description: str
    command: type[C]
    config: type[R]

    def __hash__(self) -> int:
        return hash(self.name)

    @cache  # noqa: B019  # there are two programs
    def options(self) -> dict[str, Declaration]:
        """Dotted key -> declaration of every option except --set."""
        found = declarations(self.command)
        for name, kind in {**SECTIONS, "": self.config}.items():
            for key, declaration in declarations(kind).items():
                if declaration.option and key not in self.command.__dataclass_fields__:
                    found[f"{name}.{key}" if name else key] = declaration
        return found

    def describing(self, given: frozenset[str]) -> bool:
        """Whether an option says what is to be learned or how, not only where."""
        return bool(given - {key for key, of in self.options().items() if of.machine or of.group == WHERE})

    def parse(self, argv: Sequence[str] | None) -> Parsed[C, R]:
        """Parse a command line, and check all that can be checked without loading data."""
        parser = Parser(prog=self.name, allow_abbrev=False, description=self.description)
        parser.declare(self.options().values())
        parser.add_argument(
            "--set", metavar="KEY=VALUE", action="append", default=[], dest="changes",
            help="any setting of config.yaml by its dotted key, such as hp.lr=0.03, net.width=64, "
            "settings.strength=10 or ask.hessian.examples=500; can be given several times (default: none)",
        )  # fmt: skip
        parsed = vars(parser.parse_known(argv, recipe_keys(), "the --hp_config YAML"))
        changes = dict(_change(text) for text in parsed.pop("changes"))
        values = {
            key: Given(value_of(declared, f"--{declared.option}", text), f"--{declared.option}", "--")
            for key, declared in self.options().items() if (text := parsed[declared.option]) is not None
        }  # fmt: skip
        return self.read({**values, **changes})

    def configure(self, values: Mapping[str, Any]) -> Parsed[C, R]:
        """Like `parse`, from Python: options by name, and `set` for other settings by dotted key."""
        by_name = {declared.option: key for key, declared in self.options().items()}
        changes = values.get("set", {})
        found: dict[str, Given] = {}
        for name, value in values.items():
            if name == "set":
                continue
            if name not in by_name:
                raise UserError(f"configure: {unknown('option', name, [*by_name, 'set'])}")
            if value is not None:
                value = str(value) if isinstance(value, Path) else value
                found[by_name[name]] = Given(not value if name.startswith("no_") else value, name, "configure")
        return self.read(found | {key: Given(value, key, "set") for key, value in changes.items()})

    def read(self, values: Values) -> Parsed[C, R]:
        """The command and the configuration of these values and the YAML files that they name."""
        for key, declaration in self.options().items():
            if key in values:
                declaration.check(values[key].where, values[key].value)
        for value in values.values():
            if isinstance(value.value, str):
                check_text(value.where, value.value)
        own = declarations(self.command)
        command = self.command(**{key: own[key].check(v.where, v.value) for key, v in values.items() if key in own})
        check_command(command, values)
        sections = {"data": data_section(command.data_config), **net_sections(command.hp_config)}
        sections |= {"settings": {}, ASK: {}}
        if LENGTHS & values.keys():  # the length of training on the command line replaces the one of the YAML
            for key in LENGTHS:
                sections["hp"].pop(key.partition(".")[2], None)
        others = {}
        for key, value in values.items():
            section, dot, name = key.partition(".")
            if dot and section not in sections:
                raise UserError(f"--set {key}: {unknown('part', section, sections)}")
            if not dot and key in sections:
                raise UserError(f"{value.where}: {key} has keys; write --set {key}.KEY=VALUE")
            if dot:
                sections[section][name] = value
            elif key not in own:
                others[key] = value
        changes = sections.pop("settings")
        config = build(self.config, "", {**sections, **others})
        return Parsed(command, config, frozenset(values), changes)


def check_command(command: BaseCommand, given: Collection[str]) -> None:
    """Check that no two options contradict each other."""
    if command.resume and command.overwrite:
        raise UserError("--resume and --overwrite contradict each other; leave one out")
    if command.verify is not None and len(given) > 1:
        other = next(name for name in sorted(given) if name != "verify")
        raise UserError(f"--verify only checks a run; leave --{other.rpartition('.')[2]} out")


def _change(text: str) -> tuple[str, Given]:
    """The dotted key and the value of a --set."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text}: write a key and a value, such as --set hp.lr=0.03")
    try:
        return key, Given(parse_value(value, "tasks" if key == "data.tasks" else "value"), f"--set {key}", "--set")
    except UserError as error:
        raise UserError(f"--set {text}: {error}") from None
