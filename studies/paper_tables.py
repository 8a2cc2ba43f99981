"""Published values beside ours, for the terminal, in Markdown and LaTeX."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from records.summary import signed
from studies.papers import Paper, Row
from studies.statistics import mean_interval
from studies.store import COLUMNS, figures, provenance_notes, read_finished, write_results
from studies.tables import Values, latex_text, markdown_table, markdown_text, readable
from utils.errors import one_line
from utils.files import write_bytes

READING = (
    "Published and ours in per cent. Published ±: what the paper prints. Ours ±: half-width of the 95 % t-interval of "
    "the mean over seeds; one seed has none.",
    "Difference: ours - published, in points. Within: whether it is at most the tolerance, in either direction; "
    "incomplete: not all seeds have finished.",
    "Minutes per seed: of a whole run with its evaluation, mean over seeds; with --jobs 2 or more, runs share the "
    "machine while they are timed.",
)
_TITLES = ("row", "published", "ours", "difference", "tolerance", "within?", "minutes per seed")
_NONE = "n/a"


@dataclass(frozen=True)
class Measured:
    """Our value of a row in per cent: mean over the finished seeds and half-width of its interval, NaN if undefined."""

    row: Row
    seeds: int  # that have finished
    mean: float
    half: float
    minutes: float  # per seed

    @property
    def difference(self) -> float:
        """Ours - published, in points."""
        return self.mean - self.row.claim.published

    @property
    def within(self) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.difference) <= self.row.claim.tolerance + 1e-9  # 99.97 - 99.82 is 0.15000000000000568


def measure(row: Row, figures: Mapping[str, Values]) -> Measured:
    """Our value of a row, from the figures of finished runs by name."""
    found = [figures[run.name] for run in row.runs if run.name in figures]
    defined = [100 * value for values in found if (value := values[row.claim.metric]) is not None]
    mean, half = mean_interval(defined if len(defined) == len(found) else [])
    minutes, _ = mean_interval([values["total_seconds"] / 60 for values in found])
    return Measured(row, len(found), mean, half, minutes)


def cells(measured: Measured, failures: Mapping[str, str], smoke: bool) -> list[str]:
    """The cells of a row, see _TITLES."""
    row, claim = measured.row, measured.row.claim
    paper = f"{claim.published:g}" + ("" if claim.spread is None else f" ± {claim.spread:g}")
    tolerance, minutes = f"{claim.tolerance:g}", readable(measured.minutes) if measured.seeds else _NONE
    if math.isnan(measured.mean):
        failed = any(run.name in failures for run in row.runs)
        ours = _NONE if measured.seeds else "failed" if failed else "not run"
        return [row.label, paper, ours, _NONE, tolerance, _NONE, minutes]
    half = "" if math.isnan(measured.half) else f" ± {measured.half:.2f}"
    ours = f"{measured.mean:.2f}{half} ({measured.seeds} seed{'s' * (measured.seeds != 1)})"
    within = "yes" if measured.within else "no"
    if smoke:
        within = "not judged"
    elif measured.seeds < len(row.runs):
        within = "incomplete"
    return [row.label, paper, ours, signed(measured.difference, 2), tolerance, within, minutes]


def write_paper(paper: Paper, store: Path, failures: Mapping[str, str], command: str) -> str:
    """Write results.csv, table.md and table.tex; returns the table for the terminal."""
    measured = figures(read_finished(paper.grid.runs))
    write_results(paper.grid.runs, store, failures, measured, COLUMNS)
    rows = [cells(measure(row, measured), failures, paper.smoke is not None) for row in paper.rows]
    write_bytes(store / "table.md", _markdown(paper, rows, command).encode())
    write_bytes(store / "table.tex", _latex(paper, rows, command).encode())
    return "\n\n".join([*_warning(paper), _table(rows)])


def _warning(paper: Paper) -> list[str]:
    if paper.smoke is None:
        return []
    changes = ", ".join(f"{key} {value}" for key, value in paper.smoke.items())
    return [f"SMOKE TEST, not the table: one seed and {changes}; these numbers say nothing about the paper"]


def _notes(paper: Paper) -> list[str]:
    """How a row was measured where that is not the accuracy at the end, what a reader must know, and provenance."""
    remarks = [
        f"{row.label}: {remark}" for row in paper.rows
        for remark in (f"ours is {row.claim.metric}" * (row.claim.metric != "avg_acc_final"), row.claim.note)
        if remark
    ]  # fmt: skip
    return remarks + provenance_notes(read_finished(paper.grid.runs))


def _commands(paper: Paper) -> list[str]:
    """The command of each row with its first seed, without the run directory."""
    return [shlex.join(["python", "modelzoo.py", *row.runs[0].arguments[:-1]]) for row in paper.rows]


def _table(rows: Sequence[Sequence[str]]) -> str:
    return markdown_table([[title, *map(markdown_text, cells)] for title, *cells in zip(_TITLES, *rows, strict=True)])


def _markdown(paper: Paper, rows: Sequence[Sequence[str]], command: str) -> str:
    heading = paper.heading
    notes = [*map(markdown_text, [*READING, *_notes(paper)]), f"`{one_line(command)}`"]
    parts = [
        f"## {markdown_text(heading.title)}", *(f"**{markdown_text(text)}**" for text in _warning(paper)),
        markdown_text(f"Published: {heading.source}. {heading.setup}"), _table(rows),
        "\n".join(f"- {note}" for note in notes),
        "Each row with its first seed:", "\n".join(f"    {one_line(each)}" for each in _commands(paper)),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _latex(paper: Paper, rows: Sequence[Sequence[str]], command: str) -> str:
    r"""A table environment; needs only \usepackage{booktabs}."""
    texts = [[latex_text(row[0]), *(latex_text(cell).replace("-", "$-$") for cell in row[1:])] for row in rows]
    header, *body = (" & ".join(row) + r" \\" for row in (_TITLES, *texts))
    caption = ". ".join([*_warning(paper), paper.heading.title, f"Published: {paper.heading.source}"])
    parts = [
        r"% \usepackage{booktabs}", r"\begin{table}", r"\centering\scriptsize", rf"\begin{{tabular}}{{l{'r' * 6}}}",
        r"\toprule", header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
        rf"\caption{{{latex_text(caption)}}}", r"\end{table}",
        r"{\footnotesize\noindent", *map(latex_text, [*READING, *_notes(paper)]),
        rf"\texttt{{{latex_text(command)}}}\par}}",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"
