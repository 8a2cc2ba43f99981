"""Methods against each other over seeds: a table for the screen (Markdown) and one for a paper (LaTeX)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets.objectives import ACCURACY
from records.summary import key_of
from studies.statistics import level_with_best, mean_interval

Values = Mapping[str, Any]  # figures by definition id, as in summary.json; None where not defined


@dataclass(frozen=True)
class ComparisonTable:
    """What was measured on one stream with one network."""

    title: str
    seeds: int  # that were asked for
    rows: Mapping[str, Mapping[int, Values]]  # label -> seed -> values of the finished run

    @property
    def first(self) -> Values:
        """The values of one of the runs, empty if none is finished: main metric and its direction are those of all."""
        return next((values for runs in self.rows.values() for values in runs.values()), {})

    @property
    def metrics(self) -> Sequence[Column]:
        """METRICS; if the main metric is not the accuracy, what is named after the accuracy is named after it."""
        main = self.first.get("metric", ACCURACY.name)
        return [
            column if (key := key_of(column.key, main)) == column.key
            else Column(key, column.title.replace("accuracy", main), readable, self.first["higher_is_better"])
            for column in METRICS
        ]  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A key of summary.json and how it is shown."""

    key: str
    title: str
    show: Callable[[float], str]
    higher_is_better: bool = True


@dataclass(frozen=True)
class Cell:
    """Plain text, and whether it is marked."""

    text: str
    bold: bool = False


def readable(number: float) -> str:
    """Three digits and a unit: 1162400 -> 1.16 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def _share(value: float) -> str:
    return f"{value:.4f}"


def _change(value: float) -> str:
    return f"{round(value, 4) + 0.0:+.4f}"  # + 0.0: no minus before a zero


METRICS = (
    Column("avg_acc_final", "final accuracy", _share),
    Column("forgetting_chaudhry", "forgetting", _change, higher_is_better=False),
    Column("bwt", "backward transfer", _change),
    Column("learning_acc", "learning accuracy", _share),
    Column("fwt_isolated", "forward transfer", _change),
    Column("gain_isolated", "gain over isolated", _change),
    Column("class_incremental_acc", "class-incremental accuracy", _share),
)
LEDGER = (
    Column("stored_examples", "stored examples", readable),
    Column("stored_bytes", "stored MB", lambda count: readable(count / 1e6)),
    Column("parameters_total", "parameters stored", readable),
    Column("parameters_per_prediction", "parameters per prediction", readable),
    Column("sample_gradients", "training sample-gradients", readable),
    Column("train_seconds", "seconds of training", lambda seconds: f"{seconds:,.1f}"),
)
READING = (
    "±: half-width of the 95 % t-interval of the mean over seeds; one seed has none.",
    "Bold: the best mean of a column and all that do not differ from it significantly (paired two-sided t-test over "
    "the seeds both have, 5 %, not corrected for multiple comparisons); with fewer than two seeds nothing is bold. "
    "Lower is better for forgetting, higher for all others.",
    "n/a: not defined for the method, or no finished run; forward transfer and gain need isolated runs of the same "
    "stream, network, seed, samples and augmentation. (n = k): defined for only k of the finished seeds.",
    "What was stored, computed and taken in time is a mean over seeds; with --jobs 2 or more, runs share the machine "
    "while they are timed.",
)


def metric_cells(column: Column, table: ComparisonTable) -> list[Cell]:
    """Mean ± interval for each row, the best and what is level with it marked."""
    defined = {
        label: {seed: value for seed, values in runs.items() if (value := values[column.key]) is not None}
        for label, runs in table.rows.items()
    }
    marked = level_with_best(defined, column.higher_is_better)
    cells = []
    for label, values in defined.items():
        mean, half = mean_interval(list(values.values()))
        text = "n/a" if math.isnan(mean) else column.show(mean)
        if not math.isnan(half):
            text += f" ± {half:.4f}"
        if 0 < len(values) < len(table.rows[label]):
            text += f" (n = {len(values)})"
        cells.append(Cell(text, label in marked))
    return cells


def ledger_cells(column: Column, table: ComparisonTable) -> list[Cell]:
    """The mean for each row."""
    means = []
    for runs in table.rows.values():
        values = [value for found in runs.values() if (value := found[column.key]) is not None]
        means.append(mean_interval(values)[0])
    return [Cell("n/a" if math.isnan(mean) else column.show(mean)) for mean in means]


def seeds_note(table: ComparisonTable) -> str:
    """Over how many seeds the rows are."""
    fewer = [f"{label} {len(runs)}" for label, runs in table.rows.items() if len(runs) < table.seeds]
    note = f"{table.seeds} seed{'s' * (table.seeds != 1)}"
    if not table.first.get("higher_is_better", True):
        note += f"; {table.first['metric']}: lower is better, transfer and gain are positive where it has fallen"
    return f"{note}; fewer finished: {', '.join(fewer)}." if fewer else f"{note}."


def markdown(tables: Sequence[ComparisonTable], notes: Sequence[str], command: str) -> str:
    """All tables, a heading each, and below them how to read them."""
    parts = []
    for table in tables:
        columns = [["method", *map(_markdown, table.rows)]]
        for fill, group in ((metric_cells, table.metrics), (ledger_cells, LEDGER)):
            for column in group:
                cells = [f"**{cell.text}**" if cell.bold else cell.text for cell in fill(column, table)]
                columns.append([f"{column.title} `{column.key}`", *cells])
        parts += [f"## {_markdown(table.title)}", _markdown_table(columns), _markdown(seeds_note(table))]
    parts += ["\n".join(f"- {note}" for note in [*READING, *map(_markdown, notes), f"`{command}`"])]
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in zip(*columns, strict=True):
        padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        lines.append(f"| {' | '.join(padded)} |")
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], f"| {' | '.join(rule)} |", *lines[1:]])


def latex(tables: Sequence[ComparisonTable], notes: Sequence[str], command: str) -> str:
    r"""A table environment for each, metrics above costs; needs \usepackage{booktabs} and nothing else."""
    parts = [r"% \usepackage{booktabs}"]
    for table in tables:
        parts += [r"\begin{table}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
        parts.append(_tabular(table.metrics, [metric_cells(column, table) for column in table.metrics], table))
        parts.append(r"\par\medskip")
        parts.append(_tabular(LEDGER, [ledger_cells(column, table) for column in LEDGER], table))
        parts += [rf"\caption{{{_latex(f'{table.title}: {seeds_note(table)}')}}}", r"\end{table}"]
    parts += [r"{\footnotesize\noindent", *map(_latex, [*READING, *notes]), rf"\texttt{{{_latex(command)}}}\par}}"]
    return "\n".join(parts) + "\n"


def _tabular(columns: Sequence[Column], cells: Sequence[Sequence[Cell]], table: ComparisonTable) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule"]
    lines.append(" & ".join(["method", *(_latex(column.title) for column in columns)]) + r" \\")
    keys = (rf"{{\tiny\texttt{{{_latex(column.key)}}}}}" for column in columns)
    lines += [" & ".join(["", *keys]) + r" \\", r"\midrule"]
    for label, row in zip(table.rows, zip(*cells, strict=True), strict=True):
        lines.append(" & ".join([_latex(label), *map(_latex_cell, row)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_cell(cell: Cell) -> str:
    text = _latex(cell.text).replace("-", "$-$")
    return rf"\textbf{{{text}}}" if cell.bold else text


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*`<])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "[": "{[}", "*": "{*}",  # after the \\ of a row the last two would be taken for its arguments
    **{character: "\\" + character for character in "{}&%$#_"},
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
