"""Evaluations: questions asked of every new network about each of its tasks, answered in rows of metrics.csv.

To add one: a function Subject -> scores by name, and one line in EVALUATIONS; `--evaluate NAME` asks it. If it cannot
be asked of all networks, OBSTACLES says why not.
"""

from collections.abc import Callable, Sequence

import torch

from datasets.mixture import Mixture
from datasets.objectives import Scored, Scores
from evaluation import ablation, regions
from evaluation.subject import Subject
from net.multihead import MultiHead
from training.prediction import evaluation_batches
from utils.errors import UserError, unknown


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


EVALUATIONS: dict[str, Callable[[Subject], Scores]] = {
    "dormant": dormant_features,
    "ablation": ablation.ablation,
    "regions": regions.regions,
}
# Why an evaluation cannot be asked of a network; "" if it can. Those that are not here can be asked of all.
OBSTACLES: dict[str, Callable[[MultiHead], str]] = {"ablation": ablation.obstacle, "regions": regions.obstacle}


def check_evaluations(names: Sequence[str], net: MultiHead) -> None:
    """UserError if one of the evaluations cannot be asked of a network."""
    for name in names:
        if reason := OBSTACLES.get(name, lambda _: "")(net):
            raise UserError(f"--evaluate {name}: {reason}; leave it out")


class EvaluationNames:
    """Accepts names of evaluations: a list, or a text with commas between them."""

    @staticmethod
    def read(where: str, value: object) -> tuple[str, ...]:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)):
            raise UserError(f"{where} is {value!r}; it must be names of evaluations, such as {next(iter(EVALUATIONS))}")
        for name in names:
            if name not in EVALUATIONS:
                raise UserError(f"{where}: {unknown('evaluation', name, EVALUATIONS)}")
        return tuple(dict.fromkeys(names))
