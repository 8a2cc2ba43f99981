"""What the report of runs of train_task.py shows, as data frames and arrays."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from datasets import build_stream
from datasets.synthetic.algorithmic import AlgorithmConfig
from datasets.synthetic.algorithms import ALGORITHMS
from datasets.task import DEV, TEST
from evaluation.measurements import ANYTIME
from evaluation.regions import compared
from evaluation.subject import Subject
from net.sequences.handcrafted import LENGTHS, handcrafted_2nd_argmax
from net.sequences.rnn import RNN
from records.configuration import determining, saved_config
from records.run import Array, Run
from records.task_config import METHOD, TaskRunConfig
from utils.compute import Compute

PICTURED = 8  # the most checkpoints whose weights are shown
_SIDE = 64  # the most rows and columns of a matrix that is shown
_MATRICES = 12
_REGIONS = 20


def is_watched(run: Run) -> bool:
    """Whether it is a run of train_task.py."""
    return bool(run.config["method"] == METHOD)


def labelled(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by a name: their seed or, if they differ in other options, their directory and seed."""
    ordered = sorted(runs, key=lambda run: (str(run.path.parent), run.config["seed"], run.name))
    options = [{k: v for k, v in determining(run.config).items() if k != "seed"} for run in ordered]
    seeds = [run.config["seed"] for run in ordered]
    if all(own == options[0] for own in options) and len(set(seeds)) == len(seeds):
        return {f"seed {seed}": run for seed, run in zip(seeds, ordered, strict=True)}
    short = {f"{run.path.parent.name}/{run.name}": run for run in ordered}
    return short if len(short) == len(ordered) else {str(run.path): run for run in ordered}


def watched_split(run: Run) -> str:
    """The split on which the network was evaluated on its way."""
    return next(row.split for row in run.rows if row.scenario == ANYTIME)


def best(runs: Mapping[str, Run]) -> str | None:
    """The name of the run whose last network is best on development examples; None if there are no such examples."""
    if any(watched_split(run) == TEST for run in runs.values()):
        return None
    last = {name: float(curve(run)[run.metric].iloc[-1]) for name, run in runs.items()}
    sign = 1 if next(iter(runs.values())).config["higher_is_better"] else -1
    return max(last, key=lambda name: -math.inf if math.isnan(last[name]) else sign * last[name])


def curve(run: Run) -> pd.DataFrame:
    """The scores of the whole split on the way: step, examples, and a column for each metric."""
    split = watched_split(run)
    rows = [row for row in run.rows if row.split == split and not row.slice and row.scenario == ANYTIME]
    scores = [{name: score.value for name, score in row.scores.items()} for row in rows]
    places = [{"step": row.step, "examples": row.examples} for row in rows]
    return pd.DataFrame([place | own for place, own in zip(places, scores, strict=True)])


def slices(run: Run) -> dict[str, pd.DataFrame]:
    """By kind of slice: slice, step, examples and the main metric; "gap 1 of 4" is of the kind gap."""
    split = watched_split(run)
    found: dict[str, list[dict[str, object]]] = {}
    for row in run.rows:
        if row.split == split and row.slice and row.scenario == ANYTIME:
            line = {"slice": row.slice, "step": row.step, "examples": row.examples, run.metric: row.main}
            found.setdefault(kind_of(row.slice), []).append(line)
    return {kind: pd.DataFrame(lines) for kind, lines in found.items()}


def kind_of(slice: str) -> str:
    """The first word of the name of a slice."""
    return re.match(r"[a-z]*", slice.lower())[0] or "slice"  # type: ignore[index]


def answers(run: Run, evaluation: str) -> pd.DataFrame:
    """What an evaluation has found on the way: a line a time, with step, examples and a column for each score."""
    rows = [row for row in run.rows if row.scenario == evaluation]
    return pd.DataFrame([
        {"step": row.step, "examples": row.examples, **{name: score.value for name, score in row.scores.items()}}
        for row in rows
    ])  # fmt: skip


def settings_of(run: Run) -> TaskRunConfig:
    """The configuration of a run."""
    return saved_config(str(run.path / "config.yaml"), run.config, TaskRunConfig)  # type: ignore[no-any-return]


def uninformed_loss(run: Run) -> float | None:
    """The loss of the uninformed prediction; None if an unfinished run does not tell it."""
    if "uninformed_loss" in run.summary:
        return float(run.summary["uninformed_loss"])
    data = settings_of(run).data
    if isinstance(data, AlgorithmConfig) and run.shows_accuracy:
        return math.log(ALGORITHMS[data.tasks[0].task].outputs(data.tasks[0].length or data.settings.length))
    return None


def baselines(run: Run) -> dict[str, float]:
    """The main metric of answers that need no network, by name."""
    loss = uninformed_loss(run)
    chance = {"chance": math.exp(-loss)} if run.shows_accuracy and loss is not None else {}
    return settings_of(run).data.baselines(0) or chance


def weights(run: Run) -> tuple[list[int], dict[str, list[Array]]]:
    """Up to eight checkpoints, evenly among those there are, and by name each matrix of weights at these steps."""
    steps = list(run.checkpoints)
    steps = [steps[place] for place in sorted({round(p) for p in np.linspace(0, len(steps) - 1, PICTURED)})]
    states = [run.checkpoints[step].weights() for step in steps]
    shapes = {name: value.shape for name, value in states[0].items() if value.ndim == 2 and value.numel()}
    shown = [name for name, shape in shapes.items() if max(shape) <= _SIDE]
    return steps, {name: [state[name].double().numpy() for state in states] for name in shown[:_MATRICES]}


def handcrafted(run: Run) -> pd.DataFrame | None:
    """How the handcrafted network does in the most visited regions of the last one; None if there is no such network.

    The first line is of all development examples.
    """
    config = settings_of(run)
    data, last = config.data, max(run.checkpoints, default=None)
    if not isinstance(data, AlgorithmConfig) or last is None or data.tasks[0].task != "2nd_argmax":
        return None
    net = run.checkpoints[last].network()
    if not isinstance(net.trunk, RNN) or (data.tasks[0].length or data.settings.length) not in LENGTHS:
        return None
    stream = build_stream(data, config.seed, torch.device("cpu"))
    task = stream.tasks[0]
    subject = Subject(net, task.with_splits(test=task.splits[DEV]), stream.spec, Compute(torch.device("cpu")))
    found = compared(subject, handcrafted_2nd_argmax(stream.spec.input_shape[0]), _REGIONS)
    names = ["all", *map(str, range(1, len(found)))]
    table = pd.DataFrame([asdict(part) for part in found])
    table.insert(1, "share", table.examples / table.examples[0])
    table.insert(0, "region", names)
    return table.rename(columns={"right": "network", "other_right": "handcrafted", "same": "same answer"})
