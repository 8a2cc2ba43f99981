"""How much of the variance of results comes from the seed, and how much from the order of the tasks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from studies.statistics import Components, variance_components
from studies.tables import ComparisonTable, markdown_table, markdown_text
from utils.files import csv_bytes

READING = (
    "Standard deviations of the main metric between seeds, between orders of the tasks, and of the rest: their "
    "interaction and all else that a run draws. A two-way model with random effects, by the method of moments (Searle, "
    "Casella & McCulloch 1992), over the seeds that have finished with all orders.",
    "†: the estimate of the variance is below 0 and shown as 0, which chance does where the effect is small. With two "
    "or three seeds or orders the estimates are rough.",
    "Where the seed or the order has a large share, runs that have it in common are not independent, and intervals of "
    "means over all of them are too narrow. Pairs are compared without what it adds to both methods alike.",
)
_PARTS = ("seed", "order", "rest")


class Split(NamedTuple):
    """The estimated variances of one label on one stream."""

    stream: str
    label: str
    seeds: int
    orders: int
    variances: Components


def splits(tables: Sequence[ComparisonTable]) -> list[Split]:
    """The variances of every label with at least two seeds that have finished with at least two orders each."""
    found = []
    for table in tables:
        key = table.metrics[0].key
        for label, runs in table.rows.items():
            values = {each: run[key] for each, run in runs.items() if run[key] is not None}
            orders = sorted({each.order for each in values})
            by_seed = {seed: [run for each, run in sorted(values.items()) if each.seed == seed]
                       for seed in {each.seed for each in values}}  # fmt: skip
            whole = [row for row in by_seed.values() if len(row) == len(orders)]
            if len(orders) > 1 and len(whole) > 1:
                variances = variance_components(np.array(whole))
                found.append(Split(table.title, label, len(whole), len(orders), variances))
    return found


def variance_section(found: Sequence[Split]) -> str:
    """The standard deviations in Markdown below a heading, and how to read them; "" if there are none."""
    if not found:
        return ""
    rows = [
        [markdown_text(each.stream), markdown_text(each.label), str(each.seeds), str(each.orders),
         *(f"{math.sqrt(max(0.0, part)):.4f}{' †' * (part < 0)}" for part in each.variances)]
        for each in found
    ]  # fmt: skip
    titles = ("stream", "method", "seeds", "orders", *(f"sd, {part}" for part in _PARTS))
    columns = [[title, *cells] for title, *cells in zip(titles, *rows, strict=True)]
    notes = "\n".join(f"- {note}" for note in READING)
    return "\n\n".join(["## What seeds and task orders add", markdown_table(columns), notes]) + "\n\n"


def variance_csv(found: Sequence[Split]) -> bytes:
    """A row for each label and stream with the estimated variances, also where they are below 0."""
    rows: list[list[object]] = [["stream", "label", "seeds", "orders", *(f"variance_{part}" for part in _PARTS)]]
    return csv_bytes([*rows, *([*each[:4], *each.variances] for each in found)])
