"""What evaluations have found inside networks of sequence mixers, as data frames: names of scores are taken apart."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from datasets.objectives import Scored
from datasets.synthetic.language import ORIGINAL, TARGET
from evaluation.interchange import NAMED, SITE
from evaluation.measurements import Measurement
from records.run import Array, Run
from reporting import task_analysis as analysis

INTERCHANGE = "interchange"
_CELL = re.compile(r"restored probability (?P<site>\S+)@(?P<item>\S+) of (?P<corrupted>\S+)")
_PROBE = re.compile(r"accuracy (?P<label>\S+) from (?P<site>\S+)@(?P<item>\S+)")
_WEIGHT = re.compile(r"weight (?P<head>.+) (?P<later>\S+)>(?P<earlier>\S+)")
_PART = re.compile(r"attribution (?P<part>.+)")
_MOVED = re.compile(r"restored (?P<source>\d+) into (?P<network>\d+) (?P<site>\S+)@(?P<item>\S+) of (?P<corrupted>\S+)")


def rows_of(run: Run, evaluation: str) -> list[Measurement]:
    """What an evaluation has found on the way, a row a time."""
    return [row for row in run.rows if row.scenario == evaluation]


def over_training(run: Run) -> pd.DataFrame:
    """Lines score, step, examples, value, low and high: the main metric, and each named association, NaN if undefined.

    Empty if they were not asked, or cannot be, for want of a second layer.
    """
    rows = rows_of(run, INTERCHANGE)
    if not any(f"restored probability {SITE}@{TARGET} of {ORIGINAL}" in row.scores for row in rows):
        return pd.DataFrame()
    curve = analysis.curve(run).rename(columns={run.metric: "value"})
    lines = [curve[["step", "examples", "value"]].assign(score=run.metric)]
    for score in NAMED:
        names = [score, f"{score} low", f"{score} high"]
        found = [[row.step, row.examples, *(_value(row.scores, name) for name in names)] for row in rows]
        columns = ["step", "examples", "value", "low", "high"]
        lines.append(pd.DataFrame(found, columns=columns).assign(score=score))
    return pd.concat(lines, ignore_index=True).reindex(columns=["score", *columns])


def associations(run: Run) -> pd.DataFrame:
    """Lines corrupted, site, item, association, low, high, stderr and restored probability, of the last evaluation."""
    kinds = {"association": "association", "low": "association low", "high": "association high"}

    def line(cell: Mapping[str, str], scores: Mapping[str, Scored], restored: Scored) -> dict[str, object]:
        where = f"{cell['site']}@{cell['item']} of {cell['corrupted']}"
        values = {name: _value(scores, f"{kind} {where}") for name, kind in kinds.items()}
        known = scores.get(f"association {where}")
        return {**values, "stderr": known.stderr if known else np.nan, "restored probability": restored.value}

    return _lines(run, INTERCHANGE, _CELL, line)


def probed(run: Run) -> pd.DataFrame:
    """Lines label, site, item, accuracy, control and selectivity, of the last evaluation; NaN without a control."""

    def line(cell: Mapping[str, str], scores: Mapping[str, Scored], accuracy: Scored) -> dict[str, object]:
        where = f"{cell['label']} from {cell['site']}@{cell['item']}"
        others = {name: _value(scores, f"{name} {where}") for name in ("control", "selectivity")}
        return {"accuracy": accuracy.value, **others}

    return _lines(run, "probes", _PROBE, line)


def attended(run: Run) -> pd.DataFrame:
    """Lines head, later, earlier, weight and n, of the last evaluation."""
    return _lines(run, "attention", _WEIGHT, lambda _cell, _scores, found: {"weight": found.value, "n": found.n})


def attributed(run: Run) -> pd.DataFrame:
    """Lines part, step, examples, value and stderr of each time; the part "logit" is the sum."""
    lines = [
        (_PART.sub(r"\g<part>", name), row.step, row.examples, found.value, found.stderr)
        for row in rows_of(run, "attribution") for name, found in row.scores.items()
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=["part", "step", "examples", "value", "stderr"]).astype({"stderr": float})


def transplanted(run: Run) -> pd.DataFrame:
    """Lines source, network (steps), site, item, corrupted, restored and stderr, of the last evaluation."""
    found = _lines(run, "transplant", _MOVED, lambda _cell, _scores, found: {"restored": found.value,
                   "stderr": found.stderr})  # fmt: skip
    return found if found.empty else found.astype({"source": int, "network": int})


def compared_steps(run: Run) -> list[int]:
    """The steps of the networks that were compared by transplants, also of those in which nothing can be restored."""
    found = re.compile(r"effect (\d+) of \S+")
    return [int(match[1]) for row in rows_of(run, "transplant")[-1:] for name in row.scores
            if (match := found.fullmatch(name))]  # fmt: skip


def table(lines: pd.DataFrame, row: str, column: str, value: str) -> tuple[Array, list[str], list[str]]:
    """Values as a table, NaN where there is no line; names of its rows and columns, in the order in which they come."""
    rows, columns = list(dict.fromkeys(lines[row])), list(dict.fromkeys(lines[column]))
    wide = lines.pivot(index=row, columns=column, values=value).reindex(index=rows, columns=columns)
    return wide.to_numpy(float), rows, columns


def in_order(run: Run, lines: pd.DataFrame, column: str = "item") -> pd.DataFrame:
    """Lines sorted by item as documents have them: where a key is the answer, it stands before the value."""
    data = run.config["data"]
    before = (data["tasks"][0].get("ask") or data.get("ask")) == "value"
    items = list(dict.fromkeys(lines[column]))
    if before and {TARGET, ORIGINAL} <= {*items}:
        items.remove(TARGET)
        items.insert(items.index(ORIGINAL), TARGET)
    return lines.sort_values(column, key=lambda names: names.map(items.index), kind="stable")


def _lines(
    run: Run, evaluation: str, pattern: re.Pattern[str],
    line: Callable[[Mapping[str, str], Mapping[str, Scored], Scored], dict[str, object]],
) -> pd.DataFrame:  # fmt: skip
    """A line for each score of the last evaluation whose name fits; empty if it was not asked."""
    last: Sequence[Measurement] = rows_of(run, evaluation)[-1:]
    return pd.DataFrame([
        {**match.groupdict(), **line(match.groupdict(), row.scores, found)}
        for row in last for name, found in row.scores.items() if (match := pattern.fullmatch(name))
    ])  # fmt: skip


def _value(scores: Mapping[str, Scored], name: str) -> float:
    return scores[name].value if name in scores else np.nan
