"""How well a network does without one of its features."""

from collections.abc import Iterator

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Scored, Scores
from datasets.task import Task
from evaluation.subject import Subject
from net.multihead import MultiHead
from training.prediction import evaluation_batches

EXAMPLES = 1 << 13  # the most that are asked about
FEATURES = 256  # the most that a network may have
DROP, WITHOUT = "largest_drop", "without"
_TOGETHER = 16  # neurons that are held at 0 in one batched computation


@torch.no_grad()
def ablation(subject: Subject) -> Scores:
    """The main metric with all features and without each of them, and how much worse it gets at most.

    A feature is held at 0. That of a recurrent network is a neuron of its state, which is held at 0 at all times.
    """
    objective, examples = subject.spec.objective, subject.task.test
    if len(examples) > EXAMPLES:  # evenly, because examples may be in the order of their classes
        examples = examples.subset(torch.arange(EXAMPLES) * len(examples) // EXAMPLES)
    metric = next(iter(objective.metrics.values()))
    data = Mixture([(subject.task.id, examples)])
    batches = [
        torch.stack(list(_outputs(subject, inputs, data.task_ids[part])))
        for inputs, part in evaluation_batches(subject.net, data, subject.spec, subject.compute)
    ]
    scored = [
        objective.evaluate(objective.predict(outputs), examples.targets)[metric.name]
        for outputs in torch.cat(batches, 1)
    ]
    whole, *others = scored
    sign = 1 if metric.higher_is_better else -1
    drop = max(sign * (whole.value - other.value) for other in others)
    found = {f"{metric.name} {WITHOUT} {number}": score for number, score in enumerate(others)}
    return {DROP: Scored(drop, None, whole.n), f"{metric.name} with all": whole, **found}


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network; "" if it can."""
    features = net.weight.shape[1]
    return f"the network has {features} features, and at most {FEATURES} are possible" if features > FEATURES else ""


def _outputs(subject: Subject, inputs: Tensor, task_ids: Tensor) -> Iterator[Tensor]:
    """The outputs [B, ..., C] with all features, and without each of them."""
    net, outputs = subject.net, subject.net.head_sizes[subject.task.id]
    with subject.compute.autocast():
        features = net.trunk(inputs)
        whole = net.head(features, task_ids)[..., :outputs]
    yield whole
    count = features.shape[-1]
    holding = getattr(net.trunk, "holding", None)
    if holding is not None:
        for neurons in torch.arange(count, device=inputs.device).split(_TOGETHER):
            with subject.compute.autocast():
                held = holding(inputs, neurons)
                found = net.head(held.flatten(0, 1), task_ids.repeat(len(held)))
            yield from found.unflatten(0, held.shape[:2])[..., :outputs]
    elif net.kind == "identity":
        for number in range(count):
            yield whole.index_fill(-1, torch.tensor([number], device=whole.device), 0)
    else:  # outputs are linear in features
        weight = net.weight[net.rows(subject.task.id)]
        for number in range(count):
            yield whole - features[..., number, None] * weight[:outputs, number]
