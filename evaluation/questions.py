"""Evaluations: questions asked of every new network about each of its tasks, answered in rows of metrics.csv.

To add one: a function Subject -> scores by name, and one line in EVALUATIONS; `--evaluate NAME` asks it. If it cannot
be asked of all networks or about all tasks, its `obstacle` says why not.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from datasets.mixture import Mixture
from datasets.objectives import Scored, Scores
from datasets.task import Task
from evaluation import (
    ablation,
    attention,
    attribution,
    behaviour,
    fourier,
    geometry,
    hessian,
    interchange,
    learning_coefficient,
    probes,
    regions,
    transplant,
)
from evaluation.subject import Subject
from net.multihead import MultiHead
from training.prediction import evaluation_batches
from utils.errors import UserError, unknown
from utils.settings import Given, NoSettings, declarations, read


@torch.no_grad()
def dormant_features(subject: Subject) -> Scores:
    """Share of the features whose mean size on the test inputs is at most a fortieth of that of the average feature.

        dormant_share = 1/D #{i: mean_x |h_i(x)| <= tau mean_j mean_x |h_j(x)|},   tau = 0.025

    Source: Sokar et al., "The dormant neuron phenomenon in deep reinforcement learning", ICML 2023, definition 3.1, of
    the last layer before the heads.
    """
    data = Mixture([(subject.task.id, subject.task.test)])
    sums = []
    for inputs, _ in evaluation_batches(subject.net, data, subject.spec, subject.compute):
        with subject.compute.autocast():
            sums.append(subject.net.trunk(inputs).float().abs().flatten(0, -2).sum(0))
    sizes = torch.stack(sums).sum(0)
    share = (sizes <= 0.025 * sizes.mean()).double().mean()
    return {"dormant_share": Scored(float(share), None, len(sizes))}


ALWAYS, END = "always", "end"


def _no_obstacle(net: MultiHead, task: Task) -> str:
    return ""


@dataclass(frozen=True)
class Question:
    """An evaluation: the question, and when it is asked while a network is trained."""

    ask: Callable[[Subject], Scores]
    obstacle: Callable[[MultiHead, Task], str] = _no_obstacle  # why it cannot be asked; "" if it can
    when: str = ALWAYS  # unless `--evaluate NAME:WHEN` says otherwise
    settings: type = NoSettings  # set by `--set ask.NAME.KEY=VALUE`; `most_parameters` among them refuses larger nets

    def about(self, subject: Subject, settings: Any) -> Scores:
        """What the evaluation finds with these settings; None: the defaults."""
        return self.ask(subject if settings is None else replace(subject, settings=settings))


EVALUATIONS: dict[str, Question] = {
    "dormant": Question(dormant_features),
    "ablation": Question(ablation.ablation, ablation.obstacle),
    "attribution": Question(attribution.attribution, attribution.obstacle),
    "attention": Question(attention.attention, attention.obstacle),
    "regions": Question(regions.regions, regions.obstacle),
    "probes": Question(probes.probes, probes.obstacle, END),
    "transplant": Question(transplant.transplant, transplant.obstacle, END),
    "behaviour": Question(behaviour.behaviour, behaviour.obstacle),
    "interchange": Question(interchange.interchange, interchange.obstacle),
    "geometry": Question(geometry.geometry, geometry.obstacle),
    "learning_coefficient": Question(
        learning_coefficient.learning_coefficient,
        learning_coefficient.obstacle,
        END,
        learning_coefficient.SamplingSettings,
    ),
    "hessian": Question(hessian.hessian, when=END, settings=hessian.HessianSettings),
    "fourier": Question(fourier.fourier, fourier.obstacle),
}


@dataclass(frozen=True)
class Scheduled:
    """An evaluation of a run, written NAME or NAME:WHEN."""

    name: str
    when: str  # at each evaluation of the network (ALWAYS), at each N-th and the last one, or at the last one (END)

    @classmethod
    def parsed(cls, text: str) -> "Scheduled":
        name, _, when = text.partition(":")
        return cls(name, when or EVALUATIONS[name].when)

    def due(self, place: int, last: bool) -> bool:
        """Whether it is asked at an evaluation of the network, numbered from 0."""
        if last or self.when == ALWAYS:
            return True
        return self.when != END and place % int(self.when) == 0


def settings_asked(names: Sequence[str], given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The settings of those evaluations that have some, by name, from values by NAME.KEY; UserError for other keys."""
    asked = [Scheduled.parsed(text).name for text in names]
    own: dict[str, dict[str, Any]] = {name: {} for name in asked if EVALUATIONS[name].settings is not NoSettings}
    for dotted, value in given.items():
        name, _, key = dotted.partition(".")
        source = f"--set ask.{dotted}" if isinstance(value, Given) else f"{where}: ask"
        if name not in EVALUATIONS:
            raise UserError(f"{source}: {unknown('evaluation', name, EVALUATIONS)}")
        if name not in own:
            reason = "is not asked; --evaluate asks it" if name not in asked else "has no settings"
            raise UserError(f"{source}: {name} {reason}")
        if not key:
            raise UserError(
                f"{source}: {name} has settings; name one: {', '.join(declarations(EVALUATIONS[name].settings))}"
            )
        own[name][key] = value
    return {name: read(EVALUATIONS[name].settings, f"{where}: ask.{name}", values) for name, values in own.items()}


def check_evaluations(names: Sequence[str], settings: Mapping[str, Any], net: MultiHead, task: Task) -> None:
    """UserError if one of the evaluations cannot be asked of a network about a task."""
    size = sum(value.numel() for value in net.parameters() if value.requires_grad)
    for name in (Scheduled.parsed(text).name for text in names):
        if reason := EVALUATIONS[name].obstacle(net, task):
            raise UserError(f"--evaluate {name}: {reason}; leave it out")
        most = getattr(settings.get(name), "most_parameters", math.inf)
        if size > most:
            raise UserError(
                f"--evaluate {name}: the network has {size:,} parameters, more than {most:,}; leave it out, or raise "
                f"--set ask.{name}.most_parameters"
            )


class EvaluationNames:
    """Accepts evaluations: a list, or a text with commas between them, each NAME or NAME:WHEN."""

    @staticmethod
    def read(where: str, value: object) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)):
            raise UserError(f"{where} is {value!r}; it must be names of evaluations, such as {next(iter(EVALUATIONS))}")
        for text in names:
            name, colon, when = str(text).partition(":")
            if name not in EVALUATIONS:
                raise UserError(f"{where}: {unknown('evaluation', name, EVALUATIONS)}")
            if colon and when not in (ALWAYS, END) and not re.fullmatch(r"[1-9]\d{0,8}", when):
                raise UserError(
                    f"{where}: {text} asks {name} when it is {when!r}; it must be {ALWAYS}, {END}, or a number N: at "
                    "each N-th evaluation of the network"
                )
        if len({text.partition(":")[0] for text in names}) < len(set(names)):
            raise UserError(f"{where} names an evaluation twice, at different times; name each once")
        return tuple(dict.fromkeys(names))
