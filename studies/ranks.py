"""Ranks of the methods of a study over its streams, and which of them a test separates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from studies.statistics import Friedman, critical_difference, friedman, not_separated, permuted_p, ranks
from studies.tables import ComparisonTable, markdown_table, markdown_text

READING = (
    "Rank: 1 for the best mean of a stream, equal means share theirs; the mean over streams, each with one network. "
    "Streams count as independent: several networks on one stream, or streams of the same data, are less than that.",
    "Friedman's test (1937) asks whether all methods rank alike, with F as Iman & Davenport (1980) correct it. Over "
    "fewer than five streams only the p by permutations (10,000 random ones of the ranks of each stream) can be "
    "trusted. Only if that is below 0.05, look at pairs: Nemenyi's test separates two methods at 5 % if their mean "
    "ranks differ by at least the critical difference (Demšar 2006). Ranks forget how far methods are apart.",
)


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of methods over streams; `groups` are the largest groups that Nemenyi's test does not separate."""

    streams: int
    ranks: dict[str, float]  # label -> mean rank, best first
    test: Friedman
    permuted_p: float  # of the same test
    difference: float  # that separates two mean ranks at 5 %
    groups: Sequence[tuple[str, ...]]
    left_out: Sequence[str]  # labels that have not finished on every stream

    @property
    def title(self) -> str:
        return f"Ranks over {self.streams} streams"

    @property
    def words(self) -> list[str]:
        """The tests, what few streams can show and who is left out, a sentence each."""
        test, largest = self.test, len(self.ranks) - 1
        said = [
            "Friedman's test: all means are equal." if math.isnan(test.chi2) else
            f"Friedman's test: chi² = {test.chi2:.3g}, p = {test.p:.3g}; F = {test.f:.3g}, p = {test.f_p:.3g}; "
            f"by permutations p = {self.permuted_p:.2g}.",
            f"Critical difference at 5 %: {self.difference:.2f} ranks.",
        ]  # fmt: skip
        if self.difference > largest:
            said.append(f"Mean ranks differ by at most {largest}: over so few streams no two methods can be separated.")
        if self.left_out:
            said.append(f"Left out, as they have no finished run on some stream: {', '.join(self.left_out)}.")
        return said


def ranking(tables: Sequence[ComparisonTable]) -> Ranking | None:
    """The ranks of the labels that all tables have, by their means; None with fewer than two tables or labels."""
    means = [_means(table) for table in tables if table.first]
    every = list(dict.fromkeys(label for table in tables for label in table.rows))
    shared = [label for label in every if all(label in found for found in means)]
    if len(means) < 2 or len(shared) < 2:
        return None
    # Rounded, as means of the same values in another order can differ in their last digit, which is no rank.
    scores = np.round([[found[label] for label in shared] for found in means], 12)
    by_label = dict(zip(shared, ranks(scores).mean(0).tolist(), strict=True))
    best_first = dict(sorted(by_label.items(), key=lambda item: item[1]))
    difference = critical_difference(len(shared), len(means))
    left_out = [label for label in every if label not in shared]
    return Ranking(
        len(means),
        best_first,
        friedman(scores),
        permuted_p(scores),
        difference,
        not_separated(best_first, difference),
        left_out,
    )


def ranks_section(tables: Sequence[ComparisonTable]) -> str:
    """The ranks in Markdown below a heading, and how to read them; "" where there is nothing to rank."""
    if (found := ranking(tables)) is None:
        return ""
    columns = [
        ["method", *map(markdown_text, found.ranks)],
        ["mean rank", *(f"{rank:.2f}" for rank in found.ranks.values())],
        ["not separated from", *(markdown_text(", ".join(not_separated_from(found, label))) for label in found.ranks)],
    ]
    notes = [*map(markdown_text, found.words), *READING]
    return (
        "\n\n".join([f"## {found.title}", markdown_table(columns), "\n".join(f"- {note}" for note in notes)]) + "\n\n"
    )


def not_separated_from(found: Ranking, label: str) -> list[str]:
    """The other methods that share a group with `label`, best first."""
    near = {other for group in found.groups if label in group for other in group}
    return [other for other in found.ranks if other in near and other != label]


def _means(table: ComparisonTable) -> dict[str, float]:
    """The mean of the main metric of each label that has finished runs, signed so that higher is better."""
    column = table.metrics[0]
    found = {label: [run[column.key] for run in runs.values() if run[column.key] is not None]
             for label, runs in table.rows.items()}  # fmt: skip
    sign = 1 if column.higher_is_better else -1
    return {label: sign * float(np.mean(values)) for label, values in found.items() if values}
