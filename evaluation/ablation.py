"""How well a network does without one of its parts."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Metric, Scored, Scores
from datasets.task import Examples, Task
from evaluation.subject import DOCUMENTS, Subject
from net.multihead import MultiHead
from net.sequences.model import SequenceModel
from net.sequences.sites import Tap, run
from training.prediction import evaluation_batches

EXAMPLES = 1 << 13  # the most that are asked about, if it is for features
FEATURES = 256  # the most that a network may have
DROP, WITHOUT = "largest_drop", "without"
_TOGETHER = 16  # neurons that are held at 0 in one batched computation


@torch.no_grad()
def ablation(subject: Subject) -> Scores:
    """The main metric with all parts and without each of them, and how much worse it gets at most.

    Parts of a network of sequence mixers are its sequence mixers, each of their heads if there are several, and its
    state mixers: what one adds is replaced by its mean over the examples, at each position up to the last question, and
    where they ask by the mean over all such places. Parts of other networks are their features, which are held at 0;
    that of a recurrent network is a neuron of its state, held at 0 at all times.
    """
    metric = next(iter(subject.spec.objective.metrics.values()))
    trunk = subject.net.trunk
    scored = _of_parts(subject, trunk, metric) if isinstance(trunk, SequenceModel) else _of_features(subject, metric)
    whole, *others = scored.values()
    sign = 1 if metric.higher_is_better else -1
    drop = max(sign * (whole.value - other.value) for other in others)
    return {DROP: Scored(drop, None, whole.n), **scored}


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network; "" if it can."""
    features = net.weight.shape[1]
    if isinstance(net.trunk, SequenceModel) or features <= FEATURES:
        return ""
    return f"the network has {features} features, and at most {FEATURES} are possible"


class _Part(NamedTuple):
    """A part of a network of sequence mixers."""

    name: str
    site: str
    head: int | None = None  # of the heads that are at this site


def _of_parts(subject: Subject, trunk: SequenceModel, metric: Metric) -> dict[str, Scored]:
    """The metric with all parts of a network of sequence mixers, and without each of them."""
    examples, objective = subject.some(DOCUMENTS), subject.spec.objective
    parts, found = _parts(trunk), {}
    means = _means(subject, examples, {part.site for part in parts})
    for part in (None, *parts):
        predictions = map(objective.predict, _outputs_without(subject, examples, part, means))
        name = "with all" if part is None else f"{WITHOUT} {part.name}"
        found[f"{metric.name} {name}"] = objective.evaluate_parts(predictions, examples.targets, {})[""][metric.name]
    return found


def _parts(trunk: SequenceModel) -> list[_Part]:
    """The parts, in the order of computation."""
    hooks, found = trunk.hooks(), []
    for number in range(len(trunk.blocks)):
        mixer, state, heads = (f"blocks.{number}.{name}" for name in ("mixer", "state", "mixer.heads"))
        found.append(_Part(mixer, f"{mixer}.output"))
        if heads in hooks and (count := hooks[heads].heads) > 1:
            found += [_Part(f"{mixer} head {head}", heads, head) for head in range(count)]
        if f"{state}.output" in hooks:
            found.append(_Part(state, f"{state}.output"))
    return found


class _Mean(NamedTuple):
    """Mean activations over examples, which may be of unequal lengths and ask at different positions."""

    positions: Tensor  # [L, ...], at each position, of the examples that ask there or later
    asked: Tensor  # [...], where examples ask


def _means(subject: Subject, examples: Examples, sites: set[str]) -> dict[str, _Mean]:
    """The means by site."""
    net, data = subject.net.trunk, Mixture([(subject.task.id, examples)])
    assert isinstance(net, SequenceModel)
    sums, counts = dict[str, list[Tensor]](), [torch.zeros((), device=data.device), torch.zeros((), device=data.device)]
    for inputs, _ in evaluation_batches(subject.net, data, subject.spec, subject.compute):
        with subject.compute.autocast():
            found = run(net, inputs, read=sites).activations
        asked = net.asked_positions(inputs)
        inside = asked.flip(1).cumsum(1).flip(1) > 0  # behind its last question an example does not matter
        counts = [counts[0] + inside.sum(0), counts[1] + asked.sum()]
        for site, values in found.items():
            parts = [torch.einsum("bl,bl...->l...", inside.double(), values.double()), values[asked].double().sum(0)]
            sums[site] = [one + other for one, other in zip(sums[site], parts, strict=True)] if site in sums else parts
    shared, alone = counts[0].clamp_min(1), counts[1]
    return {
        site: _Mean(of / shared.view(-1, *(1,) * (of.ndim - 1)), where / alone) for site, (of, where) in sums.items()
    }


def _outputs_without(
    subject: Subject, examples: Examples, part: _Part | None, means: dict[str, _Mean]
) -> Iterator[Tensor]:
    """The outputs without a part, or with all of them: parts of [N, ..., C]."""
    net, outputs = subject.net, subject.net.head_sizes[subject.task.id]
    assert isinstance(net.trunk, SequenceModel)
    data = Mixture([(subject.task.id, examples)])
    for inputs, batch in evaluation_batches(net, data, subject.spec, subject.compute):
        with subject.compute.autocast():
            features = net.trunk.tapped(inputs, _replacing(part, means, net.trunk.asked_positions(inputs)))
            found = net.head(features, data.task_ids[batch])
        yield found[..., :outputs]


def _replacing(part: _Part | None, means: dict[str, _Mean], asked: Tensor) -> Tap:
    """A tap that replaces a part by its mean; `asked` says where the inputs ask, [B, L]."""

    def tap(site: str, values: Tensor) -> Tensor:
        if part is None or site != part.site:
            return values
        of = means[site]
        here = asked.view(*asked.shape, *(1,) * (values.ndim - 2))
        mean = of.asked.where(here, of.positions).to(values.dtype)
        if part.head is None:
            return mean
        return torch.cat([values[:, :, : part.head], mean[:, :, part.head, None], values[:, :, part.head + 1 :]], 2)

    return tap


def _of_features(subject: Subject, metric: Metric) -> dict[str, Scored]:
    """The metric with all features of a network, and without each of them."""
    objective, examples = subject.spec.objective, subject.some(EXAMPLES)
    data = Mixture([(subject.task.id, examples)])
    batches = [
        torch.stack(list(_outputs(subject, inputs, data.task_ids[part])))
        for inputs, part in evaluation_batches(subject.net, data, subject.spec, subject.compute)
    ]
    whole, *others = (
        objective.evaluate(objective.predict(outputs), examples.targets)[metric.name]
        for outputs in torch.cat(batches, 1)
    )
    found = {f"{metric.name} {WITHOUT} {number}": score for number, score in enumerate(others)}
    return {f"{metric.name} with all": whole, **found}


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
