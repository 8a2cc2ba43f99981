"""The report of runs of modelzoo.py: one, or several side by side."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import starmap
from string import ascii_lowercase

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

from datasets.objectives import ACCURACY, BINS
from evaluation.measurements import TRAINED, WITHOUT_TASK
from records.run import Run
from records.summary import curves_of, direction, figure, signed
from reporting import analysis, compared, figures, mechanism_matrices, style
from reporting.drawing import DrawnFigure
from reporting.groups import Comparison, Group
from reporting.layout import Page, Section, Sheet, configuration, count, duration, validated
from reporting.ranks import ranks_section
from reporting.reuse import reuse_table
from studies.replicates import replicate_of
from studies.statistics import against_best, share_interval
from studies.tables import LEDGER, READING, Column, cells, readable, seeds_note, share

_GOOD = 0.99  # the accuracy that the table of examples is about
_CLASSES = 20  # the most classes in the table of the page


def of_one_run(run: Run, command: str) -> Page:
    """The report of a run, finished or not."""
    drawn = {picture.name: picture for picture in figures.of_one_run(run)}
    light, dark = (style.colours(len(run.task_names), dark) for dark in (False, True))

    def pick(*names: str) -> list[DrawnFigure]:
        return [drawn[name] for name in names if name in drawn]

    learned = ("transfer_curves", "while_learning", "accuracy_matrix")
    sections = [
        Section("What was learned", [task_table(run), scenario_table(run)], pick(*learned)),
        Section("Mechanism", [mechanism_matrices.ranges_table(run)], pick("mechanism_matrix")),
        Section("Geometry", [reuse_table([Group(run.config["method"], {replicate_of(run.config): run})])]),
        Section("How it was learned", (), pick("members", "sampling_weights", "added_by_members", "task_affinity")),
    ]
    if run.classifies:
        sections.append(Section("Classes", [class_table(run)], pick("confusion")))
        sections.append(Section("Calibration", [calibration_table(run)], pick("reliability")))
    sections.append(Section("Cost", (), pick("cost")))
    return Page(
        title=f"{run.config['method']} on {run.config['stream']}", lead=in_words(run), sections=sections,
        command=command, warnings=_warnings([run]), configuration=configuration([run]), tiles=_tiles(run),
        palette=list(zip(light, dark, strict=True)),
    )  # fmt: skip


def of_several_runs(comparisons: Sequence[Comparison], command: str) -> Page:
    """Methods against each other, two sections for each stream and network."""
    sections: list[Section] = []
    for number, comparison in enumerate(comparisons):
        turn, place = divmod(number, 26)  # names of files consist of letters and underscores: _a, _b, ..., _z, _aa
        suffix = "_" + (turn + 1) * ascii_lowercase[place] if len(comparisons) > 1 else ""
        pictures = [replace(drawn, name=drawn.name + suffix) for drawn in compared.of_several_runs(comparison.groups)]
        table = comparison.table()
        score = str(table.first.get("metric", ACCURACY.name)).capitalize()
        results = comparison_table(comparison, table.metrics, score, f"results{suffix}")
        costs = comparison_table(comparison, LEDGER, "Cost", f"costs{suffix}")
        inside = mechanism_matrices.ranges_by_method(comparison.groups, suffix)
        reuse = reuse_table(comparison.groups, suffix)
        details = [costs, paired_table(comparison, suffix), options_table(comparison, suffix)]
        sections += [
            Section(comparison.title, [results, examples_table(comparison, suffix), inside, reuse], pictures),
            Section(f"{comparison.title}: details", details),
        ]
    groups = [group for comparison in comparisons for group in comparison.groups]
    if (scenarios := across_scenarios(groups)) is not None:
        sections.insert(0, Section("Scenarios", [scenarios], ()))
    if (ranked := ranks_section([comparison.table() for comparison in comparisons])) is not None:
        sections.insert(0, ranked)
    runs = [run for group in groups for run in group.runs.values()]
    orders = len({each.order for group in groups for each in group.runs}) > 1
    lead = (
        f"{len(runs)} runs in {len(groups)} groups; the runs of a group differ only in their seed"
        f"{' and in the order of tasks that was drawn' if orders else ''}. Tables show the "
        f"mean over seeds{' and orders' if orders else ''} ± the half-width of its 95 % t-interval."
    )
    return Page(
        title=f"Comparison: {'; '.join(comparison.title for comparison in comparisons)}", lead=[lead],
        sections=sections, command=command, warnings=_warnings(runs),
        configuration=configuration([group.first for group in groups]),
    )  # fmt: skip


def in_words(run: Run) -> list[str]:
    """Two paragraphs: what the run learned and how, and where it ran."""
    config, recipe, data = run.config, run.config["hp"], run.config["data"]
    net = config["net"]
    tasks = len(data["tasks"][: data.get("first_tasks")]) - len(data["forgotten"])
    settings = ", ".join(f"{key} {value}" for key, value in net.items() if key not in ("model", "path"))
    length = next(count(recipe[key], key[:-1]) for key in ("epochs", "steps", "examples") if recipe.get(key))
    how = "one after another" if config["continual"] else "in the multi-task mode, all known from the start"
    if data["scenario"] != "task":
        how += f", as {TRAINED[data['scenario']]} learning: the task is not told"
    kept = data["samples"]
    images = "all training examples" if kept is None else f"at most {kept} training examples a class"
    images += f", of which a share of {data['hold_out']:g} was held out" if data["hold_out"] else ""
    derived = f"This is {config['derived']}. " if config.get("derived") else ""
    derived += "Tasks are renumbered here. " if data["forgotten"] else ""
    lost = tasks - len(run.task_names) if run.finished else 0
    images += f". No network answers {lost} of the tasks" if lost else ""
    learned = (
        f"{derived}Method {config['method']} learned {count(tasks, 'task')} of {config['stream']} {how}, from {images}"
        f". Each network is a {net['model']}{f' ({settings})' if settings else ''}, trained for {length} with batches "
        f"of {recipe['batch']}, learning rate {recipe['lr']:g} and weight decay {recipe['l2_reg']:g}; "
        f"seed {config['seed']}."
    )
    kept = run.summary.get("stored_examples") if run.continual else None
    memory = "" if kept is None else f"At the end {count(kept, 'training example')} of past tasks were kept. "
    where = (
        f"{memory}It ran on {config['device']} in {config['precision']} with torch {config['versions']['torch']}, "
        f"commit {str(config['commit'])[:12]}{' with uncommitted changes' if config['uncommitted_changes'] else ''}."
    )
    return [learned, where]


def task_table(run: Run) -> Sheet:
    """The main metric on each task right after it was learned and at the end."""
    columns: dict[str, Sequence[float]] = {}
    learned = figure(run.summary, "per_task_learning_acc")
    if learned is not None and len(run.accuracy_matrix) == len(run.task_names):
        columns["right after its episode"] = learned
    last = "at the end" if run.finished else "now"
    columns[last] = figure(run.summary, "per_task_acc")
    if run.isolated is not None:
        columns["isolated network"] = run.isolated.tolist()
    notes = []
    if run.classifies:
        answered = [(run.targets[task], run.predictions(task).argmax(1)) for task in run.test_predictions]
        sizes = [np.unique(targets, return_counts=True)[1] for targets, _ in answered]
        if len(sizes) == len(run.task_names) and any(counts.max() > 1.5 * counts.min() for counts in sizes):
            columns["balanced accuracy"] = [balanced_accuracy_score(*both) for both in answered]
            columns["majority rate"] = [counts.max() / counts.sum() for counts in sizes]
            notes.append("Classes differ in their number of test examples. Balanced accuracy: mean of the accuracies "
                         "on each class. Majority rate: that of always answering the largest class.")  # fmt: skip
    rows = [[label, *map(share, values)] for label, *values in zip(run.task_labels, *columns.values(), strict=True)]
    foot = ["mean", *(share(sum(values) / len(values)) for values in columns.values())]
    header = ["task", *columns]
    if run.classifies:
        for row, (accuracy, n) in zip(rows, _examples(run), strict=True):
            row.append("–".join(map(share, share_interval(accuracy, n))))
        header, foot = [*header, f"95 % interval, {last}"], [*foot, f"± {share(_half_width(run))}"]
        notes.append("Interval: of the accuracy, from the number of test examples (Wilson; mean: from the widths of "
                     "the tasks, as independent). It leaves out what another seed changes.")  # fmt: skip
    title = f"Test {run.metric} on each task" + ("" if run.shows_accuracy else f", {direction(run.summary)}")
    return Sheet("tasks", title, header, rows, pd.DataFrame(rows, columns=header), foot, notes)


def _examples(run: Run) -> list[tuple[float, int]]:
    """Accuracy at the end on each task, and the number of test examples behind it."""
    return [(value, len(run.targets[task])) for task, value in enumerate(figure(run.summary, "per_task_acc"), 1)]


def _half_width(run: Run) -> float:
    """Half-width of the 95 % interval of the mean accuracy over independent tasks, from the intervals of the tasks."""
    widths = [high - low for low, high in starmap(share_interval, _examples(run))]
    return math.hypot(*widths) / 2 / len(widths)


def class_table(run: Run) -> Sheet:
    """Accuracy on each class, and the class that it is most often taken for."""
    rows = []
    for (task, name), part in analysis.confusion(run).groupby(["task", "class"], sort=False):
        n, right, wrong = part.n.sum(), part.n[part.answer == name].sum(), part[part.answer != name]
        worst = wrong.loc[wrong.n.idxmax()]
        mistaken = f"{worst.answer} ({worst.n})" if worst.n else ""
        rows.append([task, name, str(n), share(right / n) if n else "n/a", mistaken])
    header = ["task", "class", "test examples", "accuracy", "most often taken for (times)"]
    title, shown = "Accuracy on each class", rows
    if len(rows) > _CLASSES:
        title += f": the lowest {_CLASSES}, the CSV file has all"
        shown = sorted(rows, key=lambda row: row[3])[:_CLASSES]
    return Sheet("classes", title, header, shown, pd.DataFrame(rows, columns=header))


def scenario_table(run: Run) -> Sheet | None:
    """Accuracy without being told the task, mean over tasks seen, after up to five episodes; None if not measured."""
    whole = run.metrics.query("split == 'test' and slice == '' and episode > 0 and metric == @run.metric")
    measured = whole[whole.scenario.isin(WITHOUT_TASK)].rename(columns={"episode": "after episode"})
    if measured.empty:
        return None
    found = measured.groupby(["after episode", "scenario"])
    means = found.value.mean().unstack()
    means = means[[name for name in WITHOUT_TASK if name in means]]
    some = means.iloc[sorted({round(quarter * (len(means) - 1) / 4) for quarter in range(5)})]
    rows = [[str(episode), *map(share, line)] for episode, *line in some.itertuples()]
    note = (
        f"Mean over the tasks seen; {found.n.sum().iloc[-1]:,} test examples after the last episode. All heads of all "
        "networks are asked, and the task is the one whose answer has the lowest entropy, as a share of the highest "
        "possible. Heads were trained with the task told: this is not class- or domain-incremental learning. "
        "routed-class: task and class must be right."
    )
    if "routed-domain" in means:
        note += " routed-domain: only the class; -sum: the class with the largest sum over tasks."
    note += " A selection of the episodes; the CSV file has all." if len(some) < len(means) else ""
    title, data = "Accuracy where the task is not told (task-trained heads)", means.reset_index()
    return Sheet("without_task", title, [*data], rows, data, notes=[note])


def across_scenarios(groups: Sequence[Group]) -> Sheet | None:
    """Final accuracy of each method in the scenarios of the runs; None if all have the same one."""
    if len({compared.scenario_of(group) for group in groups}) < 2:
        return None
    table = compared.across_scenarios(groups)
    note = (
        "Final accuracy, mean over seeds. Domain: the task is not told, all tasks share a head; class: it is not told, "
        "one head has all classes seen. †: heads that were trained with the task told, asked without it. This is not "
        "class- or domain-incremental learning."
    )
    return Sheet("scenarios", "The same tasks in several scenarios", [*table], table.to_numpy().tolist(), table,
                 notes=[note])  # fmt: skip


def calibration_table(run: Run) -> Sheet:
    """NLL, Brier score and ECE of single members and of the ensemble, for each task."""
    table = analysis.calibrations(run)
    shown = {"accuracy": "accuracy", "nll": "NLL, nats", "brier": "Brier score", "ece": "ECE"}
    several = bool((table.members > 1).any())
    answers = ["one member", "ensemble"] if several else ["ensemble"]
    header = ["task", "members"]
    header += [f"{title}, {answer}" if several else title for title in shown.values() for answer in answers]
    columns = [(key, answer) for key in shown for answer in answers]
    by_task = table.pivot(index=["task", "members"], columns="answer", values=list(shown))[columns]
    rows = [[f"{task} {run.task_names[task - 1]}", str(count), *map(share, values)]
            for (task, count), *values in by_task.itertuples()]  # fmt: skip
    foot = ["mean", "", *map(share, by_task.mean())]
    notes = [
        "NLL: mean negative log-likelihood of the right class. Brier score: mean squared distance of the probabilities "
        f"from the right answer. ECE: expected calibration error, {BINS} bins of equal size. Lower is better."
    ]
    notes += ["One member: the mean over the members that answer the task, each alone."] if several else []
    return Sheet("calibration", "Before and after averaging" if several else "", header, rows, table, foot, notes)


def comparison_table(comparison: Comparison, columns: Sequence[Column], title: str, name: str) -> Sheet:
    """The groups against each other, as in studies/tables.py; the CSV has a row for each run."""
    table = comparison.table()
    rows = list(zip(table.rows, *(cells(column, table) for column in columns), strict=True))
    notes = [seeds_note(table), *(READING[3:] if columns is LEDGER else READING[:2])]
    raw = [
        [label, seed, *(values.get(column.key) for column in columns)]
        for label, runs in table.rows.items() for seed, values in runs.items()
    ]  # fmt: skip
    data = pd.DataFrame(raw, columns=["method", "seed", *(column.key for column in columns)])
    return Sheet(name, title, ["method", *(column.title for column in columns)], rows, data, notes=notes)


def examples_table(comparison: Comparison, suffix: str) -> Sheet | None:
    """Training examples of each task until it was answered well; None where runs were not asked, or never were good."""
    lines = [
        (group.label, seed, run.task_labels[task - 1], examples)
        for group in comparison.groups for seed, run in group.runs.items()
        if run.finished and run.shows_accuracy and curves_of(run.rows)[0]
        for _, task, _, examples in run.examples_to(_GOOD).itertuples(index=False)
    ]  # fmt: skip
    data = pd.DataFrame(lines, columns=["method", "seed", "task", "examples"]).astype({"examples": "Int64"})
    if data.examples.isna().all():
        return None
    shown = data.groupby(["method", "task"], sort=False).examples.agg(_reached).unstack(sort=False)
    rows = [[method, *cells] for method, *cells in shown.itertuples()]
    note = (
        f"Examples that were trained on in the task's episode, those of other tasks with them and replayed ones not, "
        f"until the accuracy was first at least {_GOOD:g}: mean over the seeds in which it was, as far as it was asked "
        "(--evaluate_every). Without an episode for each task: examples of the run."
    )
    title = f"Training examples until the accuracy is {_GOOD:g}"
    return Sheet(f"examples{suffix}", title, ["method", *shown.columns], rows, data, notes=[note])


def _reached(examples: "pd.Series[int]") -> str:
    """The mean of the numbers that are known, and of how many seeds it is."""
    known = examples.dropna()
    if known.empty:
        return "never"
    some = f" ({len(known)} of {len(examples)} seeds)" if len(known) < len(examples) else ""
    return f"{known.mean():,.0f}{some}"


def paired_table(comparison: Comparison, suffix: str) -> Sheet:
    """The difference of each group from the best."""
    table = comparison.table()
    scores = {
        label: {seed: figure(values, "avg_acc_final") for seed, values in runs.items()}
        for label, runs in table.rows.items()
    }  # fmt: skip
    differences = against_best(scores, table.first.get("higher_is_better", True))
    lines = [(label, *found) for label, found in differences.items()]
    rows = [
        [label, str(n), (signed(mean) if n else "n/a") + (f" ± {half:.4f}" if n > 1 else ""),
         f"{p:.3g}" if n > 1 else "n/a"]
        for label, n, mean, half, p in lines if len(lines) > 1
    ]  # fmt: skip
    score = table.first.get("metric", ACCURACY.name)
    notes = [
        f"Final {score} minus that of the best method with the same seed and task order, mean ± half-width of the "
        "95 % t-interval; p of the paired two-sided t-test, not corrected for multiple comparisons."
    ]
    data = pd.DataFrame(lines, columns=["method", "common_seeds", "difference", "half_width", "p"])
    header = ["method", "pairs", "difference from the best", "p"]
    return Sheet(f"paired{suffix}", "Paired differences", header, rows, data, notes=notes)


def options_table(comparison: Comparison, suffix: str) -> Sheet | None:
    """The options in which the groups differ; None if they differ in none."""
    options = comparison.differing_options()
    if not options:
        return None
    data = pd.DataFrame({"method": [group.label for group in comparison.groups], **options})
    return Sheet(f"options{suffix}", "Options that differ", [*data], data.to_numpy().tolist(), data, text=True)


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    summary, tiles = run.summary, []
    if not run.shows_accuracy:
        final = f"{figure(summary, 'avg_acc_final'):.4g}"
        tiles.append((f"final {run.metric}", final, f"mean over tasks; {direction(summary)}"))
    for key, title, note in (
        ("avg_acc_final", "final accuracy", "%, mean over tasks"),
        ("bwt", "backward transfer", "points, since the task's own episode"),
        ("forgetting_chaudhry", "forgetting", "points; below 0: none"),
        ("gain_isolated", "gain over isolated", "points, at the end"),
        ("fwt_isolated", "forward transfer", "points, right after the task's episode"),
    ):
        if run.shows_accuracy and summary.get(key) is not None:
            points = signed(100 * summary[key], 1)
            if key == "avg_acc_final":
                points = points.lstrip("+")
                note += f"; ± {100 * _half_width(run):.1f} (test examples)" if run.classifies else ""
            tiles.append((title, points, note))
    parameters = sum(member.parameters for member in run.members[-1:])
    tiles.append(("networks saved", str(len(run.members)), f"{readable(parameters)} parameters the last"))
    rate = summary["images_per_second"]
    speed = "nothing was trained" if rate is None else f"{rate:,.0f} images a second"
    return [*tiles, ("training time", duration(summary["train_seconds"]), speed)]


def _warnings(runs: Sequence[Run]) -> list[str]:
    return validated(runs) + [
        f"{run.path} is not finished: this is its state after episode {run.manifest.episode}"
        + (f" of {len(run.config['data']['tasks'])}." if run.continual else ".")
        for run in runs if not run.finished
    ]  # fmt: skip
