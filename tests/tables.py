"""metrics.csv as a table with a column for each metric."""

from pathlib import Path

import pandas as pd

WHERE = ["episode", "step", "examples", "task", "task_name", "split", "slice", "scenario"]


def read_metrics(run):
    """A row for each measurement; floats have every digit that was written."""
    lines = pd.read_csv(Path(run) / "metrics.csv", float_precision="round_trip", keep_default_na=False)
    wide = lines.pivot(index=WHERE, columns="metric", values="value")
    n = lines[lines.metric == lines.metric[0]].set_index(WHERE).n
    return wide.assign(n=n).reset_index().rename_axis(columns=None)
