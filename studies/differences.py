"""The table of a study with a reference: how much every other label differs from it, on every stream."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from records.summary import signed
from studies.statistics import against, holm
from studies.tables import ComparisonTable, markdown_table, markdown_text

READING = (
    "± : half-width of the 95 % t-interval of the mean difference, paired over the seeds that both have.",
    "p: of the paired two-sided t-test; corrected p: for all comparisons of this table together (Holm 1979). Bold: "
    "corrected p below 0.05.",
    "entropy: of the sampling weights, relative to that of equal weights, mean over episodes with a choice and over "
    "seeds. Near 1 a selector draws as uniform selection does, and no difference can be expected.",
    "images: examples trained on, relative to those of the reference.",
)
_ALPHA = 0.05


class Difference(NamedTuple):
    """One label against the reference on one stream; NaN where undefined."""

    stream: str
    label: str
    seeds: int  # that both have
    mean: float
    half: float
    p: float
    corrected: float
    entropy: float
    images: float


def differences(tables: Sequence[ComparisonTable], reference: str) -> list[Difference]:
    """Every label but the reference against it on every stream, in final accuracy or the main metric in its place."""
    found: list[Difference] = []
    for table in tables:
        key = table.metrics[0].key
        values = {
            label: {seed: run[key] for seed, run in runs.items() if run[key] is not None}
            for label, runs in table.rows.items()
        }
        for label, runs in table.rows.items():
            if label == reference:
                continue
            other = table.rows.get(reference, {})
            compared = against(values[label], values.get(reference, {}))
            common = [seed for seed in runs.keys() & other.keys() if other[seed]["images_trained"]]
            entropy = [run["selection_entropy"] for run in runs.values() if run.get("selection_entropy") is not None]
            images = [runs[seed]["images_trained"] / other[seed]["images_trained"] for seed in common]
            found.append(Difference(table.title, label, *compared, math.nan, _mean(entropy), _mean(images)))
    corrected = holm([each.p for each in found])
    return [each._replace(corrected=p) for each, p in zip(found, corrected, strict=True)]


def differences_table(tables: Sequence[ComparisonTable], reference: str) -> str:
    """The differences in Markdown, below a heading and above how to read them."""
    rows = [_cells(each) for each in differences(tables, reference)]
    titles = ("stream", "method", "seeds", f"difference from {reference}", "p", "corrected p", "entropy", "images")
    columns = [[markdown_text(title), *cells] for title, *cells in zip(titles, *rows, strict=True)]
    parts = [
        f"## {markdown_text(f'Differences from {reference}')}", markdown_table(columns),
        "\n".join(f"- {note}" for note in READING),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n\n"


def _cells(each: Difference) -> list[str]:
    mean = "n/a" if math.isnan(each.mean) else signed(each.mean)
    half = "" if math.isnan(each.half) else f" ± {each.half:.4f}"
    bold = "**" * (each.corrected < _ALPHA)
    numbers = (_number(value, digits) for value, digits in zip(each[5:], (3, 3, 3, 2), strict=True))
    return [markdown_text(each.stream), markdown_text(each.label), str(each.seeds), f"{bold}{mean}{half}{bold}",
            *numbers]  # fmt: skip


def _number(value: float, digits: int) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
