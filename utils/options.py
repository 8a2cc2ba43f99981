"""Command lines: options made of declared settings, and one line for a misspelt one."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from utils.errors import UserError, unknown
from utils.settings import Declaration, Range


class Parser(argparse.ArgumentParser):
    """One line instead of the usage, and the nearest option for a misspelt one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse_known(self, argv: Sequence[str] | None, keys: Container[str] = (), of: str = "") -> argparse.Namespace:
        """The options.

        Args:
            keys: are no options, but could be taken for some; `of`: where they belong.

        Raises:
            UserError: an option is unknown, or lacks its value.
        """
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
        return options

    def declare(self, declared: Iterable[Declaration]) -> None:
        """Add the options of declared settings, under the titles of their groups."""
        groups = {group.title: group for group in self._action_groups}
        for declaration in declared:
            if not declaration.option:
                continue
            title = declaration.group
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            switch = declaration.accepts is bool
            how: dict[str, Any] = (
                {"action": "store_const", "const": "true"} if switch else {"metavar": declaration.metavar}
            )
            groups[title].add_argument(f"--{declaration.option}", help=declaration.help, **how)


def value_of(declaration: Declaration, option: str, text: str) -> Any:
    """The value of an option as a YAML file would have it, to be checked by its declaration.

    Raises:
        UserError: not a number where one is needed, or a word that the option does not know.
    """
    if declaration.accepts is bool:
        return not declaration.option.startswith("no_")
    if isinstance(declaration.accepts, Range):
        try:
            return int(text) if declaration.accepts.whole else float(text)
        except ValueError:
            raise UserError(f"{option} is {text!r}; it must be {declaration.accepts.describe()}") from None
    return text


def whole(option: str, text: str, accepted: Range = Range(1, 10**6)) -> int:
    """A whole number.

    Raises:
        UserError: it is none.
    """
    return int(accepted.check(option, value_of(Declaration(accepted, ""), option, text)))


def check_text(option: str, value: str | None) -> None:
    """Names of files may be bytes that are no text; config.yaml is one.

    Raises:
        UserError: it could not be written down.
    """
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise UserError(f"{option} {value} is no text, and could not be kept in config.yaml; rename it") from None


def check_choice(option: str, kind: str, value: str, known: Mapping[str, Any] | Sequence[str]) -> None:
    """
    Raises:
        UserError: an unknown word; names the nearest.
    """
    if value not in known:
        raise UserError(f"{option}: {unknown(kind, value, known)}")
