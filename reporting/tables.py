"""The tables that report.py prints, for papers and for other programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from reporting.groups import Comparison
from studies.statistics import mean_interval
from studies.tables import LEDGER, ComparisonTable, latex, markdown
from utils.errors import UserError
from utils.files import csv_bytes


def _tables(comparisons: Sequence[Comparison]) -> list[ComparisonTable]:
    found = [table for comparison in comparisons if (table := comparison.table()).rows]
    if not found:
        raise UserError("none of the runs is finished, so there is no table yet; --format html shows how far they are")
    return found


def _csv(comparisons: Sequence[Comparison], _: str) -> str:
    """A row for each group: mean over seeds, half-width of its 95 % t-interval and n of each figure."""
    columns = list(dict.fromkeys(column for table in _tables(comparisons) for column in (*table.metrics, *LEDGER)))
    names = [f"{column.key}{part}" for column in columns for part in ("", "_half_width", "_n")]
    rows: list[list[object]] = [["comparison", "method", *names]]
    for table in _tables(comparisons):
        for label, runs in table.rows.items():
            row: list[object] = [table.title, label]
            for column in columns:
                values = [value for run in runs.values() if (value := run.get(column.key)) is not None]
                mean, half = mean_interval(values)
                row += ["" if math.isnan(mean) else mean, "" if math.isnan(half) else half, len(values)]
            rows.append(row)
    return csv_bytes(rows).decode()


WRITERS: Mapping[str, Callable[[Sequence[Comparison], str], str]] = {
    "md": lambda comparisons, command: markdown(_tables(comparisons), [], command),
    "tex": lambda comparisons, command: latex(_tables(comparisons), [], command),
    "csv": _csv,
}
