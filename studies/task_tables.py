"""Tables of a grid of train_task.py: for each stream its settings against each other, beside published values.

results.csv a row per run; table.md, table.tex two matrices per stream (best of the seeds, median), and a line per cell.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from records.configuration import value_at
from records.summary import figure, signed
from records.task_summary import by_development
from studies.planned import Grid, PlannedRun
from studies.published import PublishedTable
from studies.store import provenance_notes, write_results
from studies.tables import latex_text, markdown_table, markdown_text, readable
from utils.errors import UserError, one_line
from utils.files import write_bytes

COLUMNS = (
    "metric", "dev", "test", "test_stderr", "best_step", "best_dev", "best_test", "uninformed_loss", "examples",
    "steps", "parameters_total", "trained_together", "total_seconds",
)  # fmt: skip
MARK, NONE = "†", "–"
READING = (
    "Best: the run that is best on the development examples after training; its score on the test examples, ± its "
    "standard error.",
    "Median: of the test scores of all finished runs.",
    f"In parentheses: published. {MARK}: ours is worse by more than the tolerance that is given beside the table.",
    "Minutes: of the whole computation of a cell, with its evaluation; with --jobs 2 or more, cells share the machine.",
)
_LONG = ("cell", "published", "ours", "difference", "seeds", "examples", "minutes")
_RAW = PublishedTable(source="", rows="", columns="", values={}, scale=1.0)  # of a stream without published values


@dataclass(frozen=True)
class CellResult:
    """The finished runs of one cell or of several."""

    runs: Sequence[tuple[PlannedRun, Mapping[str, Any]]]
    published: float | None
    table: PublishedTable

    @cached_property
    def best(self) -> Mapping[str, Any] | None:
        """The summary of the best run; None without runs or without development examples."""
        found = [summary for _, summary in self.runs if summary["dev"] is not None]
        return max(found, key=by_development) if found else None

    @property
    def ours(self) -> float | None:
        """The test score of the best run, in the unit of the published values."""
        return None if self.best is None else self.table.scale * _test(self.best)

    @property
    def difference(self) -> float | None:
        """Ours - published."""
        return None if self.ours is None or self.published is None else self.ours - self.published

    @property
    def worse(self) -> bool:
        """Whether ours is worse than what is published by more than the tolerance."""
        if self.difference is None or self.best is None:
            return False
        return (-1 if self.best["higher_is_better"] else 1) * self.difference > self.table.tolerance + 1e-9

    def show_best(self) -> str:
        """Ours ± its standard error, the mark, and the published value in parentheses."""
        if self.ours is None or self.best is None:
            ours = NONE
        else:
            error = self.best["test_stderr"]
            ours = self.number(self.ours) + ("" if error is None else f" ± {self.number(self.table.scale * error)}")
        ours += f" {MARK}" * self.worse
        return ours if self.published is None else f"{ours} ({self.published:g})"

    def show_median(self) -> str:
        """The median over the runs."""
        values = [self.table.scale * _test(summary) for _, summary in self.runs]
        return self.number(statistics.median(values)) if values else NONE

    def number(self, value: float) -> str:
        """Two digits after the point, or four of small numbers."""
        return f"{value:.2f}" if self.table.scale >= 100 else f"{value:.4f}"

    @property
    def minutes(self) -> float:
        """Of all runs; those that were trained together share their time."""
        return sum(summary["total_seconds"] / summary["trained_together"] for _, summary in self.runs) / 60


def _test(summary: Mapping[str, Any]) -> float:
    return float(figure(summary, "avg_acc_final"))


@dataclass(frozen=True)
class TextTable:
    """A table: columns, each a title and its cells."""

    title: str
    columns: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def write_task_tables(grid: Grid, store: Path, failures: Mapping[str, str], command: str) -> None:
    """Write results.csv, table.md and table.tex."""
    summaries = {run.name: summary for run in grid.runs if (summary := run.summary)}
    keys = list(dict.fromkeys(chain(*grid.axes.values())))
    measured = {
        run.name: {key: _at(run, key) for key in keys}
        | {key: summary.get(key) for key in COLUMNS} | {"test": _test(summary)}
        for run in grid.runs for summary in (summaries.get(run.name),) if summary
    }  # fmt: skip
    write_results(grid.runs, store, failures, measured, [*keys, *COLUMNS])
    sheets = [sheet for stream in grid.axes for sheet in _of_stream(grid, stream, summaries)]
    notes = [*READING, f"Options, unless a row has its own: {grid.options}."]
    notes += provenance_notes([run for run in grid.runs if run.name in summaries])
    write_bytes(store / "table.md", _markdown(sheets, notes, command).encode())
    write_bytes(store / "table.tex", _latex(sheets, notes, command).encode())


def _of_stream(grid: Grid, stream: str, summaries: Mapping[str, Mapping[str, Any]]) -> list[TextTable]:
    runs = [run for run in grid.runs if run.config.stream == stream]
    table = grid.published.get(stream, _RAW)
    columns, rows = ([*grid.axes[stream], "", ""])[:2]
    if stream in grid.published:
        columns, rows = table.columns, table.rows
    metric = next((summaries[run.name]["metric"] for run in runs if run.name in summaries), table.metric)
    if stream in grid.published and metric != table.metric:
        raise UserError(f"published: {stream}: metric is {table.metric}; the runs have {metric}")

    def scored(chosen: Callable[[PlannedRun], bool]) -> CellResult:
        """Of the chosen runs; the published value if they all stand at one place of the table."""
        found = [run for run in runs if chosen(run)]
        values = {table.values.get(_at(run, rows), {}).get(_at(run, columns)) for run in found}
        one = values.pop() if len(values) == 1 else None
        return CellResult([(run, summaries[run.name]) for run in found if run.name in summaries], one, table)

    across = list(dict.fromkeys(_at(run, columns) for run in runs))
    down = list(dict.fromkeys(_at(run, rows) for run in runs))
    places = {(r, c): scored(lambda run, r=r, c=c: (_at(run, rows), _at(run, columns)) == (r, c))  # type: ignore[misc]
              for r in down for c in across}  # fmt: skip
    scale = f" × {table.scale:g}" if table.scale != 1 else ""
    notes = [f"Published: {table.source}. Tolerance {table.tolerance:g}."] if stream in grid.published else []
    found = []
    for kind, show, more in (("best", CellResult.show_best, notes), ("median", CellResult.show_median, [])):
        corner = [" / ".join(_short(key) for key in (rows, columns) if key) or stream, *map(_shown, down)]
        cells = [[_shown(c), *(show(places[r, c]) for r in down)] for c in across]
        found.append(TextTable(f"{stream}: test {metric}{scale}, {kind} of the seeds", [corner, *cells], more))
    labels = list(dict.fromkeys((run.net, run.label) for run in runs))
    lines = [_line(label, scored(lambda run, n=net, t=label: (run.net, run.label) == (n, t)))  # type: ignore[misc]
             for net, label in labels]  # fmt: skip
    return [*found, TextTable(f"{stream}: cells", list(zip(_LONG, *lines, strict=True)))]


def _at(run: PlannedRun, key: str) -> Any:
    """The value of a setting, "" if the run has no such setting."""
    try:
        return value_at(run.config, key)
    except AttributeError:
        return ""


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _shown(value: object) -> str:
    return "all" if value == "" else str(value)


def _line(label: str, cell: CellResult) -> list[str]:
    published = NONE if cell.published is None else f"{cell.published:g}"
    difference = NONE if cell.difference is None else signed(cell.difference, 2 if cell.table.scale >= 100 else 4)
    ours = CellResult(cell.runs, None, cell.table).show_best() + f" {MARK}" * cell.worse
    counts = sorted({summary["examples"] for _, summary in cell.runs})
    examples = " to ".join(readable(count) for count in counts[:: max(1, len(counts) - 1)]) or NONE
    return [
        label, published, ours, difference, str(len(cell.runs)), examples,
        readable(cell.minutes) if cell.runs else NONE,
    ]  # fmt: skip


def _markdown(sheets: Sequence[TextTable], notes: Sequence[str], command: str) -> str:
    parts = []
    for sheet in sheets:
        columns = [[markdown_text(cell) for cell in column] for column in sheet.columns]
        parts += [f"## {markdown_text(sheet.title)}", markdown_table(columns), *map(markdown_text, sheet.notes)]
    parts.append("\n".join(f"- {note}" for note in [*map(markdown_text, notes), f"`{one_line(command)}`"]))
    return "\n\n".join(parts) + "\n"


def _latex(sheets: Sequence[TextTable], notes: Sequence[str], command: str) -> str:
    r"""A table environment for each sheet; needs only \usepackage{booktabs}."""
    parts = [r"% \usepackage{booktabs}"]
    for sheet in sheets:
        header, *body = (" & ".join(map(latex_text, row)) + r" \\" for row in zip(*sheet.columns, strict=True))
        caption = latex_text(". ".join([sheet.title, *sheet.notes]))
        parts += [
            r"\begin{table}", r"\centering\scriptsize", rf"\begin{{tabular}}{{l{'r' * (len(sheet.columns) - 1)}}}",
            r"\toprule", header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
            rf"\caption{{{caption}}}", r"\end{table}",
        ]  # fmt: skip
    parts += [r"{\footnotesize\noindent", *map(latex_text, notes), rf"\texttt{{{latex_text(command)}}}\par}}"]
    return "\n".join(parts) + "\n"
