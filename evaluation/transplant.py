"""Activation patching across checkpoints: does the mechanism of step t work at step t'?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Scored, Scores
from datasets.synthetic.language import ORIGINAL, QUERY, TARGET
from datasets.task import Task
from evaluation import probes
from evaluation.interchange import DEFINED, SITE
from evaluation.subject import DOCUMENTS, Subject
from net.multihead import MultiHead
from net.sequences.sites import Ran, Write, run
from training.prediction import evaluation_batches

NETWORKS = 6  # the most that are compared
ITEMS = (TARGET, QUERY, ORIGINAL)  # where induction, early and late direct retrieval keep what tells the answer


@torch.no_grad()
def transplant(subject: Subject) -> Scores:
    """What activations of the network of one checkpoint restore in that of another, for any two checkpoints.

    "restored T into U blocks.1.input@ITEM of original_query": the original query of each document is replaced by
    another token; at the item, the input of the second layer in the network of step U is the one that the network of
    step T has for the document itself. With the probabilities of the answer in the network of step U

        restored = (mean P_patched - mean P_corrupted) / (mean P_clean - mean P_corrupted),

    which is absent where the denominator, "effect U of original_query", is below 0.05; T = U is the association of
    interchange interventions. "checkpoints" is the number of networks: at most six, evenly spaced among those that are
    kept, the first and the subject itself among them. They are asked about at most 320 documents.

    Source: the score of Arora et al., "Mechanistic evaluation of Transformers and state space models" (2025); its
    standard error is that of a ratio estimator, Cochran, "Sampling Techniques" (1977), chapter 6.
    """
    batches, nets = list(_batches(subject)), dict(compared(subject))
    known = {step: _found(subject, net, batches) for step, net in nets.items()}
    effects = {step: own.clean - own.corrupted for step, own in known.items()}
    scores = {"checkpoints": Scored(float(len(nets)), None, len(nets))}
    for step, effect in effects.items():
        scores[f"effect {step} of {ORIGINAL}"] = _ratio(effect, torch.ones_like(effect))
    for into, effect in effects.items():
        if effect.mean() < DEFINED:
            continue
        for step, other in known.items():
            for item in ITEMS:
                patched = _patched(subject, nets[into], batches, item, other.activations[item])
                name = f"restored {step} into {into} {SITE}@{item} of {ORIGINAL}"
                scores[name] = _ratio(patched - known[into].corrupted, effect)
    return scores


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network; "" if it can."""
    if reason := probes.obstacle(net, task):
        return reason
    layers = "the network has one layer, and the input of the second one is exchanged"
    return "" if SITE in net.trunk.sites() else layers  # type: ignore[operator]


def compared(subject: Subject) -> Iterator[tuple[int, MultiHead]]:
    """Steps and networks, at most six, evenly spaced from the first one that is kept to the subject."""
    steps = [*subject.earlier, subject.step]
    count = min(NETWORKS, len(steps))
    for place in range(count - 1):
        step = steps[place * (len(steps) - 1) // (count - 1)]
        yield step, subject.earlier[step]()
    yield subject.step, subject.net


@dataclass(frozen=True)
class _Batch:
    """Documents of one forward pass."""

    clean: Tensor  # [B, L + 1], inputs
    corrupted: Tensor  # the same with another original query
    right: Tensor  # [B], the token that answers
    places: Mapping[str, Tensor]  # by item, [B]


@dataclass(frozen=True)
class _Found:
    """What one network makes of the documents."""

    clean: Tensor  # [N], the probability of the answer
    corrupted: Tensor  # [N], the same of corrupted documents
    activations: Mapping[str, list[Tensor]]  # by item, those at the site in clean documents: [B, d] of each batch


def _batches(subject: Subject) -> Iterator[_Batch]:
    examples = subject.some(DOCUMENTS)
    assert examples.schema is not None
    schema = examples.schema.rows(examples.rows).to(subject.compute.device)
    data = Mixture([(subject.task.id, examples)])
    for inputs, part in evaluation_batches(subject.net, data, subject.spec, subject.compute):
        place, token = schema.positions[ORIGINAL][part, None], schema.replacements[ORIGINAL][part, None]
        places = {item: schema.positions[item][part] for item in ITEMS}
        yield _Batch(inputs, inputs.scatter(1, place, token), examples.targets[part, 0], places)


def _found(subject: Subject, net: MultiHead, batches: Sequence[_Batch]) -> _Found:
    clean, corrupted, activations = [], [], {item: list[Tensor]() for item in ITEMS}
    for batch in batches:
        probability, ran = _ran(subject, net, batch, batch.clean, {})
        clean.append(probability)
        corrupted.append(_ran(subject, net, batch, batch.corrupted, {})[0])
        for item, place in batch.places.items():
            activations[item].append(ran.activations[SITE][torch.arange(len(place), device=place.device), place])
    return _Found(torch.cat(clean), torch.cat(corrupted), activations)


def _patched(
    subject: Subject, net: MultiHead, batches: Sequence[_Batch], item: str, values: Sequence[Tensor]
) -> Tensor:  # fmt: skip
    """The probability of the answer to corrupted documents with these activations at an item, [N]."""
    found = []
    for batch, activations in zip(batches, values, strict=True):
        place = batch.places[item]
        write = Write(activations, torch.arange(len(place), device=place.device), place)
        found.append(_ran(subject, net, batch, batch.corrupted, {SITE: write})[0])
    return torch.cat(found)


def _ran(
    subject: Subject, net: MultiHead, batch: _Batch, inputs: Tensor, write: Mapping[str, Write]
) -> tuple[Tensor, Ran]:  # fmt: skip
    """The probability of the answer, [B], and the activations at the site."""
    with subject.compute.autocast():
        ran = run(net.trunk, inputs, read=[SITE], write=write)  # type: ignore[arg-type]
    predictions = subject.spec.objective.predict(ran.outputs[:, 0])
    return predictions.gather(1, batch.right.unsqueeze(1)).squeeze(1).double(), ran


def _ratio(above: Tensor, below: Tensor) -> Scored:
    """The ratio of two means over documents, [N] each.

    SE = sqrt( sum_n (above_n - ratio below_n)^2 / (N (N - 1)) ) / |mean below|
    """
    ratio, n = above.mean() / below.mean(), len(above)
    away = (above - ratio * below).square().sum() / (n * (n - 1))
    return Scored(float(ratio), float(away.sqrt() / below.mean().abs()), n)
