"""The report of runs of train_task.py: one network, or several seeds, on one task."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import pandas as pd

from datasets.task import DEV, TEST
from net import count_parameters
from net.config import network_title
from records.run import Run
from records.summary import direction, figure
from records.task_summary import in_ranges, listed
from reporting import mechanism_figures, superposition_page
from reporting import task_analysis as analysis
from reporting import task_figures as figures
from reporting.drawing import DrawnFigure
from reporting.layout import Page, Section, Sheet, configuration, count, duration, validated
from reporting.style import colours
from reporting.sweep import differs
from reporting.sweep_page import of_a_sweep
from studies.grid_file import in_words
from studies.tables import Cell, readable, share

Part = TypeVar("Part", Sheet, DrawnFigure)
_ROWS = 6  # the most regions in a table of the page


def of_task_runs(runs: Sequence[Run], command: str) -> Page:
    """The report of runs of train_task.py, finished or not; details are of the best one.

    Runs that differ in task, data or network are compared instead, see `of_a_sweep`.
    """
    tasks: dict[object, list[Run]] = {}
    for run in runs:
        tasks.setdefault((run.config["stream"], tuple(run.task_names), run.metric), []).append(run)
    if len(tasks) > 1 or differs(runs):
        return of_a_sweep(list(tasks.values()), command, _warnings(runs))
    named = analysis.labelled(runs)
    chosen = analysis.best(named)
    name = chosen or next(iter(named))
    run = named[name]
    table = analysis.handcrafted(run)
    inside = [*figures.ablation(run), figures.regions(run), None if table is None else figures.handcrafted(table)]
    moving = not all(other.config["evaluate_only"] for other in runs)
    slices = figures.slice_curves(run) if moving else []
    curves = figures.learning_curves(named) if moving else []  # networks that were only evaluated have none
    of = "" if len(runs) == 1 else f" of {name}, the best on development examples" if chosen else f" of {name}"
    shown = [replace(picture, title=f"{picture.title}{f': {name}' if of else ''}") for picture in slices]
    sections = [
        Section("How it was learned", [results(named, chosen)], [*curves, *shown]),
        Section(f"Inside the network{of}", _some([_handcrafted(table)]), _some(inside)),
        Section(
            "Mechanism", _some([mechanism_figures.associations_table(named)]), mechanism_figures.of_runs(named, name)
        ),
        *superposition_page.sections(named, name),
        Section(f"Weights{of}", (), figures.weight_maps(run)),
    ]
    palette = {light: dark for picture in slices for light, dark in _themes(picture)}
    palette |= dict(superposition_page.themes(named))
    return Page(
        title=f"{network_title(run.config['net'])} on {', '.join(run.task_names)}", lead=_in_words(named, name),
        sections=sections, command=command, warnings=_warnings(runs),
        configuration=configuration(_unlike(named.values())), tiles=_tiles(run, named, name),
        palette=list(palette.items()),
    )  # fmt: skip


def _unlike(runs: Iterable[Run]) -> list[Run]:
    """One run of each configuration, whatever its seed."""
    first: dict[str, Run] = {}
    for run in runs:
        own = {key: value for key, value in run.config.items() if key not in ("seed", "data_sha256")}
        first.setdefault(repr(own), run)
    return list(first.values())


def results(runs: Mapping[str, Run], chosen: str | None) -> Sheet:
    """A line for each run: development and test score, and the checkpoint that is best on development examples."""
    first, data = next(iter(runs.values())), pd.DataFrame([_result(run) for run in runs.values()], dtype=object)
    data = data.dropna(axis=1, how="all")
    data.insert(0, "run", list(runs))
    rows = [
        [Cell(_text(value), bold=line["run"] == chosen and len(runs) > 1) for value in line.values()]
        for line in listed(data.to_dict("records"), lambda line: _goodness(first, line))
    ]
    foot, notes = list[str](), []
    if len(runs) > 2:
        medians = {name: data[name].dropna().median() for name in ("development", "test") if name in data}
        foot = ["median", *(share(medians[name]) if name in medians else "" for name in data.columns[1:])]
    if chosen is None:
        notes.append("No examples were set aside for choosing (--hold_out): the test examples are those of the curves.")
    elif len(runs) > 1:
        notes.append("Bold: the run that is best on the development examples.")
    if "± error" in data:
        notes.append(
            "± error: standard error of the test score, over test examples; it leaves out what another seed changes."
        )
    if "best checkpoint" in data:
        notes.append(
            "Best checkpoint: examples seen when the development score was best, and the test score of the network of "
            "that moment. Nothing was chosen on test examples."
        )
        if "test there" in data and data["test there"].isna().any():
            notes.append("n/a: the weights of that moment were not kept (--checkpoints).")
    if len(rows) < len(runs):
        notes.append(f"The best {len(rows)} of {len(runs)} runs, and the median of all; the CSV file has all.")
    title = f"{'Accuracy' if first.shows_accuracy else first.metric}, {direction(first.config)}"
    return Sheet("results", title, list(data), rows, data, foot, notes)


def _result(run: Run) -> dict[str, float | int | None]:
    """The figures of a run by title of the column; None where one is not known."""
    frame, summary = analysis.curve(run), run.summary
    step = summary.get("best_step")
    return {
        "examples": int(frame.examples.iloc[-1]),
        "development": None if analysis.watched_split(run) == TEST else float(frame[run.metric].iloc[-1]),
        "test": figure(summary, "avg_acc_final") if run.finished else None,
        "± error": summary.get("test_stderr"),
        "loss / uninformed": _ratio(run),
        "best checkpoint": None if step is None else int(frame.examples[frame.step == step].iloc[0]),
        "test there": None if step is None else summary["best_test"],
    }


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
        around = "" if error is None else f"± {scale * error:.2g}" + (" " if run.shows_accuracy else "; ")
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
        tiles.append(("parameters", readable(count_parameters(weights)), network_title(run.config["net"])))
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
    shown = {key: value for key, value in net.items() if key not in ("model", "path") and value is not None}
    settings = ", ".join(in_words(shown))
    length = next(count(recipe[key], key[:-1]) for key in ("examples", "steps", "epochs") if recipe.get(key))
    seeds = in_ranges(sorted({run.config["seed"] for run in runs.values()}))
    whose = f"seed {seeds}" if len(runs) == 1 else f"the runs have the seeds {seeds}"
    stream = "" if config["stream"] in runs[name].task_names else f" of {config['stream']}"
    network = f"{'Each' if len(runs) > 1 else 'One'} network ({net['model']}{f': {settings}' if settings else ''})"
    task = f"the task {runs[name].task_names[0]}{stream}{_data(runs[name])}"
    begun = f", with the weights of {config['begun_from']}" if config["begun_from"] else ""
    learned = f"{network} was asked about {task} without training{begun}; {whose}."
    if not config["evaluate_only"]:
        batches = "full batches" if recipe["batch"] == "full" else f"batches of {recipe['batch']}"
        learned = (
            f"{network} learned {task}{begun} from {length}, in {batches} with "
            f"{recipe['optimizer']}, learning rate {recipe['lr']:g} and schedule {recipe['schedule']}; {whose}."
        )
    where = (
        f"It ran on {config['device']} in {config['precision']} with torch {config['versions']['torch']}, commit "
        f"{str(config['commit'])[:12]}{' with uncommitted changes' if config['uncommitted_changes'] else ''}."
    )
    return [learned, where]


def _goodness(run: Run, line: Mapping[Any, Any]) -> float:
    """The better a line of the results is the larger, by its development score or, without one, its test score."""
    value = line.get("development", line.get("test"))
    return -math.inf if value is None or value != value else (1 if run.config["higher_is_better"] else -1) * value


def _data(run: Run) -> str:
    """The length of the inputs, and the settings of the data set that are not the usual ones."""
    own = analysis.settings_of(run).data.settings
    shown = [(f.name, getattr(own, f.name)) for f in fields(own)]
    usual = {f.name: f.default for f in fields(own)}
    words = [f"{name} {value}" for name, value in shown if name == "length" or value != usual[name]]
    return f" ({', '.join(words)})" if words else ""


def _warnings(runs: Sequence[Run]) -> list[str]:
    return validated(runs) + [
        f"{run.path} is not finished: this is its state after {run.rows[-1].examples:,} examples."
        for run in runs if not run.finished
    ]  # fmt: skip


def _some(parts: Sequence[Part | None]) -> list[Part]:
    return [part for part in parts if part is not None]


def _themes(picture: DrawnFigure) -> list[tuple[str, str]]:
    """The colours of the lines of slices on a light and on a dark ground."""
    number = picture.data["slice"].nunique()
    return list(zip(colours(number), colours(number, dark=True), strict=True))


def _text(value: object) -> str:
    """A cell of the table of results."""
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return "n/a"
    return share(value) if isinstance(value, float) else f"{value:,}"
