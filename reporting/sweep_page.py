"""The report of runs of train_task.py that differ in task, data or network: a section for each stream."""

from collections.abc import Sequence
from dataclasses import replace
from string import ascii_lowercase

import pandas as pd

from records.run import Run
from records.summary import direction
from reporting.layout import Page, Section, Sheet, configuration, count
from reporting.superposition_page import points_table
from reporting.sweep import SweepCell, best_of, cells
from reporting.sweep_figures import all_runs, of_sweep
from studies.tables import Cell, share

_LETTERS = len(ascii_lowercase)


def of_a_sweep(tasks: Sequence[Sequence[Run]], command: str, warnings: Sequence[str]) -> Page:
    """The report of the runs of each task, finished or not."""
    found = [cells(runs) for runs in tasks]
    sections = []
    for number, (runs, own) in enumerate(zip(tasks, found, strict=True)):
        turn, place = divmod(number, _LETTERS)  # names of files consist of letters and underscores
        suffix = "_" + (turn + 1) * ascii_lowercase[place] if len(tasks) > 1 else ""
        pictures = [replace(drawn, name=drawn.name + suffix) for drawn in of_sweep(own)]
        tables = [results(own, f"results{suffix}"), points_table(all_runs(own), f"critical_points{suffix}")]
        sections.append(Section(_title(runs[0]), [table for table in tables if table], pictures))
    total, distinct = sum(map(len, tasks)), sum(map(len, found))
    lead = (
        f"{count(total, 'run')} of train_task.py in {count(distinct, 'cell')}; the runs of a cell differ in learning "
        "rate and seed only. Of each cell the run is shown that is best on the development examples, by its score on "
        "the test examples, which nothing is chosen by. report.py with the directory of one run shows that network."
    )
    best = [run for own in found for cell in own if (run := cell.best)]
    return Page(
        title=f"Networks on {', '.join(dict.fromkeys(_title(runs[0]) for runs in tasks))}", lead=[lead],
        sections=sections, command=command, warnings=warnings, configuration=configuration(best),
    )  # fmt: skip


def results(own: Sequence[SweepCell], name: str) -> Sheet | None:
    """A line for each cell, a block for each network; bold: the best network of each setting of the data."""
    shown = [cell for cell in own if cell.result]
    if not shown:
        return None
    data = pd.DataFrame([cell.result for cell in shown], dtype=object).dropna(axis=1, how="all")
    runs = [run for cell in shown for run in cell.runs]
    tried = {"learning rate": {run.config["hp"]["lr"] for run in runs}, "seed": {run.config["seed"] for run in runs}}
    unneeded = [name for name, values in tried.items() if len(values) == 1]
    header = [key for key in data if key not in unneeded]
    panels = dict.fromkeys(cell.panel for cell in shown)
    best = {id(best_of(cell for cell in shown if cell.panel == panel)) for panel in panels}
    rows = [
        [
            Cell(_text(key, value), bold=id(cell.best) in best and len(shown) > len(panels))
            for key, value in zip(header, line, strict=True)
        ]
        for cell, line in zip(shown, data[header].itertuples(index=False), strict=True)
    ]
    run = runs[0]
    notes = ["Learning rate and seed: those of the run that is best on the development examples, of so many runs."]
    if len(shown) > len(panels):
        each = " of each setting of the data" if len(panels) > 1 else ""
        notes.append(f"Bold: the best on the development examples{each}.")
    if "state bytes" in data:
        notes.append(
            "State bytes: what the network carries from one position to the next when it decodes step by step."
        )
    return Sheet(name, f"{run.metric.capitalize()}, {direction(run.summary)}", header, rows, data, notes=notes)


def _title(run: Run) -> str:
    stream, names = run.config["stream"], run.task_names
    return stream if stream in names else f"{stream}, {', '.join(names)}"


def _text(column: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return "n/a"
    if column in ("development", "test", "± error"):
        return share(float(value))  # type: ignore[arg-type]
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}"
