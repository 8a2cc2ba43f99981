"""Settings of the recipe that vary in a study, chosen on development examples and reported on test examples."""

from collections.abc import Mapping, Sequence

import numpy as np

from datasets.objectives import CrossEntropy
from datasets.task import DEV
from evaluation.measurements import TRAINED
from records.directory import shared_config
from records.manifest import read_manifest
from records.summary import figure
from records.tables import read_measurements
from studies.planned import PlannedRun
from studies.statistics import mean_interval
from studies.tables import Values, markdown_table, markdown_text
from zoo.saved import Zoo

READING = (
    "Of the values of `vary` and `together` that begin with hp., those with the best mean over runs on development "
    "examples: the split dev, or what hold_out sets aside, of all tasks after the last one. Test examples have no say.",
    "The best single run is chosen in the same way among the runs with these values. Intervals are those of the chosen "
    "values, as if they had been known before. In other tables the best of several values is chosen by eye on the test "
    "examples, which flatters it.",
)


def development_score(run: PlannedRun) -> float | None:
    """The main metric of a finished run on development examples, mean over tasks at its end; None if it has none."""
    manifest = read_manifest(run.directory)
    if manifest is None or not manifest.episode:
        return None
    rows, _ = read_measurements(run.directory, manifest)
    values = [
        row.main for row in rows
        if row.episode == manifest.episode and row.split == DEV and not row.slice and row.scenario in TRAINED.values()
    ]  # fmt: skip
    held_out = not values and run.config.data.hold_out > 0
    if held_out and shared_config(run.directory, manifest).get("objective") == CrossEntropy.__name__:
        found = Zoo.load(run.directory, "cpu").held_out_scores()
        values = [next(iter(scores.values())).value for scores in found.values()]
    return float(np.mean(values)) if values else None


def tuned_section(runs: Sequence[tuple[str, PlannedRun]], measured: Mapping[str, Values]) -> str:
    """The chosen settings in Markdown below a heading; "" if no recipe varies, or there are no development examples.

    A method of which a run is still missing is left out.

    `runs` are those of a grid, each with the title of its table; `measured` has the figures of finished ones by name.
    """
    cells: dict[tuple[str, str], dict[str, list[PlannedRun]]] = {}
    for title, run in runs:
        if run.untuned:
            cells.setdefault((title, run.untuned), {}).setdefault(run.label, []).append(run)
    rows = [
        [title, untuned, *row]
        for (title, untuned), labels in cells.items()
        if len(labels) > 1
        and all(run.name in measured for found in labels.values() for run in found)
        and (row := _chosen(labels, untuned))
    ]
    if not rows:
        return ""
    titles = ("stream", "method", "chosen", "development", "test", "best run by development: development", "its test")
    columns = [[name, *map(markdown_text, found)] for name, *found in zip(titles, *rows, strict=True)]
    notes = "\n".join(f"- {note}" for note in READING)
    return "\n\n".join(["## Chosen on development examples", markdown_table(columns), notes]) + "\n\n"


def _chosen(labels: Mapping[str, Sequence[PlannedRun]], untuned: str) -> list[str]:
    """The cells of the row of a method; [] if a run has no development examples."""
    known: dict[str, list[float]] = {label: [] for label in labels}
    for label, found in labels.items():
        for run in found:
            if (score := development_score(run)) is None:  # the others need not be read
                return []
            known[label].append(score)
    sign = 1 if next(iter(labels.values()))[0].summary["higher_is_better"] else -1
    best = max(known, key=lambda label: sign * float(np.mean(known[label])))
    runs, development = labels[best], known[best]
    test = [figure(run.summary, "avg_acc_final") for run in runs]
    place = int(np.argmax(sign * np.array(development)))
    words = [word for word in best.split(", ") if word not in untuned.split(", ")]
    return [", ".join(words), _shown(development), _shown(test), f"{development[place]:.4f}", f"{test[place]:.4f}"]


def _shown(values: Sequence[float]) -> str:
    mean, half = mean_interval(values)
    return f"{mean:.4f}" + ("" if np.isnan(half) else f" ± {half:.4f}")
