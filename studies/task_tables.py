"""Tables of a grid of train_task.py: for each stream its settings against each other, beside published values.

results.csv a row per run; table.md, table.tex two matrices per stream (best of seeds and rates, median), with rows for
each network, and a line per cell.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.questions import EVALUATIONS
from records.configuration import value_at
from records.summary import figure, signed
from records.tables import METRICS
from records.task_summary import by_development
from studies.grid_file import RATE
from studies.planned import Grid, PlannedJob, PlannedRun
from studies.published import PublishedTable, published_for
from studies.store import provenance_notes, read_finished, write_results
from studies.tables import latex_text, markdown_table, markdown_text, readable
from utils.errors import UserError, one_line
from utils.files import write_bytes

COLUMNS = (
    "metric", "dev", "test", "test_stderr", "best_step", "best_dev", "best_test", "uninformed_loss", "examples",
    "steps", "parameters_total", "state_bytes", "trained_together", "total_seconds",
)  # fmt: skip
_ANSWERS = 12  # the most scores of an evaluation in a table
MARK, NONE = "†", "–"
READING = (
    "Best: the run, of all seeds and learning rates, that is best on the development examples after training; its "
    "score on the test examples, ± its standard error.",
    "Median: of the test scores of all finished runs.",
    f"In parentheses: published. {MARK}: ours is worse by more than the tolerance that is given beside the table.",
    "Minutes: of the whole computation of a cell, with its evaluation; with --jobs 2 or more, cells share the machine.",
)
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
    finished = read_finished(grid.runs)
    summaries = {run.name: summary for run, _, summary in finished}
    keys = list(dict.fromkeys([*chain(*chain(*grid.axes.values())), RATE]))
    asking = [run for run in grid.runs if run.name in summaries and run.config.evaluate]
    answers = {run.name: last_answers(run.directory) for run in asking}
    measured = {
        run.name: {key: _at(run, key) for key in keys} | answers.get(run.name, {})
        | {key: summary.get(key) for key in COLUMNS} | {"test": _test(summary)}
        for run in grid.runs for summary in (summaries.get(run.name),) if summary
    }  # fmt: skip
    asked = list(dict.fromkeys(chain(*answers.values())))
    write_results(grid.runs, store, failures, measured, [*keys, *COLUMNS, *asked])
    sheets = list[TextTable]()
    for stream in dict.fromkeys(run.config.stream for run in grid.runs):
        blocks = [_block(grid, name, summaries) for name in grid.axes if _stream_of(grid, name) == stream]
        sheets += [*_matrices(stream, blocks), _cells(stream, blocks), *_asked(stream, blocks, answers)]
    notes = [*READING, f"Options, unless a row has its own: {grid.options}."]
    notes += provenance_notes(finished)
    write_bytes(store / "table.md", _markdown(sheets, notes, command).encode())
    write_bytes(store / "table.tex", _latex(sheets, notes, command).encode())


@dataclass(frozen=True)
class _Block:
    """What stands in the tables of one network on one stream; an axis is no setting, one, or several."""

    jobs: Sequence[PlannedJob]
    summaries: Mapping[str, Mapping[str, Any]]
    published: PublishedTable | None
    columns: tuple[str, ...]
    rows: tuple[str, ...]

    @property
    def net(self) -> str:
        return self.jobs[0].runs[0].net

    @property
    def table(self) -> PublishedTable:
        return self.published or _RAW

    @property
    def metric(self) -> str:
        """Of the finished runs; UserError if it is not the published one."""
        found = {self.summaries[run.name]["metric"] for run in self._runs if run.name in self.summaries}
        metric = found.pop() if found else self.table.metric
        if self.published and metric != self.published.metric:
            stream = self.jobs[0].runs[0].config.stream
            raise UserError(f"published: {stream}: metric is {self.published.metric}; the runs have {metric}")
        return str(metric)

    def places(self, axis: tuple[str, ...]) -> list[tuple[Any, ...]]:
        """The values along an axis, in the order of the grid."""
        return list(dict.fromkeys(_along(run, axis) for run in self._runs))

    def scored(self, chosen: Callable[[PlannedRun], bool]) -> CellResult:
        """Of the chosen runs; the published value if they all stand at one place of the table."""
        found, table = [run for run in self._runs if chosen(run)], self.table
        values = {table.values.get(_at(run, table.rows), {}).get(_at(run, table.columns)) for run in found}
        one = values.pop() if len(values) == 1 else None
        return CellResult([(r, self.summaries[r.name]) for r in found if r.name in self.summaries], one, table)

    def at(self, row: tuple[Any, ...], column: tuple[Any, ...]) -> CellResult:
        """The runs at one place of the matrix."""
        return self.scored(lambda run: (_along(run, self.rows), _along(run, self.columns)) == (row, column))

    @property
    def _runs(self) -> list[PlannedRun]:
        return [run for job in self.jobs for run in job.runs]


def _stream_of(grid: Grid, name: str) -> str:
    return next(run.config.stream for run in grid.runs if run.table == name)


def _block(grid: Grid, name: str, summaries: Mapping[str, Mapping[str, Any]]) -> _Block:
    jobs = [job for job in grid.jobs if job.runs[0].table == name]
    published = published_for(grid.published, jobs[0].runs[0])
    axes: Sequence[tuple[str, ...]] = grid.axes[name]
    columns, rows = (*axes, (), ())[:2]
    if published is not None:
        keys = published.columns, published.rows
        columns, rows = (next((axis for axis in axes if key in axis), (key,)) for key in keys)
    return _Block(jobs, summaries, published, columns, rows)


def _matrices(stream: str, blocks: Sequence[_Block]) -> list[TextTable]:
    """Best and median, with a block of rows for each network; networks with other columns have tables of their own."""
    alike: dict[object, list[_Block]] = {}
    for block in blocks:
        alike.setdefault((block.columns, block.table.scale, block.metric), []).append(block)
    return [sheet for own in alike.values() for sheet in _matrix(stream, own, len(alike) > 1)]


def _matrix(stream: str, blocks: Sequence[_Block], named: bool) -> list[TextTable]:
    first = blocks[0]
    rates = max(len({run.config.hp.lr for run in job.runs}) for block in blocks for job in block.jobs) > 1
    sources = {f"Published: {of.source}. Tolerance {of.tolerance:g}." for block in blocks if (of := block.published)}
    title = f"{', '.join([stream, *(block.net for block in blocks if named)])}: test {first.metric}"
    title += f" × {first.table.scale:g}" if first.table.scale != 1 else ""
    rows = [(block, row) for block in blocks for row in block.places(block.rows)]
    settings = dict.fromkeys(_short(axis) for block in blocks for axis in (block.rows,) if axis)
    corner = " / ".join([" or ".join(settings), *([_short(first.columns)] if first.columns else [])]) or stream
    left = [[corner.removeprefix(" / "), *(_shown(row) for _, row in rows)]]
    if len(blocks) > 1:  # each network is named in its first line
        left.insert(0, ["network", *(block.net if row == block.places(block.rows)[0] else "" for block, row in rows)])
    across = dict.fromkeys(place for block in blocks for place in block.places(block.columns))
    found = []
    for kind, show, notes in (("best", CellResult.show_best, sorted(sources)), ("median", CellResult.show_median, [])):
        cells = [[_shown(c), *(show(block.at(row, c)) for block, row in rows)] for c in across]
        found.append(TextTable(f"{title}, {kind} of the seeds{' and rates' * rates}", [*left, *cells], notes))
    return found


def _cells(stream: str, blocks: Sequence[_Block]) -> TextTable:
    """A line for each cell; columns in which nothing is known are left out."""
    lines = [{"network": block.net, **_line(job, block)} for block in blocks for job in block.jobs]
    published = any(block.published for block in blocks)
    optional = {"network": len(blocks) > 1, "published": published, "difference": published,
                "best rate": any(line["best rate"] != NONE for line in lines),
                "state bytes": any(line["state bytes"] != NONE for line in lines)}  # fmt: skip
    names = [name for name in lines[0] if optional.get(name, True)]
    return TextTable(f"{stream}: cells", [[name, *(line[name] for line in lines)] for name in names])


def last_answers(directory: Path) -> dict[str, float]:
    """What the evaluations of a run have found last, by "evaluation: score"; of each the first scores, without "@"."""
    columns = ["step", "scenario", "metric", "value"]
    found = pd.read_csv(directory / METRICS, keep_default_na=False, usecols=columns)
    found = found[found.scenario.isin(EVALUATIONS) & ~found.metric.str.contains("@")]
    found = found[found.step == found.groupby("scenario").step.transform("max")]
    found = found.groupby("scenario", sort=False).head(_ANSWERS)
    return {f"{row.scenario}: {row.metric}": float(row.value) for row in found.itertuples()}


def _asked(stream: str, blocks: Sequence[_Block], answers: Mapping[str, Mapping[str, float]]) -> list[TextTable]:
    """What the evaluations found in the best run of each cell, a line each; nothing where nothing was asked."""
    cells = [(block, job, block.scored(job.runs.__contains__)) for block in blocks for job in block.jobs]
    best = [next((run.name for run, summary in cell.runs if summary is cell.best), "") for _, _, cell in cells]
    names = list(dict.fromkeys(chain(*(answers.get(run, {}) for run in best))))
    if not names:
        return []
    columns = [["network", *(block.net for block, _, _ in cells)], ["cell", *(job.label for _, job, _ in cells)]]
    for name in names:
        values = [answers.get(run, {}).get(name) for run in best]
        columns.append([name, *(NONE if value is None else f"{value:.3f}" for value in values)])
    return [TextTable(f"{stream}: evaluations of the best run of each cell", columns)]


def _at(run: PlannedRun, key: str) -> Any:
    """The value of a setting, "" if the run has no such setting."""
    try:
        return value_at(run.config, key)
    except AttributeError:
        return ""


def _along(run: PlannedRun, axis: Sequence[str]) -> tuple[Any, ...]:
    return tuple(_at(run, key) for key in axis)


def _short(axis: Sequence[str]) -> str:
    return ", ".join(key.rpartition(".")[2] for key in axis)


def _shown(values: Sequence[object]) -> str:
    return ", ".join(map(_short_of, values)) or "all"


def _short_of(value: object) -> str:
    """A value of a setting; of settings themselves, such as those of a mixer, those that are not the usual ones."""
    if isinstance(value, tuple):
        return " + ".join(map(_short_of, value))
    if not is_dataclass(value):
        return str(value)
    own = {
        field.name: getattr(value, field.name) for field in fields(value) if getattr(value, field.name) != field.default
    }
    return " ".join(str(each) if number == 0 else f"{name} {each}" for number, (name, each) in enumerate(own.items()))


def _line(job: PlannedJob, block: _Block) -> dict[str, str]:
    """A cell by title of the column."""
    cell = block.scored(lambda run: run in job.runs)
    published = NONE if cell.published is None else f"{cell.published:g}"
    difference = NONE if cell.difference is None else signed(cell.difference, 2 if cell.table.scale >= 100 else 4)
    ours = CellResult(cell.runs, None, cell.table).show_best() + f" {MARK}" * cell.worse
    best, several = cell.best or {}, len({run.config.hp.lr for run in job.runs}) > 1
    rate = next((run.config.hp.lr for run, summary in cell.runs if summary is cell.best), None)
    counts = sorted({summary["examples"] for _, summary in cell.runs})
    examples = " to ".join(readable(count) for count in counts[:: max(1, len(counts) - 1)]) or NONE
    return {
        "cell": job.label, "published": published, "ours": ours, "difference": difference,
        "best rate": f"{rate:.3g}" if several and rate is not None else NONE,
        "parameters": f"{best['parameters_total']:,}" if best else NONE,
        "state bytes": f"{size:,}" if (size := best.get("state_bytes")) is not None else NONE,
        "runs": str(len(cell.runs)), "examples": examples,
        "minutes": readable(cell.minutes) if cell.runs else NONE,
    }  # fmt: skip


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
