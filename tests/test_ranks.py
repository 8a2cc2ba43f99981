"""Ranks over streams, and what seeds and orders of tasks add, from tables of results."""

import csv
import io
import math
import re

import pytest

from reporting.ranks import ranks_section as draw
from reporting.style import svg_and_png
from studies.ranks import ranking, ranks_section
from studies.replicates import Replicate
from studies.tables import LEDGER, METRICS, ComparisonTable
from studies.variance import splits, variance_csv, variance_section

REST = dict.fromkeys(column.key for column in (*METRICS, *LEDGER)) | {"metric": "accuracy", "higher_is_better": True}


def table(title, rows, **facts):
    """A table from label -> list over seeds, of values or of lists over orders."""
    runs = {
        label: {
            Replicate(seed, order): {**REST, **facts, "avg_acc_final": value}
            for seed, values in enumerate(over)
            for order, value in (enumerate(values) if isinstance(values, list) else [(-1, values)])
            if value is not None
        }
        for label, over in rows.items()
    }
    return ComparisonTable(title, max(map(len, rows.values())), runs)


def lower_is_better(title, rows):
    """The same with a main metric that should be low."""
    made = table(title, rows, metric="error", higher_is_better=False)
    renamed = {
        label: {each: {("avg_error_final" if k == "avg_acc_final" else k.replace("learning_acc", "learning_error")): v
                       for k, v in run.items()} for each, run in runs.items()}
        for label, runs in made.rows.items()
    }  # fmt: skip
    return ComparisonTable(title, made.seeds, renamed)


def test_ranks_are_of_means_over_streams():
    """Streams one and two: a, then b, then c; in stream three a and b share the rank 1.5."""
    found = ranking([
        table("one", {"c": [0.1, 0.1], "a": [0.8, 1.0], "b": [0.8, 0.9]}),
        table("two", {"c": [0.2], "a": [0.9], "b": [0.8], "only here": [1.0]}),
        table("three", {"a": [0.3, 0.1], "b": [0.1, 0.3], "c": [0.0, 0.0]}),
    ])  # fmt: skip
    assert list(found.ranks) == ["a", "b", "c"]
    assert list(found.ranks.values()) == pytest.approx([3.5 / 3, 5.5 / 3, 3])
    # Sums of ranks 3.5, 5.5 and 9 about 6; one tie of two: C = 1 - 6 / (3 · 3 · 8).
    assert found.test.chi2 == pytest.approx(12 / (3 * 3 * 4) * (2.5**2 + 0.5**2 + 3**2) / (1 - 6 / 72))
    assert found.difference == pytest.approx(2.3437 * math.sqrt(3 * 4 / (6 * 3)), abs=1e-3)
    assert (found.groups, found.left_out) == ([("a", "b", "c")], ["only here"])


def test_a_metric_that_should_be_low_is_ranked_by_its_lowest():
    values = {"a": [0.1], "b": [0.2]}
    assert list(ranking([lower_is_better("one", values), lower_is_better("two", values)]).ranks) == ["a", "b"]
    assert list(ranking([table("one", values), table("two", values)]).ranks) == ["b", "a"]


def test_methods_are_separated_where_ranks_are_far_apart():
    """20 streams alike: ranks 1, 2, 3 and CD = 2.344 sqrt(12 / 120) = 0.74."""
    text = ranks_section([table(f"s{n}", {"a": [0.9], "b|": [0.5], "c": [0.1]}) for n in range(20)])
    lines = [[cell.strip() for cell in line.replace("\\|", "¦").split("|")[1:-1]] for line in text.splitlines()[4:7]]
    assert lines == [["a", "1.00", ""], ["b¦", "2.00", ""], ["c", "3.00", ""]]
    assert "Critical difference at 5 %: 0.74 ranks." in text
    assert "little power" not in text


def test_few_streams_say_what_they_cannot_show():
    same = {"a": [0.9], "b": [0.5], "c": [0.1]}
    text = ranks_section([table("one", same), table("two", same)])
    assert text.startswith("## Ranks over 2 streams\n")
    p = float(re.search(r"by permutations p = ([0-9.]+)\.\n", text)[1])
    assert p == pytest.approx(1 / 6, abs=0.012)  # the second stream has the ranks of the first by chance: 1 / 3!
    assert ranks_section([table("one", {"a": [0.5], "b": [0.5]})] * 2).count("all means are equal") == 1


@pytest.mark.parametrize(
    "rows", [[{"a": [1.0], "b": [0.5]}], [{"a": [1.0]}, {"a": [0.5]}], [{"a": [1.0], "b": []}, {"a": [], "b": [1.0]}]]
)
def test_nothing_to_rank(rows):
    assert ranks_section([table(str(n), each) for n, each in enumerate(rows)]) == ""


def test_what_seeds_and_orders_add_by_hand():
    """The example of the estimates: variances 16, 6 and 4; a third seed lacks an order and is left out."""
    tables = [
        table("s", {"er": [[4.0, 6.0], [8.0, 14.0], [100.0, None]], "flat": [[0.0, 1.0], [1.0, 0.0]]}),
        table("t", {"er": [1.0, 2.0]}),  # no orders
    ]
    er, flat = splits(tables)
    assert (er.stream, er.label, er.seeds, er.orders) == ("s", "er", 2, 2)
    assert er.variances == pytest.approx((16, 6, 4))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in variance_section([er, flat]).splitlines()[4:6]]
    assert rows[0] == ["s", "er", "2", "2", "4.0000", f"{math.sqrt(6):.4f}", "2.0000"]
    assert rows[1][4:] == ["0.0000 †", "0.0000 †", "1.0000"]
    written = list(csv.DictReader(io.StringIO(variance_csv([er, flat]).decode())))
    assert [float(row["variance_seed"]) for row in written] == [16, -0.5]
    assert variance_section(splits(tables[1:])) == ""


def test_the_diagram_shows_ranks_and_joins_what_is_not_separated():
    values = {"a": [0.9], "<b>": [0.8], "c": [0.1]}
    swapped = {"a": [0.8], "<b>": [0.9], "c": [0.1]}
    section = draw([table(f"s{n}", values if n % 2 else swapped) for n in range(20)])
    (picture,) = section.pictures
    assert picture.data.values.tolist() == [["a", 1.5, "1"], ["<b>", 1.5, "1"], ["c", 3.0, ""]]
    (axes,) = picture.drawn.axes
    bars = [line.get_xdata() for line in axes.lines if line.get_linewidth() > 3]
    assert len(bars) == 1
    assert bars[0].min() < 1.5 < bars[0].max() < 2
    svg, _ = svg_and_png(picture.drawn)
    assert re.findall(r">([^<]*\d\.\d\d[^<]*)<", svg) == ["CD = 0.74", "a  1.50", "&lt;b&gt;  1.50", "3.00  c"]
    assert draw([table("one", values)]) is None
