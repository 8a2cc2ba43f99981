"""The report of runs of train_task.py: one network, or several seeds, on one task."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import pandas as pd

from evaluation.watching import DEV
from net import count_parameters
from records.run import Run
from records.summary import direction, figure
from reporting import task_analysis as analysis
from reporting import task_figures as figures
from reporting.drawing import DrawnFigure
from reporting.layout import Page, Section, Sheet, configuration, count, duration
from reporting.style import colours
from studies.tables import Cell, readable, share
from utils.errors import UserError

_ROWS = 6  # the most regions in a table of the page


def of_task_runs(runs: Sequence[Run], command: str) -> Page:
    """The report of runs of train_task.py, finished or not; details are of the best one. UserError for unlike tasks."""
    named = analysis.labelled(runs)
    if len({(run.config["stream"], tuple(run.task_names), run.metric) for run in runs}) > 1:
        raise UserError("the runs are on different tasks; make a report for each task")
    chosen = analysis.best(named)
    name = chosen or next(iter(named))
    run = named[name]
    table = analysis.handcrafted(run)
    inside = [*figures.ablation(run), figures.regions(run), None if table is None else figures.handcrafted(table)]
    slices = figures.slice_curves(run)
    of = "" if len(runs) == 1 else f" of {name}, the best on development examples" if chosen else f" of {name}"
    shown = [replace(picture, title=f"{picture.title}{f': {name}' if of else ''}") for picture in slices]
    sections = [
        Section("How it was learned", [results(named, chosen)], [*figures.learning_curves(named), *shown]),
        Section(f"Inside the network{of}", [_handcrafted(table)], _some(inside)),
        Section(f"Weights{of}", (), figures.weight_maps(run)),
    ]
    palette = {light: dark for picture in slices for light, dark in _themes(picture)}
    return Page(
        title=f"{run.config['net']['model']} on {', '.join(run.task_names)}", lead=_in_words(named, name),
        sections=sections, command=command, warnings=_warnings(runs),
        configuration=configuration(list(named.values())), tiles=_tiles(run, named, name),
        palette=list(palette.items()),
    )  # fmt: skip


def results(runs: Mapping[str, Run], chosen: str | None) -> Sheet:
    """A line for each run: development and test score, and the checkpoint that is best on development examples."""
    header = ["run", "examples", "development", "test", "± error", "loss / uninformed", "best checkpoint", "test there"]
    lines = [[name, *_result(run)] for name, run in runs.items()]
    rows = []
    for line in lines:
        cells = [_text(value) for value in line]
        rows.append([Cell(text, bold=line[0] == chosen and len(runs) > 1) for text in cells])
    first, foot, notes = next(iter(runs.values())), list[str](), []
    if len(runs) > 2:
        columns = [[value for line in lines if isinstance(value := line[place], float)] for place in (2, 3)]
        foot = ["median", "", *(share(statistics.median(column)) if column else "n/a" for column in columns)]
        foot += [""] * (len(header) - len(foot))
    if chosen is not None and len(runs) > 1:
        notes.append("Bold: the run that is best on the development examples.")
    notes.append(
        "Error: the standard error of the test score, over test examples; it leaves out what another seed changes. "
        "Best checkpoint: examples seen when the development score was best, and what the network of that moment has "
        "on the test examples. Nothing was chosen on test examples."
    )
    title = f"{first.metric.capitalize()}, {direction(first.config)}"
    return Sheet("results", title, header, rows, pd.DataFrame(lines, columns=header), foot, notes)


def _result(run: Run) -> list[object]:
    """The cells of a run; None where a figure is not known."""
    frame, summary = analysis.curve(run), run.summary
    dev = None if analysis.watched_split(run) == "test" else float(frame[run.metric].iloc[-1])
    seen = int(frame.examples.iloc[-1])
    if not run.finished:
        return [seen, dev, None, None, None, None, None]
    step = summary["best_step"]
    at = None if step is None else int(frame.examples[frame.step == step].iloc[0])
    test = figure(summary, "avg_acc_final")
    return [seen, dev, test, summary["test_stderr"], _ratio(run), at, summary["best_test"]]


def _ratio(run: Run) -> float | None:
    """The test loss over that of the uninformed prediction; None if it is not known."""
    uninformed = analysis.uninformed_loss(run)
    losses = [row.scores["loss"].value for row in run.rows if row.is_test]
    return losses[-1] / uninformed if losses and uninformed else None


def _handcrafted(table: pd.DataFrame | None) -> Sheet | None:
    """The same as the figure, in numbers."""
    if table is None:
        return None
    rows = [
        [line.region, f"{line.examples:,}", *map(share, (line.share, line.network, line.handcrafted, same))]
        for line, same in zip(table.head(1 + _ROWS).itertuples(), table["same answer"], strict=False)
    ]
    notes = [
        "Regions of the last network, from the most visited one. Accuracy of the network and of the handcrafted one "
        "for this length on the development examples in each, and the share on which both give the same answer. "
        "The CSV file has more regions."
    ]
    title = "The network and the handcrafted one, region by region"
    return Sheet("handcrafted", title, list(table), rows, table, notes=notes)


def _tiles(run: Run, runs: Mapping[str, Run], name: str) -> list[tuple[str, str, str]]:
    """The numbers at the top; of several runs those of the best one."""
    summary, frame = run.summary, analysis.curve(run)
    scale = 100 if run.shows_accuracy else 1
    unit = "%" if run.shows_accuracy else direction(summary)
    of = f"; {name}" if len(runs) > 1 else ""
    tiles = []
    if run.finished:
        error = summary["test_stderr"]
        around = "" if error is None else f"± {scale * error:.2g} "
        tiles.append((f"test {run.metric}", f"{scale * figure(summary, 'avg_acc_final'):.4g}", f"{around}{unit}{of}"))
        if (ratio := _ratio(run)) is not None:
            tiles.append(("loss over uninformed loss", f"{ratio:.3g}", f"1: knows nothing{of}"))
    else:
        value = scale * float(frame[run.metric].iloc[-1])
        split = "development" if analysis.watched_split(run) == DEV else analysis.watched_split(run)
        tiles.append((f"{split} {run.metric}", f"{value:.4g}", f"{unit}, so far{of}"))
    for title, value in analysis.baselines(run).items():
        tiles.append((title, f"{scale * value:.4g}", f"{unit}, without a network"))
    if run.checkpoints:
        weights = run.checkpoints[min(run.checkpoints)].network()
        tiles.append(("parameters", readable(count_parameters(weights)), run.config["net"]["model"]))
    seen, steps = int(frame.examples.iloc[-1]), int(frame.step.iloc[-1])
    log = f"2^{math.log2(seen):.3g}, " if seen else ""
    tiles.append(("examples seen", readable(seen) if seen else "0", f"{log}{count(steps, 'step')}"))
    if run.finished and (rate := summary["images_per_second"]):
        together = summary["trained_together"]
        note = f"{duration(summary['train_seconds'])} of training"
        tiles.append(("examples a second", readable(rate * together), note + _together(together)))
    return tiles


def _together(networks: int) -> str:
    return f"; {networks} networks together" if networks > 1 else ""


def _in_words(runs: Mapping[str, Run], name: str) -> list[str]:
    """Two paragraphs: what was trained and how, and where."""
    config = runs[name].config
    net, recipe = config["net"], config["hp"]
    settings = ", ".join(f"{key} {value}" for key, value in net.items() if key not in ("model", "path"))
    length = next(count(recipe[key], key[:-1]) for key in ("examples", "steps", "epochs") if recipe.get(key))
    seeds = ", ".join(str(run.config["seed"]) for run in runs.values())
    whose = f"seed {seeds}" if len(runs) == 1 else f"the runs have the seeds {seeds}"
    network = f"{'Each' if len(runs) > 1 else 'One'} network ({net['model']}{f': {settings}' if settings else ''})"
    learned = (
        f"{network} learned the task {runs[name].task_names[0]}"
        f"{_data(runs[name])} from {length}, in batches of {recipe['batch']} with {recipe['optimizer']}, learning rate "
        f"{recipe['lr']:g} and schedule {recipe['schedule']}; {whose}."
    )
    where = (
        f"It ran on {config['device']} in {config['precision']} with torch {config['versions']['torch']}, commit "
        f"{str(config['commit'])[:12]}{' with uncommitted changes' if config['uncommitted_changes'] else ''}."
    )
    return [learned, where]


def _data(run: Run) -> str:
    """The length of the inputs, and the settings of the data set that are not the usual ones."""
    own = analysis.settings_of(run).data.settings
    shown = [(f.name, getattr(own, f.name)) for f in fields(own)]
    usual = {f.name: f.default for f in fields(own)}
    words = [f"{name} {value}" for name, value in shown if name == "length" or value != usual[name]]
    return f" ({', '.join(words)})" if words else ""


def _warnings(runs: Sequence[Run]) -> list[str]:
    return [
        f"{run.path} is not finished: this is its state after {run.rows[-1].examples:,} examples."
        for run in runs if not run.finished
    ]  # fmt: skip


def _some(pictures: Sequence[DrawnFigure | None]) -> list[DrawnFigure]:
    return [picture for picture in pictures if picture is not None]


def _themes(picture: DrawnFigure) -> list[tuple[str, str]]:
    """The colours of the lines of slices on a light and on a dark ground."""
    number = picture.data["slice"].nunique()
    return list(zip(colours(number), colours(number, dark=True), strict=True))


def _text(value: object) -> str:
    """A cell of the table of results."""
    if value is None:
        return "n/a"
    return share(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
