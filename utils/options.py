"""Command lines: options built from declared settings, and errors on one line."""

import argparse
import difflib
import sys
from collections.abc import Container, Iterable, Sequence
from typing import Any, NoReturn

from utils.errors import UserError, expanded, unknown
from utils.settings import Declaration, Range

_PATHS = ("DIR", "RUN", "YAML", "CSV", "IMAGE_OR_FOLDER")  # what stands for the value of an option that is a path


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError and suggests the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_known(self, argv: Sequence[str] | None, keys: Container[str] = (), of: str = "") -> argparse.Namespace:
        """Parse; the UserError for an unknown option says whether it is one of the `keys` of the file `of`."""
        for given in sys.argv[1:] if argv is None else argv:
            if given.startswith("--") and given.endswith("=--"):  # argparse would return a list
                raise UserError(f"argument {given[:-3]}: expected one argument")
        options, extra = self.parse_known_args(argv)
        if extra:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(extra[0].split("=")[0], known, n=1, cutoff=0.7)
            key = extra[0].split("=")[0].lstrip("-")
            if key in keys:
                raise UserError(f"unknown option {extra[0]}; {key} is a key of {of}")
            raise UserError(f"unknown option {extra[0]}" + (f"; did you mean {near[0]}?" if near else "; -h lists all"))
        for action in (action for action in self._actions if action.metavar in _PATHS):
            value = getattr(options, action.dest)
            if isinstance(value, list):  # what is only read may have any name
                setattr(options, action.dest, [*map(expanded, value)])
            elif value is not None:
                check_text((action.option_strings or ["RUN"])[0], value)
                setattr(options, action.dest, expanded(value))
        return options

    def declare(self, declared: Iterable[Declaration]) -> None:
        """Add the options of declared settings, each under the title of its group."""
        groups = {group.title: group for group in self._action_groups}
        for declaration in filter(lambda declaration: declaration.option, declared):
            title, switch = declaration.group, {"action": "store_const", "const": "true"}
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            how: dict[str, Any] = switch if declaration.accepts is bool else {"metavar": declaration.metavar}
            groups[title].add_argument(f"--{declaration.option}", help=declaration.help, **how)


def value_of(declaration: Declaration, option: str, text: str) -> Any:
    """Convert the text of an option as YAML would; UserError if it must be a number and is not."""
    if declaration.accepts is bool:
        return not declaration.option.startswith("no_")
    if isinstance(declaration.accepts, Range):
        try:
            return int(text) if declaration.accepts.whole else float(text)
        except ValueError:
            raise UserError(f"{option} is {text!r}; it must be {declaration.accepts.describe()}") from None
    return text


def whole(option: str, text: str, accepted: Range = Range(1, 10**6)) -> int:
    """The value of an option that must be a whole number in the range; UserError if it is not."""
    return int(accepted.check(option, value_of(Declaration(accepted, ""), option, text)))


def check_text(option: str, value: str) -> None:
    """UserError if a path is not valid UTF-8 and so cannot be written to config.yaml."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UserError(f"{option} {value} is no text, and could not be kept in config.yaml; rename it") from None


def check_choice(option: str, kind: str, value: str, known: Iterable[str]) -> None:
    """UserError if the value of an option is an unknown word."""
    if value not in (known := list(known)):
        raise UserError(f"{option}: {unknown(kind, value, known)}")
