"""Published values for the networks of a grid of train_task.py: a table for each stream, or for "stream, network".

published:
  2nd_argmax: {source: where it is printed, rows: net.hidden_size, columns: data.length, metric: accuracy,
               scale: 100, values: {16: {2: 100.0, 10: 94.8}}}
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from studies.planned import PlannedRun
from utils.errors import UserError, unknown
from utils.settings import Range, read, setting

_NUMBER = Range(-1e12, 1e12, whole=False)


class Values:
    """Accepts a mapping from values of the rows to mappings from values of the columns to numbers."""

    @staticmethod
    def read(where: str, value: object) -> dict[Any, dict[Any, float]]:
        """The checked values; a UserError begins with `where`."""
        if not isinstance(value, Mapping) or not value or not all(isinstance(row, Mapping) for row in value.values()):
            raise UserError(f"{where} is {value!s:.60}; it must map rows to columns to numbers")
        return {
            row: {column: _NUMBER.check(f"{where}: {row}: {column}", number) for column, number in columns.items()}
            for row, columns in value.items()
        }  # fmt: skip


@dataclass(frozen=True)
class PublishedTable:
    """A published table."""

    source: str = setting(str, "where it is printed, and how it was made")
    rows: str = setting(str, "the setting that differs between rows, by its dotted key")
    columns: str = setting(str, "the setting that differs between columns")
    values: Mapping[Any, Mapping[Any, float]] = setting(Values, "the values, as they are printed")
    metric: str = setting(str, "the main metric of the stream", default="accuracy")
    scale: float = setting(Range(0, 1e9, whole=False, open_low=True), "factor on ours", default=1.0)
    tolerance: float = setting(
        Range(0, 1e9, whole=False), "ours is marked where it is worse by more than this, in printed units", default=0.5
    )


def published_for(tables: Mapping[str, PublishedTable], run: PlannedRun) -> PublishedTable | None:
    """The table of the stream and the network of a run, else that of its stream; None if there is none."""
    return tables.get(run.table, tables.get(run.config.stream))


def read_published(path: str, content: object, streams: Collection[str]) -> dict[str, PublishedTable]:
    """The tables of the key `published` by their names, each among `streams`; UserError names file and key."""
    where = f"{path}: published"
    if not isinstance(content, Mapping):
        raise UserError(f"{where} must map names of streams to tables")
    for name, table in content.items():
        if name not in streams:
            raise UserError(f"{where}: {unknown('stream', name, streams)}")
        if not isinstance(table, Mapping):
            raise UserError(f"{where}: {name} must be a table with the keys source, rows, columns and values")
    return {name: read(PublishedTable, f"{where}: {name}", table) for name, table in content.items()}
