"""Whether networks reuse the geometry of features from one task of superposition to the next: a table of methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from datasets.objectives import Reconstruction
from evaluation.reuse import Pair, important, represented, similarity
from net.autoencoder import Autoencoder
from records.configuration import saved_config
from records.members import SavedMember, answering, read_network
from records.run import Run
from reporting.groups import Group
from reporting.layout import Sheet
from studies.statistics import mean_interval

_COMPARED = ("carried over", "kept", "as isolated", "as others")
_NOTES = (
    "Similarity of two networks: the cosine of W'W, without its diagonal, over the features that are compared: 1 if "
    "the same features share directions in the same way, 0 if that is independent. Features are important to a task "
    "from half of its largest importance. Mean ± half-width of the 95 % t-interval over seeds.",
    "Carried over: the network of an episode and that of the episode before, on features important to both new tasks; "
    "for isolated, of two networks that know nothing of each other. Kept: the network at the end and that "
    "of the task's own episode, on features important to the task. As isolated, as others: the networks that "
    "answer at the end and isolated ones of all other runs, on features important to the task of the isolated one, "
    "which is among those of the network, or not.",
    "Features represented: share of squared length 0.5 or more, of those important to the newest task of a network, "
    "only to its past tasks, or to none of them. Loss: at the end over that of the uninformed prediction, mean over "
    "tasks.",
)


@dataclass(frozen=True)
class Geometries:
    """The vectors of the features in the networks of a run, and what is important to its tasks."""

    run: Run

    @cached_property
    def vectors(self) -> list[Tensor]:
        """[n, f] of each saved network, in the order of joining."""
        config = saved_config(str(self.run.path / "config.yaml"), self.run.config)
        found = []
        for member in self.run.members:
            net, _ = read_network(self.run.path, self.run.manifest, member, config, torch.device("cpu"))
            assert isinstance(net.trunk, Autoencoder)
            found.append(net.trunk.vectors().detach())
        return found

    @cached_property
    def important(self) -> dict[int, list[int]]:
        """Task -> the features that are important to it."""
        return {task: important(torch.from_numpy(found[0, 1])) for task, found in self.run.targets.items()}

    @property
    def answering(self) -> Sequence[SavedMember]:
        """The networks that answer at the end."""
        return answering(self.run.members)

    def carried(self) -> list[Pair]:
        """Each network and the one before, on features important to the newest task of both."""
        if not self.run.continual:
            return []
        return [
            (self.vectors[one.number], self.vectors[other.number], shared)
            for one, other in pairwise(self.run.members)
            if (shared := self._shared(max(one.tasks), max(other.tasks)))
        ]

    def kept(self) -> list[Pair]:
        """The last network and each earlier one that it replaces, on features important to the newest task of that."""
        last = self.run.members[-1]
        earlier = self.run.members[:-1] if last.replaces_earlier else []
        return [(self.vectors[m.number], self.vectors[last.number], self.important[max(m.tasks)]) for m in earlier]

    def beside(self, others: Sequence["Geometries"], *, own: bool) -> list[Pair]:
        """The networks that answer and those of isolated runs, of the tasks that the network has or has not."""
        return [
            (self.vectors[member.number], other.vectors[single.number], other.important[single.tasks[0]])
            for member in self.answering for other in others if other.run.path != self.run.path
            for single in other.run.members if (single.tasks[0] in member.tasks) == own
        ]  # fmt: skip

    def shares(self) -> tuple[float, float, float]:
        """The represented share of features important to the newest task, only to past ones, and to none."""
        found = []
        for member in self.answering:
            newest = member.tasks if not self.run.continual else [max(member.tasks)]
            now = {feature for task in newest for feature in self.important[task]}
            past = {feature for task in member.tasks for feature in self.important[task]} - now
            vectors = self.vectors[member.number]
            none = set(range(vectors.shape[1])) - now - past
            found.append([represented(vectors, sorted(part)) for part in (now, past, none)])
        newest_share, past_share, none_share = pd.DataFrame(found).mean()  # of the networks where it is defined
        return newest_share, past_share, none_share

    def relative_loss(self) -> float:
        """The loss at the end as a share of that of the uninformed prediction, mean over tasks."""
        objective, ratios = Reconstruction(), []
        for task, loss in enumerate(self.run.accuracy_matrix[-1], 1):
            targets = torch.from_numpy(self.run.targets[task])
            ratios.append(loss / objective.uninformed_loss(targets.shape[-1], targets))
        return float(np.mean(ratios))

    def _shared(self, one: int, other: int) -> list[int]:
        return sorted({*self.important[one]} & {*self.important[other]})


def measured(zoo: Geometries, isolated: Sequence[Geometries]) -> dict[str, float]:
    """Everything that the table says about a run, by column; NaN where it is not defined."""
    compared = (zoo.carried(), zoo.kept(), zoo.beside(isolated, own=True), zoo.beside(isolated, own=False))
    found = {name: similarity(pairs) for name, pairs in zip(_COMPARED, compared, strict=True)}
    shares = dict(zip(("newest task", "past tasks", "no task"), zoo.shares(), strict=True))
    with_lengths = {
        f"{name}, with lengths": similarity(pairs, lengths=True)
        for name, pairs in zip(_COMPARED, compared, strict=True)
    }
    return {**found, **shares, "loss / uninformed": zoo.relative_loss(), **with_lengths}


def reuse_table(groups: Sequence[Group], suffix: str = "") -> Sheet | None:
    """A line for each group: what its networks reuse; None if they are no autoencoders of features."""
    zoos = {
        group.label: {seed: Geometries(run) for seed, run in group.runs.items() if run.finished and _fits(run)}
        for group in groups
    }
    every = [zoo for found in zoos.values() for zoo in found.values()]
    isolated = [zoo for zoo in every if zoo.run.config["method"] == "isolated"]
    lines = [
        {"method": label, "seed": seed, **measured(zoo, isolated)}
        for label, found in zoos.items()
        for seed, zoo in found.items()
    ]
    if not lines:
        return None
    data = pd.DataFrame(lines)
    shown = [name for name in data.columns[2:] if not name.endswith(", with lengths") and data[name].notna().any()]
    rows = [
        [str(label), *(_cell(part[name].dropna().tolist()) for name in shown)]
        for label, part in data.groupby("method", sort=False)
    ]
    return Sheet(f"reuse{suffix}", "Reuse of geometry", ["method", *map(_heading, shown)], rows, data, notes=_NOTES)


def _fits(run: Run) -> bool:
    return bool(run.config["net"]["model"] == "autoencoder" and run.config["objective"] == Reconstruction.__name__)


def _heading(name: str) -> str:
    return f"represented: {name}" if name.endswith(("task", "tasks")) else name


def _cell(values: Sequence[float]) -> str:
    mean, half = mean_interval(values)
    if np.isnan(mean):
        return "n/a"
    return f"{mean + 0.0:.2f}" + ("" if np.isnan(half) else f" ± {half:.2f}")
