"""Settings: each is declared once, as a field of a frozen dataclass.

    @dataclass(frozen=True)
    class Settings:
        width: int = setting(Range(1, 4096), "channels of each convolution", default=80)

The command line, the checks of YAML files, config.yaml, what a resumed run may change, which runs are comparable and
TensorBoard's hyperparameters are derived from these declarations.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError, expanded, unknown

_HUGE = 2**63
Kind = type | tuple[str, ...]  # type of a hyperparameter in TensorBoard, or its possible words


@dataclass(frozen=True)
class Range:
    """An interval of numbers that a setting accepts; whole: integers only, open: without the bound itself."""

    low: float
    high: float = math.inf
    whole: bool = True
    open_low: bool = False
    open_high: bool = False

    def describe(self) -> str:
        """The range in words, such as "a whole number at least 1"."""
        kind = "a whole number" if self.whole else "a number"
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        if self.high == math.inf:
            return f"{kind} {low}"
        return f"{kind} {low} and {'below' if self.open_high else 'at most'} {self.high:g}"

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and abs(value) < _HUGE

    def check(self, where: str, value: object) -> Any:
        """The value if it is a number in the range, else UserError; the message begins with `where`."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or (self.whole and not isinstance(value, int)) or value not in self:  # type: ignore[operator]
            raise UserError(f"{where} is {value!r}; it must be {self.describe()}")
        return value if self.whole else float(value)  # type: ignore[arg-type]


@dataclass(frozen=True)
class PerChannel:
    """A number for all channels, or a list of one number for each."""

    range: Range

    def read(self, where: str, value: object) -> tuple[float, ...]:
        """The checked numbers; a UserError begins with `where`."""
        if value == []:
            raise UserError(f"{where} is empty; give a number, or a list with one number for each channel")
        return tuple(self.range.check(where, number) for number in (value if isinstance(value, list) else [value]))


@dataclass(frozen=True)
class Accepted:
    """Values of a setting that one Range cannot describe."""

    words: str
    parse: Callable[[Any], Any]  # returns the value as training uses it; UserError if it is not accepted
    kind: type = float  # see Declaration.kind

    def describe(self) -> str:
        """The accepted values in words, for error messages."""
        return self.words

    def read(self, where: str, value: object) -> Any:
        """The checked value, else UserError; the message begins with `where`."""
        try:
            return self.parse(value)
        except UserError:
            raise UserError(f"{where} is {value!r}; it must be {self.words}") from None


def counts(within: Range) -> Accepted:
    """Whole numbers of a range, which may be written as a power such as 2^24."""

    def parse(value: Any) -> int:
        power = re.fullmatch(r"(\d{1,18})(?:\^(\d{1,2}))?", value) if isinstance(value, str) else None
        return within.check("", int(power[1]) ** int(power[2] or 1) if power else value)  # type: ignore[no-any-return]

    return Accepted(f"{within.describe()}, or a power such as 2^24", parse)


COUNT = counts(Range(1))


@dataclass(frozen=True)
class Declaration:
    """The declaration of one setting."""

    accepts: Any  # a Range, a tuple of words, bool, str, Path, or a class with read(where, value) and describe()
    help: str  # one line for the command line and the documentation
    option: str = ""  # without dashes; "" if only --set changes it; "no_..." sets a bool to false
    group: str = ""  # title of the option's group in the help
    metavar: str = "N"
    free: bool = False  # a resumed run may change it
    internal: bool = False  # programs write it into config.yaml, people do not
    machine: bool = False  # it changes where or how fast a run computes: runs that differ in it are comparable

    def check(self, where: str, value: object) -> Any:
        """The value if the setting accepts it, else UserError; the message begins with `where`."""
        if isinstance(self.accepts, tuple):
            if value not in self.accepts:
                kind = where.rpartition(" ")[2].removeprefix("--").rpartition(".")[2]
                raise UserError(f"{where}: {unknown(kind, value, self.accepts)}")
            return value
        if self.accepts is bool:
            if not isinstance(value, bool):
                raise UserError(f"{where} is {value!r}; it must be true or false")
            return value
        if self.accepts is str or self.accepts is Path:
            if not isinstance(value, str) or not value:
                raise UserError(f"{where} is {value!r}; it must be a text")
            return Path(expanded(value)) if self.accepts is Path else value
        return (self.accepts.check if isinstance(self.accepts, Range) else self.accepts.read)(where, value)

    @property
    def kind(self) -> Kind:
        """Type of its column in TensorBoard's table of hyperparameters."""
        if self.accepts is bool or isinstance(self.accepts, tuple):
            return self.accepts  # type: ignore[no-any-return]
        return float if isinstance(self.accepts, Range) else getattr(self.accepts, "kind", str)


def setting(accepts: Any, help: str, *, default: Any = dataclasses.MISSING, **more: Any) -> Any:
    """A field of a settings class, see Declaration; a setting whose default is None may be None."""
    given = {} if default is dataclasses.MISSING else {"default": default}
    return dataclasses.field(**given, metadata={"declaration": Declaration(accepts, help, **more)})  # type: ignore[call-overload]


@dataclass(frozen=True)
class NoSettings:
    """The settings of something that has none."""


T = TypeVar("T")


def declarations(kind: type) -> dict[str, Declaration]:
    """The declarations of a settings class by field name, in their order."""
    return dict(_declarations(kind))


@cache
def _declarations(kind: type) -> dict[str, Declaration]:
    return {f.name: f.metadata["declaration"] for f in fields(kind) if "declaration" in f.metadata}


def read(kind: type[T], where: str, content: Mapping[str, Any], own: type = NoSettings) -> T:
    """An instance of a settings class from keys and values; a UserError begins with `where`, unless they are Given.

    The keys of a second settings class, `own`, stand among the others; its instance becomes the field `settings`.
    """
    more = declarations(own)
    values = read_values(kind, where, {key: value for key, value in content.items() if key not in more}, more)
    if more:
        values["settings"] = read(own, where, {key: value for key, value in content.items() if key in more})
    return kind(**values)


def read_values(kind: type, where: str, content: Mapping[str, Any], more: Iterable[str] = ()) -> dict[str, Any]:
    """The checked values of a settings class by name, see `read`; `more`: other known keys, for error messages."""
    known = declarations(kind)
    shown = [key for key, declared in known.items() if not declared.internal]
    for key, value in content.items():
        given = isinstance(value, Given) and value.where != value.source  # the path of a file has no key in it
        if key not in (shown if given else known):
            source = value.source if isinstance(value, Given) else where
            raise UserError(f"{source}: {unknown('key', key, [*shown, *more])}")
    values = {key: _value(kind, where, key, value) for key, value in content.items()}
    for field in fields(kind):
        if field.name in known and field.default is dataclasses.MISSING and field.name not in content:
            raise UserError(f"{where}: key {field.name!r} is missing")
    return values


def _value(kind: type, where: str, key: str, value: Any) -> Any:
    where = f"{where}: {key}"
    if isinstance(value, Given):
        value, where = value.value, value.where
    optional = kind.__dataclass_fields__[key].default is None  # type: ignore[attr-defined]
    return None if value is None and optional else declarations(kind)[key].check(where, value)


def optional(kind: type, name: str, *, bases: tuple[type, ...] = ()) -> type:
    """A class with the settings of another one, each of which may be left out: it is None then."""
    own = [(key, Any, setting(declared.accepts, declared.help, default=None)) for key, declared in
           declarations(kind).items()]  # fmt: skip
    return dataclasses.make_dataclass(name, own, bases=bases, frozen=True)


@dataclass(frozen=True)
class Given:
    """A value and its origin, with which error messages begin."""

    value: Any
    where: str  # for messages about the value, such as "--lr" or "h.yaml: lr"
    source: str  # for messages about its key, such as "--set" or "h.yaml"


def plain(settings: Any) -> dict[str, Any]:
    """Settings as plain YAML values: tuples become lists, paths texts; the field `settings` moves one level up."""
    values = {field.name: _plain(getattr(settings, field.name)) for field in fields(settings)}
    return values | values.pop("settings", {})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(value)
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return str(value) if isinstance(value, Path) else value


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value: {hp: {lr: 0.1}} gives hp.lr, 0.1."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The alphabetically first dotted key in which two nested mappings differ, or None."""
    left, right = dict(flat(one)), dict(flat(other))
    missing = object()
    return next((k for k in sorted({*left, *right}) if left.get(k, missing) != right.get(k, missing)), None)
