"""The linear regions of a recurrent network with ReLU: inputs on which the same neurons are positive at the same times.

On a region the outputs are a linear function of the inputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Scored, Scores
from datasets.task import Examples, Task
from evaluation.subject import Subject
from net.multihead import MultiHead
from training.prediction import evaluation_batches, predict_examples

REGIONS, SHARE, INSIDE = "regions", "share in the top", "in the top"
TOP = (1, 10, 100)  # so many most visited regions
_BITS = 62  # of a word


@torch.no_grad()
def region_numbers(subject: Subject, examples: Examples) -> Tensor:
    """The region of each example, [N] int64 on the device: 0 is the one with most examples, 1 the next, ..."""
    data = Mixture([(subject.task.id, examples)])
    words = torch.cat([
        _packed(subject.net.trunk.states(inputs).flatten(1) > 0)  # type: ignore[operator]
        for inputs, _ in evaluation_batches(subject.net, data, subject.spec, subject.compute)
    ])  # fmt: skip
    numbers, *others = (word.unique(return_inverse=True)[1] for word in words.unbind(1))
    for places in others:
        numbers = (numbers * (places.max() + 1) + places).unique(return_inverse=True)[1]
    order = numbers.bincount().argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks[numbers]


def _packed(bits: Tensor) -> Tensor:
    """Rows of bits, [N, K], as words, [N, W] int64."""
    filled = torch.nn.functional.pad(bits, (0, -bits.shape[1] % _BITS)).unflatten(1, (-1, _BITS))
    return (filled << torch.arange(_BITS, device=bits.device)).sum(-1)


def regions(subject: Subject) -> Scores:
    """The number of regions with examples; the share of examples in the most visited ones, and how well it does there.

    Values for more regions than there are belong to all of them.
    """
    objective, examples = subject.spec.objective, subject.task.test
    numbers = region_numbers(subject, examples)
    predictions = predict_examples(subject.net, subject.task.id, examples, subject.spec, subject.compute)
    n, metric = len(numbers), next(iter(objective.metrics))
    found = {REGIONS: Scored(float(numbers.max() + 1), None, n)}
    for top in TOP:
        inside = numbers < top
        found[f"{SHARE} {top}"] = Scored(float(inside.double().mean()), None, n)
        scores = objective.evaluate(predictions[inside], examples.targets[inside])
        found[f"{metric} {INSIDE} {top}"] = scores[metric]
    return found


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network; "" if it can."""
    return "" if hasattr(net.trunk, "states") else "only networks with states, such as rnn, have these regions"


@dataclass(frozen=True)
class Compared:
    """Shares of the examples of one region: on which two networks are right, and give the same answer."""

    examples: int
    right: float
    other_right: float
    same: float


@torch.no_grad()
def compared(subject: Subject, other: MultiHead, most: int) -> Sequence[Compared]:
    """How another network of one task does in the most visited regions of a network.

    The first entry is of all examples. Outputs are classes; the task of the other network may have another number.
    """
    examples = subject.task.test
    numbers = region_numbers(subject, examples)
    task = next(iter(other.head_sizes))
    own, others = (
        predict_examples(net, number, examples, subject.spec, subject.compute).argmax(-1)
        for net, number in ((subject.net, subject.task.id), (other, task))
    )
    right, other_right, same = own == examples.targets, others == examples.targets, own == others
    parts = [torch.ones_like(right), *(numbers == number for number in range(min(most, int(numbers.max()) + 1)))]
    return [
        Compared(int(part.sum()), *(float(values[part].double().mean()) for values in (right, other_right, same)))
        for part in parts
    ]
