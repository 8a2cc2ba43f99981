"""Tables that compare methods over seeds, in Markdown, LaTeX and CSV."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets.objectives import ACCURACY
from records.summary import key_of, signed
from studies.replicates import Replicate
from studies.statistics import level_with_best, mean_interval
from utils.errors import one_line
from utils.files import csv_bytes

_NUMBER = re.compile(r"[*†]*[-+±]?\d|n/a|$")  # how a cell begins that is a number, or has none

Values = Mapping[str, Any]  # figures by definition id, as in summary.json; None where undefined


@dataclass(frozen=True)
class Column:
    """A column of a table: a key of summary.json, its title and its number format."""

    key: str
    title: str
    show: Callable[[float], str]
    higher_is_better: bool = True


@dataclass(frozen=True)
class Cell:
    """Plain text, bold or not."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class ComparisonTable:
    """The results of several methods on one stream with one network."""

    title: str
    seeds: int  # that were asked for
    rows: Mapping[str, Mapping[Replicate, Values]]  # label of a method -> seed and order -> figures of the finished run
    orders: int = 1  # of tasks, each with every seed

    @property
    def first(self) -> Values:
        """The figures of one run, empty if none is finished; the main metric and its direction hold for all runs."""
        return next((values for runs in self.rows.values() for values in runs.values()), {})

    @property
    def metrics(self) -> Sequence[Column]:
        """METRICS; if the main metric is not the accuracy, its name replaces "accuracy" in keys and titles."""
        main = self.first.get("metric", ACCURACY.name)
        keys = [key_of(column.key, main) for column in METRICS]
        return [
            column if key == column.key
            else Column(key, column.title.replace("accuracy", main), readable, self.first["higher_is_better"])
            for key, column in zip(keys, METRICS, strict=True)
        ]  # fmt: skip


def readable(number: float) -> str:
    """Three digits and a unit: 1162400 -> 1.16 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def share(value: float) -> str:
    """Four digits, without a minus before a zero."""
    return f"{round(value, 4) + 0.0:.4f}"


METRICS = (
    Column("avg_acc_final", "final accuracy", share),
    Column("forgetting_chaudhry", "forgetting", signed, higher_is_better=False),
    Column("bwt", "backward transfer", signed),
    Column("learning_acc", "learning accuracy", share),
    Column("fwt_isolated", "forward transfer", signed),
    Column("gain_isolated", "gain over isolated", signed),
    Column("routed_class_acc", "accuracy, task not told (task-trained heads)", share),
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
    "±: half-width of the 95 % t-interval of the mean over seeds, and task orders if several; one run has none.",
    "Bold: the best mean and every mean that a paired two-sided t-test does not separate from it (over the seeds both "
    "have, 5 %, not corrected for multiple comparisons); nothing in a column where the test separates none. Lower is "
    "better for forgetting, higher for all others.",
    "n/a: not defined for the method, or no finished run; forward transfer and gain need isolated runs with the same "
    "data, network, recipe and seed. (n = k): defined for only k of the finished seeds.",
    "Storage, computation and time are means over seeds; with --jobs 2 or more, runs share the machine while they are "
    "timed.",
)


def cells(column: Column, table: ComparisonTable) -> list[Cell]:
    """A cell for each row of the table; metrics, unlike those of LEDGER, have intervals, and bold as READING says."""
    defined = {
        label: {seed: value for seed, values in runs.items() if (value := values[column.key]) is not None}
        for label, runs in table.rows.items()
    }
    bold, found = set() if column in LEDGER else level_with_best(defined, column.higher_is_better), []
    for label, values in defined.items():
        mean, half = mean_interval(list(values.values()))
        text = "n/a" if math.isnan(mean) else column.show(mean)
        if column not in LEDGER:
            text += "" if math.isnan(half) else f" ± {half:.4f}"
            text += f" (n = {len(values)})" if 0 < len(values) < len(table.rows[label]) else ""
        found.append(Cell(text, label in bold))
    return found


def seeds_note(table: ComparisonTable) -> str:
    """A sentence on the number of seeds, and on the direction of a main metric that should be low."""
    asked = table.seeds * table.orders
    fewer = [f"{label} {len(runs)}" for label, runs in table.rows.items() if len(runs) < asked]
    note = f"{table.seeds} seed{'s' * (table.seeds != 1)}"
    note += f" × {table.orders} task orders, {asked} runs taken as independent" if table.orders > 1 else ""
    if not table.first.get("higher_is_better", True):
        note += f"; {table.first['metric']}: lower is better, transfer and gain are positive where it has fallen"
    return f"{note}; fewer finished: {', '.join(fewer)}." if fewer else f"{note}."


def markdown(tables: Sequence[ComparisonTable], notes: Sequence[str], command: str) -> str:
    """All tables, each below its heading, then the notes and the command that made them."""
    parts = []
    for table in tables:
        columns = [["method", *map(markdown_text, table.rows)]]
        for column in (*table.metrics, *LEDGER):
            texts = [f"**{cell.text}**" if cell.bold else cell.text for cell in cells(column, table)]
            columns.append([f"{column.title} `{column.key}`", *texts])
        parts += [f"## {markdown_text(table.title)}", markdown_table(columns), markdown_text(seeds_note(table))]
    parts += ["\n".join(f"- {note}" for note in [*READING, *map(markdown_text, notes), f"`{one_line(command)}`"])]
    return "\n\n".join(parts) + "\n"


def markdown_text(text: str) -> str:
    """The text on one line with what Markdown would read escaped."""
    return re.sub(r"([\\|*`<])", r"\\\1", one_line(text))


def markdown_table(columns: Sequence[Sequence[str]]) -> str:
    """A table from its columns, each a title and its cells; the first, and words, are aligned left."""
    widths = [max(map(len, column)) for column in columns]
    numbers = [number > 0 and all(map(_NUMBER.match, cells)) for number, (_, *cells) in enumerate(columns)]
    rule = ["-" * (width - right) + ":" * right for width, right in zip(widths, numbers, strict=True)]
    padded = [[text.ljust(width) for text in column] for column, width in zip(columns, widths, strict=True)]
    header, *rows = zip(*padded, strict=True)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def latex(tables: Sequence[ComparisonTable], notes: Sequence[str], command: str) -> str:
    r"""A table environment for each table, metrics above costs; needs only \usepackage{booktabs}."""
    parts = [r"% \usepackage{booktabs}"]
    for table in tables:
        parts += [r"\begin{table}", r"\centering\scriptsize\setlength{\tabcolsep}{3pt}"]
        parts += [_tabular(table.metrics, table), r"\par\medskip", _tabular(LEDGER, table)]
        parts += [rf"\caption{{{latex_text(f'{table.title}: {seeds_note(table)}')}}}", r"\end{table}"]
    parts += [r"{\footnotesize\noindent", *map(latex_text, [*READING, *notes])]
    parts += [rf"\texttt{{{latex_text(command)}}}\par}}"]
    return "\n".join(parts) + "\n"


def _tabular(columns: Sequence[Column], table: ComparisonTable) -> str:
    titles = ["method", *(latex_text(column.title) for column in columns)]
    keys = ["", *(rf"{{\tiny\texttt{{{latex_text(column.key)}}}}}" for column in columns)]
    found = [map(_latex_cell, cells(column, table)) for column in columns]
    rows = zip(map(latex_text, table.rows), *found, strict=True)
    first, second, *others = (" & ".join(row) + r" \\" for row in (titles, keys, *rows))
    begin = rf"\begin{{tabular}}{{l{'r' * len(columns)}}}"
    return "\n".join([begin, r"\toprule", first, second, r"\midrule", *others, r"\bottomrule", r"\end{tabular}"])


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text).replace("-", "$-$")
    return rf"\textbf{{{text}}}" if cell.bold else text


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "±": r"$\pm$", "†": r"$\dagger$", "–": "--", "×": r"$\times$",
    "[": "{[}", "*": "{*}",  # after the \\ of a row, [ and * would be read as its arguments
    **{character: "\\" + character for character in "{}&%$#_"},
}  # fmt: skip


def latex_text(text: str) -> str:
    """The text on one line as LaTeX prints it."""
    return "".join(_LATEX.get(character, character) for character in one_line(text))


def means(tables: Sequence[ComparisonTable], notes: Sequence[str], command: str) -> str:
    """A CSV file with a row for each method: mean over seeds, half-width of its 95 % t-interval and n of each."""
    columns = list(dict.fromkeys(column for table in tables for column in (*table.metrics, *LEDGER)))
    names = [f"{column.key}{part}" for column in columns for part in ("", "_half_width", "_n")]
    rows: list[list[object]] = [["comparison", "method", *names]]
    for table in tables:
        for label, runs in table.rows.items():
            rows.append([table.title, label])
            for column in columns:
                values = [value for run in runs.values() if (value := run.get(column.key)) is not None]
                known = ("" if math.isnan(figure) else figure for figure in mean_interval(values))
                rows[-1] += [*known, len(values)]
    return csv_bytes(rows).decode()


WRITERS = {"md": markdown, "tex": latex, "csv": means}
