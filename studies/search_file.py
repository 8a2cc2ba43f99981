"""Reading the YAML file of a search: a grid, and the space in which the best settings are looked for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records.configuration import value_at
from studies.grid import PROGRAMS, method_entry
from studies.grid_file import VARYING, file_of, listed
from studies.planned import Grid, PlannedRun
from utils.errors import UserError, unknown
from utils.settings import Range
from utils.yaml_files import load_yaml

SAMPLERS = ("random", "tpe")
KEYS = ("space", "trials", "sampler", "halving", "at_once")  # beside those of a grid
SEARCHED = ("net.", "hp.", "settings.")
RUNGS, METRIC = "rungs", "metric"  # what a trial notes in the journal: results at its rungs, metric and direction
LENGTHS = ("epochs", "steps", "examples")
_DIGITS = 4  # of a real number that is drawn: more would not be told apart by any run
_LARGEST = 10**12  # bound of a space
_STEPPED = 12  # of a multiple of a step, without what rounding adds to it


@dataclass(frozen=True)
class Parameter:
    """The values of one setting: some, or those from `low` to `high`; whole numbers if both bounds are."""

    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are accepted if all are: every choice, or both bounds."""
        return self.choices or (self.low, self.high)

    def value(self, drawn: Any) -> Any:
        """The value of a draw: of choices it is their place."""
        if self.choices:
            return self.choices[drawn]
        if self.whole:
            return drawn
        return min(max(float(f"{drawn:.{_STEPPED if self.step else _DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Halving:
    """Successive halving: a trial of full length has run at `factor`^-1, `factor`^-2, ... of it before."""

    factor: int = 3
    rungs: int = 1

    @property
    def shares(self) -> list[float]:
        """The share of the full length at each rung; the last is 1."""
        return [float(self.factor) ** (rung + 1 - self.rungs) for rung in range(self.rungs)]


@dataclass(frozen=True, eq=False)
class SearchSubject:
    """What one set of values is looked for: a network with a method, on all streams of the search."""

    name: str
    hyper: str  # the path of the YAML file of the network
    entry: Mapping[str, Any]  # of `methods`; empty for train_task
    content: Mapping[str, Any]  # the grid of this subject alone


@dataclass(frozen=True)
class Search:
    """A search, checked."""

    path: str
    store: Path
    program: str
    subjects: tuple[SearchSubject, ...]
    space: tuple[Parameter, ...]
    trials: int
    sampler: str
    halving: Halving
    at_once: int  # trials that are drawn before any of them is known

    def plan(self, subject: SearchSubject, values: Mapping[str, Any], share: float = 1.0) -> Grid:
        """The runs of a trial at a share of their length, checked; without values those of the presets.

        UserError if a value is not accepted, or if test examples would be read.
        """
        grid = self._grid(subject, values)
        if share < 1:
            lengths = {length(run) for run in grid.runs}
            if len(lengths) > 1:
                raise UserError(f"{self.path}: halving: the runs of {subject.name} differ in their lengths")
            (key, full), *_ = lengths
            grid = self._grid(subject, {**values, f"hp.{key}": max(1, round(share * full))})
        for run in grid.runs:
            if not run.config.data.validation:
                raise UserError(
                    f"{self.path}: validation is 0, so that {run.label} would be tuned on test examples; add "
                    "validation: 0.2, for example"
                )
        return grid

    def _grid(self, subject: SearchSubject, values: Mapping[str, Any]) -> Grid:
        varied = {key: [value] for key, value in values.items()}
        return PROGRAMS[self.program](self.path, {**subject.content, "vary": varied}, self.store)


def load_search(path: str, store: Path) -> Search:
    """Read a search, whose runs are in `store`, and check all bounds of its space; UserError names file and key."""
    content = load_yaml(path)
    program = content.get("program", "modelzoo")
    if not isinstance(program, str) or program not in PROGRAMS:
        raise UserError(f"{path}: program: {unknown('program', program, PROGRAMS)}")
    for key in (*VARYING, "published", "against"):
        if key in content:
            raise UserError(f"{path}: {key} is for grids; what a search varies stands in space")
    sampler = content.get("sampler", "tpe")
    if sampler not in SAMPLERS:
        raise UserError(f"{path}: sampler: {unknown('sampler', sampler, SAMPLERS)}")
    found = Search(
        path, store, program, _subjects(path, content, program), _space(path, content.get("space")),
        Range(1, 10**5).check(f"{path}: trials", content.get("trials", 20)), sampler,
        _halving(path, content.get("halving")), Range(1, 10**4).check(f"{path}: at_once", content.get("at_once", 1)),
    )  # fmt: skip
    for subject in found.subjects:
        presets = found.plan(subject, {}).runs[0]
        if found.halving.rungs > 1:
            key, full = length(presets)
            if full * found.halving.shares[0] < 0.5:
                raise UserError(f"{path}: halving: {full} {key} have no share of {found.halving.shares[0]:.2g}")
        for parameter in found.space:
            plans = [found.plan(subject, {parameter.key: value}) for value in parameter.extremes]
            values = [repr(value_at(plan.runs[0].config, parameter.key)) for plan in plans]
            if len(set(values)) < len(set(map(repr, parameter.extremes))):
                raise UserError(f"{path}: space: {parameter.key} has no effect: {subject.name} sets it itself")
    return found


def length(run: PlannedRun) -> tuple[str, int]:
    """What a run's length is given in, and its length."""
    return next((key, value) for key in LENGTHS if (value := getattr(run.config.hp, key, None)))


def _subjects(path: str, content: Mapping[str, Any], program: str) -> tuple[SearchSubject, ...]:
    for key in ("streams", "hyperparams"):
        for entry in listed(path, content, key):
            for more in (*VARYING, "hyperparams"):
                if isinstance(entry, dict) and more in entry:
                    raise UserError(f"{path}: {key}: {more} is for grids; what a search varies stands in space")
    base = {key: value for key, value in content.items() if key not in KEYS}
    found = []
    for hyper in listed(path, content, "hyperparams"):
        name = hyper.get("hp_config") if isinstance(hyper, dict) else hyper
        file, net = file_of(path, "hyperparams", name), Path(str(name)).stem
        if program == "train_task":
            found.append(SearchSubject(net, file, {}, {**base, "hyperparams": [hyper]}))
            continue
        for entry in listed(path, content, "methods"):
            checked = method_entry(f"{path}: methods", entry)
            own = {"method": checked.method, "label": checked.label, **checked.options}
            found.append(
                SearchSubject(
                    f"{net}, {checked.label}", file, own, {**base, "hyperparams": [hyper], "methods": [entry]}
                )
            )
    names = [subject.name for subject in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{path}: {twice} is searched for twice; give a label to one of them")
    return tuple(found)


def _space(path: str, content: object) -> tuple[Parameter, ...]:
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path}: space must map settings to values, such as space: {{hp.lr: {{low: 0.001, high: 0.1, log: true}}, "
            "hp.batch: [8, 16]}"
        )
    return tuple(_parameter(f"{path}: space: {key}", str(key), entry) for key, entry in content.items())


def _parameter(where: str, key: str, entry: object) -> Parameter:
    if not key.startswith(SEARCHED):
        raise UserError(f"{where}: settings that begin with {', '.join(SEARCHED)} can be searched for")
    if isinstance(entry, list) and entry:
        return Parameter(key, tuple(entry))
    if not isinstance(entry, dict) or not {"low", "high"} <= {*entry} <= {"low", "high", "log", "step"}:
        raise UserError(f"{where} must be a list of values, or low, high and perhaps log: true or step")
    number, step, log = Range(-_LARGEST, _LARGEST, whole=False), entry.get("step"), entry.get("log", False)
    for name in entry.keys() & {"low", "high", "step"}:
        number.check(f"{where}: {name}", entry[name])
    low, high = entry["low"], entry["high"]
    if not isinstance(log, bool) or (log and (step is not None or low <= 0)):
        raise UserError(f"{where}: log is true or false; with log: true low is above 0, and there is no step")
    if low >= high or (step is not None and not 0 < step <= high - low):
        raise UserError(f"{where}: low must be below high, and step above 0 and at most their difference")
    found = Parameter(key, (), low, high, log, step)
    if found.whole and not isinstance(step, int | None):
        raise UserError(f"{where}: step is {step}; between whole numbers it is one, or write low as {low}.0")
    return found


def _halving(path: str, content: object) -> Halving:
    if content is None:
        return Halving()
    if not isinstance(content, dict) or content.keys() != {"factor", "smallest"}:
        raise UserError(
            f"{path}: halving must have the keys factor and smallest, such as {{factor: 3, smallest: 0.11}}"
        )
    factor = Range(2, 100).check(f"{path}: halving: factor", content["factor"])
    share = Range(0, 1, whole=False, open_low=True).check(f"{path}: halving: smallest", content["smallest"])
    return Halving(factor, 1 + round(-math.log(share, factor)))
