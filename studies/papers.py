"""Published tables: config/papers/*.yaml, read and planned as a grid whose rows carry published values.

A file reads like the table of the paper; docs/papers.md explains every key:

    title: Split-MNIST in five tasks
    source: Author & Author 2020, arXiv 2001.00001, table 1
    setup: One epoch of plain SGD ...
    data_config: config/dataset/split_mnist.yaml    # options and dotted settings that all rows share, as in a grid
    hp_config: config/hyperparam/mlp.yaml
    seeds: 3
    rows:
      - {label: SGD, method: finetune, hp.lr: 0.2, published: 93.1, tolerance: 2}
      - {label: ER, method: er, memory: 200, published: 97.9, spread: 0.4, tolerance: 1}
    smoke: {samples: 4, epochs: 1}                  # win over all in a quick version with the first seed

Options of a row win over those that all share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from studies.grid import OPTIONS, MethodEntry, Setup, method_entry, planned, replaced, used_by
from studies.grid_file import FILES, PROJECT, listed, read_seeds
from studies.planned import SMOKE, Grid, PlannedRun
from studies.tables import METRICS
from utils.errors import UserError, unknown
from utils.settings import Range, declarations, read, setting
from utils.yaml_files import load_yaml

FOLDER = PROJECT / "config" / "papers"
FIGURES = (*(column.key for column in METRICS), "avg_incremental_acc", "worst_task_acc")
T = TypeVar("T")


@dataclass(frozen=True)
class Heading:
    """What stands above a published table."""

    title: str = setting(str, "what the table shows")
    source: str = setting(str, "the paper, the number of its table, the arXiv id")
    setup: str = setting(str, "network, recipe and protocol in words")


@dataclass(frozen=True)
class Claim:
    """What the paper says in one row, in per cent as it is printed there."""

    published: float = setting(Range(-100, 100, whole=False), "the value")
    tolerance: float = setting(Range(0, 100, whole=False), "points that our mean over seeds may differ")
    spread: float | None = setting(Range(0, 100, whole=False), "what is printed behind ±", default=None)
    metric: str = setting(FIGURES, "the figure of results.csv that is compared", default="avg_acc_final")
    note: str | None = setting(str, "what a reader must know about this row", default=None)


@dataclass(frozen=True)
class Row:
    """A row of a published table, and our runs, one for each seed."""

    label: str
    claim: Claim
    runs: tuple[PlannedRun, ...]


@dataclass(frozen=True)
class Paper:
    """A published table and the runs that measure it; `smoke` is what a quick version changes, None in the real one."""

    heading: Heading
    rows: tuple[Row, ...]
    grid: Grid
    smoke: Mapping[str, Any] | None


def paper_path(name: str) -> str:
    """The file of a published table from its name in config/papers, or from its own path."""
    if Path(name).suffix in (".yaml", ".yml") or len(Path(name).parts) > 1:
        return name
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if name not in known:
        raise UserError(f"--paper: {unknown('table', name, known)}")
    return str(FOLDER / f"{name}.yaml")


def load_paper(path: str, store: Path, smoke: bool = False, data_dir: str | None = None) -> Paper:
    """Read a published table and plan its runs, whose directories are in `store`; UserError names file and key."""
    content = load_yaml(path)
    heading = _read(Heading, path, content)
    known = (*declarations(Heading), *FILES, "seeds", "rows", "smoke")
    common = {key: OPTIONS.check(path, key, value, known) for key, value in content.items() if key not in known}
    shared = {key: OPTIONS.check(path, key, content[key], (), FILES) for key in FILES if key in content}
    quick = _smoke(path, content) if smoke else None
    above = {**(quick or {}), **({"data_dir": data_dir} if data_dir else {})}
    setups, claims = list[Setup](), dict[str, Claim]()
    for given in listed(path, content, "rows"):
        entry, claim = _row(f"{path}: rows", given)
        label = f"{entry.label}{SMOKE}" if smoke else entry.label  # it is seen in names of runs and in every table
        if label in claims:
            raise UserError(f"{path}: rows: the label {entry.label!r} is given twice; give each row its own")
        claims[label] = claim
        options = replaced({**shared, **entry.options}, used_by(entry.method, above))
        for key in FILES:
            if key not in options:
                raise UserError(f"{path}: rows: {entry.label}: key {key!r} is missing, here and above the rows")
        stream, hyper = (options.pop(key) for key in FILES)
        setups.append(Setup(stream, hyper, entry._replace(label=label, options=options)))
    seeds = read_seeds(path, content)
    grid = planned(path, "rows", store, setups, common, seeds[:1] if smoke else seeds)
    rows = (Row(label, claim, grid.runs[place :: len(setups)]) for place, (label, claim) in enumerate(claims.items()))
    return Paper(heading, tuple(rows), grid, quick)


def _row(where: str, given: object) -> tuple[MethodEntry, Claim]:
    if not isinstance(given, dict):
        raise UserError(f"{where}: {given!r} is no mapping such as {{method: zoo, published: 99.9, tolerance: 0.1}}")
    own = declarations(Claim)
    entry = method_entry(where, {key: value for key, value in given.items() if key not in own}, FILES)
    return entry, _read(Claim, f"{where}: {entry.label}", given)


def _smoke(path: str, content: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(content.get("smoke"), dict) or not content["smoke"]:
        raise UserError(f"{path}: smoke must map options to values of a quick version, such as smoke: {{epochs: 1}}")
    return {key: OPTIONS.check(f"{path}: smoke", key, value, (), FILES) for key, value in content["smoke"].items()}


def _read(kind: type[T], where: str, content: Mapping[str, Any]) -> T:
    """Settings of this kind from those keys of the content that belong to it."""
    return read(kind, where, {key: content[key] for key in declarations(kind) if key in content})
