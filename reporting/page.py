"""The report: one HTML page that needs nothing else, and the figures as files for papers and slides."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from datasets.objectives import BINS
from evaluation.measurements import CLASS_INCREMENTAL, DOMAIN_INCREMENTAL, TASK_IDENTIFICATION, mean_over_tasks
from records.run import Run
from records.summary import direction, figure
from reporting import analysis, figures, style
from reporting.figures import Picture
from reporting.groups import Comparison
from studies.tables import LEDGER, READING, Cell, cells, readable, seeds_note
from utils.files import write_bytes, yaml_bytes

_FOLDER = "figures"


@dataclass(frozen=True)
class Sheet:
    """A table of the page; `csv` is what stands behind it."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    foot: Sequence[Cell] = ()
    notes: Sequence[str] = ()
    csv: str = ""
    text: bool = False  # to be read, not compared


class Shown(NamedTuple):
    """A figure as it stands in the page."""

    name: str
    title: str
    caption: str
    svg: Markup
    csv: str


class Tile(NamedTuple):
    """One of the numbers at the top."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    tables: Sequence[Sheet] = ()
    pictures: Sequence[Shown] = ()


@dataclass(frozen=True)
class Page:
    """What the template fills in."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    command: str
    warnings: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    configuration: Sequence[tuple[str, str]] = ()
    several: bool = False
    palette: Sequence[tuple[str, str]] = ()  # colours of tasks: on a light and on a dark ground
    files: Mapping[str, bytes] = field(default_factory=dict)  # beside the page

    def write(self, folder: Path) -> Path:
        """report.html and figures/, each file whole or not at all; the path of the page.

        Raises:
            OSError: the folder cannot be written.
        """
        (folder / _FOLDER).mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            write_bytes(folder / _FOLDER / name, content)
        loader = FileSystemLoader(Path(__file__).parent)
        template = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        write_bytes(folder / "report.html", template.get_template("page.html").render(vars(self)).encode())
        return folder / "report.html"


def of_one_run(run: Run, command: str) -> Page:
    """The report of a run, finished or not."""
    pictures = figures.of_one_run(run)
    palette = style.themed(len(run.task_names))
    shown, files = _shown(pictures, palette)
    by_name = {picture.name: picture for picture in shown}
    learned = [by_name[name] for name in ("transfer_curves", "accuracy_matrix") if name in by_name]
    grown = [by_name[name] for name in ("members", "sampling_weights", "added_by_members", "task_affinity")
             if name in by_name]  # fmt: skip
    uninformed_answer = scenario_table(run)
    sections = [
        Section("What was learned", [task_table(run), *([uninformed_answer] if uninformed_answer else [])], learned),
        Section("How it was learned", (), grown),
    ]
    if "reliability" in by_name:
        sections.append(Section("Calibration", [calibration_table(run)], [by_name["reliability"]]))
    sections.append(Section("Cost", (), [by_name["cost"]]))
    return Page(
        title=f"{run.config['method']} on {run.config['stream']}", lead=in_words(run), sections=sections,
        command=command, warnings=_warnings(run), tiles=_tiles(run), configuration=_configuration([run]),
        palette=palette, files=files,
    )  # fmt: skip


def of_several_runs(comparisons: Sequence[Comparison], command: str) -> Page:
    """Methods against each other, a section for each stream and network."""
    sections: list[Section] = []
    files: dict[str, bytes] = {}
    for number, comparison in enumerate(comparisons, 1):
        suffix = f"_{_letters(number)}" if len(comparisons) > 1 else ""
        shown, more = _shown(figures.of_several_runs(comparison.groups), (), suffix)
        files.update(more)
        first = comparison_table(comparison, comparison.table().metrics, "Accuracy", f"results{suffix}")
        more_sheets = [comparison_table(comparison, LEDGER, "Cost", f"costs{suffix}"),
                       paired_table(comparison, suffix), options_table(comparison, suffix)]  # fmt: skip
        sections.append(Section(comparison.title, [first] if first.rows else [], shown))
        sections.append(
            Section(f"{comparison.title}: details", [sheet for sheet in more_sheets if sheet and sheet.rows])
        )
    runs = [run for comparison in comparisons for run in comparison.runs]
    groups = sum(len(comparison.groups) for comparison in comparisons)
    lead = [
        f"{len(runs)} runs in {groups} groups; the runs of a group differ in their seed only. Tables show the mean "
        "over seeds ± the half-width of its 95 % t-interval."
    ]
    warnings = [line for run in runs for line in _warnings(run)]
    titles = ", ".join(comparison.title for comparison in comparisons)
    return Page(
        title=f"Comparison: {titles}", lead=lead, sections=sections, command=command, warnings=warnings,
        configuration=_configuration([group.runs[min(group.runs)] for c in comparisons for group in c.groups]),
        several=True, files=files,
    )  # fmt: skip


def in_words(run: Run) -> list[str]:
    """What was run."""
    config, recipe, data = run.config, run.config["hp"], run.config["data"]
    net, tasks = config["net"], len(data["tasks"])
    own = ", ".join(f"{key} {value:g}" for key, value in net.items() if key not in ("model", "path"))
    how = "one after another" if config["continual"] else "in the multi-task mode, all known from the start"
    images = "" if data["samples"] is None else f", {data['samples']} training examples a class"
    images += f", of which a share of {data['hold_out']:g} was held out" if data["hold_out"] else ""
    derived = f"This is {config['derived']}. " if config.get("derived") else ""
    derived += "Tasks are numbered anew here. " if data["forgotten"] else ""
    learned = (
        f"{derived}Method {config['method']} learned {_count(tasks, 'task')} of {config['stream']} {how}{images}. "
        f"Each network is a {net['model']} ({own}), trained for {_count(recipe['epochs'], 'epoch')} with batches of "
        f"{recipe['batch']}, learning rate {recipe['lr']:g} and weight decay {recipe['l2_reg']:g}; "
        f"seed {config['seed']}."
    )
    kept = run.summary.get("stored_examples")
    memory = (
        ""
        if kept is None or not run.continual
        else f"At the end {_count(kept, 'training example')} of past tasks were kept. "
    )
    where = (
        f"{memory}It ran on {config['device']} in {config['precision']} with torch {config['versions']['torch']}, "
        f"commit {str(config['commit'])[:12]}{' with uncommitted changes' if config['uncommitted_changes'] else ''}."
    )
    return [learned, where]


def task_table(run: Run) -> Sheet:
    """The main metric on each task right after it was learned and at the end."""
    summary = run.summary
    columns: dict[str, Sequence[float]] = {}
    learned = figure(summary, "per_task_learning_acc")
    if learned is not None and len(run.accuracy_matrix) == len(run.task_names):
        columns["right after its episode"] = learned
    columns["now" if not run.finished else "at the end"] = figure(summary, "per_task_acc")
    if run.isolated is not None:
        columns["isolated network"] = run.isolated.tolist()
    rows = [
        [Cell(f"{number} {name}"), *(Cell(_share(values[number - 1])) for values in columns.values())]
        for number, name in enumerate(run.task_names, 1)
    ]  # fmt: skip
    foot = [Cell("mean"), *(Cell(_share(sum(values) / len(values))) for values in columns.values())]
    header = ["task", *columns]
    csv = _csv(header, [[cell.text for cell in row] for row in rows])
    title = f"Test {run.metric} on each task" + ("" if run.shows_accuracy else f", {direction(summary)}")
    return Sheet("tasks", title, header, rows, foot, csv=csv)


def scenario_table(run: Run) -> Sheet | None:
    """Accuracy where the task is not told, mean over the tasks seen, in some of the episodes; None if not measured."""
    episodes = [facts.episode for facts in run.episodes]
    names = [name for name in (CLASS_INCREMENTAL, TASK_IDENTIFICATION, DOMAIN_INCREMENTAL)
             if any(row.scenario == name for row in run.rows)]  # fmt: skip
    if not names:
        return None
    values = [[episode, *(mean_over_tasks([row for row in run.rows if row.episode == episode], name) for name in names)]
              for episode in episodes]  # fmt: skip
    some = sorted({episodes[round(place * (len(episodes) - 1) / 4)] for place in range(5)})
    rows = [
        [Cell(str(line[0])), *(Cell(_share(value)) for value in line[1:] if value is not None)]
        for line in values
        if line[0] in some
    ]
    counts = {row.task: row.n for row in run.rows if row.episode == episodes[-1] and row.scenario == names[0]}
    note = (
        f"Mean over the tasks seen; {sum(counts.values()):,} test examples after the last episode. All heads of all "
        "networks are asked, and the task is the one whose answer has the lowest entropy."
    )
    header = ["after episode", *names]
    return Sheet("without_task", "Accuracy without being told the task", header, rows, notes=[note],
                 csv=_csv(header, values))  # fmt: skip


def calibration_table(run: Run) -> Sheet:
    """NLL, Brier score and ECE of single members and of the ensemble, for each task."""
    table = analysis.calibrations(run)
    shown = {"accuracy": "accuracy", "nll": "NLL, nats", "brier": "Brier score", "ece": "ECE"}
    several = bool((table.members > 1).any())
    answers = ["one member", "ensemble"] if several else ["ensemble"]
    header = ["task", "members"]
    header += [f"{title}, {answer}" if several else title for title in shown.values() for answer in answers]
    by_task = table.set_index(["task", "answer"])
    rows = []
    for task in run.test_predictions:
        name = run.task_names[task - 1]
        values = [by_task.loc[(task, answer), key] for key in shown for answer in answers]
        members = by_task.loc[(task, "ensemble"), "members"]
        rows.append([Cell(f"{task} {name}"), Cell(str(members)), *(Cell(_share(value)) for value in values)])
    means = table.groupby("answer")[list(shown)].mean()
    foot = [Cell("mean"), Cell(""), *(Cell(_share(means.loc[answer, key])) for key in shown for answer in answers)]
    notes = [
        "NLL: mean negative log-likelihood of the right class. Brier score: mean squared distance of the probabilities "
        f"from the right answer. ECE: expected calibration error, {BINS} bins of equal size. Lower is better."
    ]
    if several:
        notes.append("One member: the mean over the members that answer the task, each alone.")
    csv = _csv(table.columns, table.itertuples(index=False))
    return Sheet("calibration", "Before and after averaging" if several else "", header, rows, foot, notes, csv)


def comparison_table(comparison: Comparison, columns: Sequence[Any], title: str, name: str) -> Sheet:
    """The groups against each other, as in studies/tables.py."""
    table = comparison.table()
    rows = [[Cell(label), *found] for label, *found in zip(table.rows, *cells(columns, table), strict=True)]
    notes = [seeds_note(table), *(READING[3:] if columns is LEDGER else READING[:2])]
    header = ["method", *(column.title for column in columns)]
    raw = [
        [label, seed, *(values.get(column.key) for column in columns)]
        for label, runs in table.rows.items() for seed, values in runs.items()
    ]  # fmt: skip
    csv = _csv(["method", "seed", *(column.key for column in columns)], raw)
    return Sheet(name, title, header, rows, notes=notes, csv=csv)


def paired_table(comparison: Comparison, suffix: str) -> Sheet:
    """How far each group is behind the best."""
    lines = comparison.behind_best()
    rows = [
        [Cell(label), Cell(str(n)), Cell(f"{mean:+.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")),
         Cell("n/a" if math.isnan(p) else f"{p:.3g}")]
        for label, n, mean, half, p in lines if mean != 0 or not math.isclose(p, 1)
    ]  # fmt: skip
    notes = ["Final accuracy minus that of the best method with the same seed, mean ± half-width of the 95 % "
             "t-interval; p of the paired two-sided t-test, not corrected for multiple comparisons."]  # fmt: skip
    csv = _csv(["method", "common_seeds", "difference", "half_width", "p"], lines)
    header = ["method", "common seeds", "difference from the best", "p"]
    return Sheet(f"paired{suffix}", "Paired differences", header, rows, notes=notes, csv=csv)


def options_table(comparison: Comparison, suffix: str) -> Sheet | None:
    """In which options the groups differ; None if in none."""
    options = comparison.differing_options()
    labels = [group.label for group in comparison.groups]
    rows = [[Cell(label), *(Cell(values[label]) for values in options.values())] for label in labels]
    if not options or len(labels) < 2:
        return None
    csv = _csv(["method", *options], [[cell.text for cell in row] for row in rows])
    return Sheet(f"options{suffix}", "Options that differ", ["method", *options], rows, csv=csv, text=True)


def _tiles(run: Run) -> list[Tile]:
    summary, tiles = run.summary, []
    if not run.shows_accuracy:
        final = figure(summary, "avg_acc_final")
        tiles.append(Tile(f"final {run.metric}", f"{final:.4g}", f"mean over tasks; {direction(summary)}"))
    for key, title, note, show in (
        ("avg_acc_final", "final accuracy", "mean over tasks, %", _percent),
        ("bwt", "backward transfer", "points, after its own episode", _points),
        ("forgetting_chaudhry", "forgetting", "points; below 0: none", _points),
        ("gain_isolated", "gain over isolated", "points, at the end", _points),
        ("fwt_isolated", "forward transfer", "points, right after its episode", _points),
    ):
        if run.shows_accuracy and summary.get(key) is not None:
            tiles.append(Tile(title, show(summary[key]), note))
    parameters = sum(member.parameters for member in run.members[-1:])
    tiles.append(Tile("networks saved", str(len(run.members)), f"{readable(parameters)} parameters the last"))
    speed = f"{summary['images_per_second']:,.0f} images a second"
    tiles.append(Tile("training time", _duration(summary["train_seconds"]), speed))
    return tiles


def _warnings(run: Run) -> list[str]:
    if run.finished:
        return []
    total = len(run.config["data"]["tasks"])
    of = f" of {total}" if run.continual else ""
    return [f"{run.path} is not finished: this is its state after episode {run.manifest.episode}{of}."]


def _configuration(runs: Sequence[Run]) -> list[tuple[str, str]]:
    return [(f"{run.path}/config.yaml", yaml_bytes(run.config).decode()) for run in runs]


def _shown(
    pictures: Iterable[Picture], palette: Iterable[tuple[str, str]], suffix: str = ""
) -> tuple[list[Shown], dict[str, bytes]]:
    """As they stand in the page, and as files."""
    shown: list[Shown] = []
    files: dict[str, bytes] = {}
    themed = [light for light, dark in palette if light != dark]
    for picture in pictures:
        name, text = picture.name + suffix, style.svg(picture.drawn)
        csv = picture.data.to_csv(index=False)
        files |= {f"{name}.png": style.png(picture.drawn), f"{name}.svg": text.encode(), f"{name}.csv": csv.encode()}
        part = Markup(
            style.inline(text, name, picture.title, themed)
        )  # drawn here; its texts were escaped by matplotlib
        shown.append(Shown(name, picture.title, picture.caption, part, _link(csv)))
    return shown, files


def _csv(header: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    return _link(pd.DataFrame(rows, columns=list(header)).to_csv(index=False))


def _link(csv: str) -> str:
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(csv.encode()).decode()


def _letters(number: int) -> str:
    """1 -> a, 26 -> z, 27 -> aa: names of files are of letters and underscores."""
    letters = ""
    while number:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def _share(value: float) -> str:
    return f"{value:.4f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
