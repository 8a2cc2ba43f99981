"""Attention to the items of documents."""

from itertools import permutations

import torch
from torch import Tensor, nn

from datasets.mixture import Mixture
from datasets.objectives import Scores, mean
from datasets.task import Task
from evaluation.subject import DOCUMENTS, Subject, schema_lacks
from net.multihead import MultiHead
from net.sequences.model import SequenceModel
from net.sequences.sites import run
from training.prediction import evaluation_batches

WEIGHT = "weight"
_TOGETHER = 1 << 24  # weights of a layer that are computed at once


@torch.no_grad()
def attention(subject: Subject) -> Scores:
    """The mean weight with which the position of each item attends to that of each earlier one, by layer and head.

    Positions behind the one that is asked about are left out. The mean is over the documents with both items in this
    order; n is their number.
    """
    examples = subject.some(DOCUMENTS)
    assert examples.schema is not None
    positions = examples.schema.rows(examples.rows).positions
    items, places = list(positions), torch.stack(list(positions.values()), 1)
    data, parts = Mixture([(subject.task.id, examples)]), []
    for inputs, part in evaluation_batches(subject.net, data, subject.spec, subject.compute):
        parts.append(between(subject.net.trunk, inputs, places[part].to(inputs.device)))
    found = {}
    for name in parts[0]:
        weights = torch.cat([part[name] for part in parts]).double()
        for later, earlier in permutations(range(len(items)), 2):
            values = weights[:, later, earlier]
            if len(values := values[~values.isnan()]):
                found[f"{WEIGHT} {name} {items[later]}>{items[earlier]}"] = mean(values)
    return found


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network; "" if it can."""
    if not isinstance(net.trunk, SequenceModel) or not _attending(net.trunk):
        return "no layer of the network has weights of attention"
    return schema_lacks(task)


def between(net: nn.Module, inputs: Tensor, places: Tensor) -> dict[str, Tensor]:
    """The weights of attention between positions `places` [B, I], [B, later, earlier] by mixer and head.

    NaN where the second is not before the first, where one is negative, and behind the position that is asked about.
    """
    assert isinstance(net, SequenceModel)
    later, earlier = places.unsqueeze(2), places.unsqueeze(1)
    there = (earlier >= 0) & (earlier < later) & (later <= inputs[:, -net.asked :].amax(1)[:, None, None])
    numbers, found = _attending(net), dict[str, Tensor]()
    seen = run(net, inputs, read=[f"blocks.{number}.mixer.input" for number in numbers]).activations
    for number in numbers:
        mixer, normed = net.blocks[number].mixer, seen[f"blocks.{number}.mixer.input"]
        few = max(1, _TOGETHER // (mixer.heads * normed.shape[1] ** 2))  # type: ignore[union-attr,operator]
        chosen = []
        for some, at in zip(normed.split(few), places.clamp_min(0).split(few), strict=True):
            rows = torch.arange(len(at), device=at.device)[:, None, None]
            weights = mixer.weights(some).movedim(1, -1)  # type: ignore[union-attr,operator]
            chosen.append(weights[rows, at.unsqueeze(2), at.unsqueeze(1)])
        by_head = torch.cat(chosen).masked_fill(~there.unsqueeze(-1), torch.nan).unbind(-1)
        found |= {f"blocks.{number}.mixer head {head}": values for head, values in enumerate(by_head)}
    return found


def _attending(net: SequenceModel) -> list[int]:
    """The layers whose mixers have weights of attention."""
    return [number for number, block in enumerate(net.blocks) if hasattr(block.mixer, "weights")]
