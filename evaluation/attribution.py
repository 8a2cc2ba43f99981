"""Direct logit attribution: what each part of a network adds to the logit of the answer."""

from collections import defaultdict

import torch
from torch import Tensor, nn

from datasets.mixture import Mixture
from datasets.objectives import Scores, mean
from datasets.task import Task
from evaluation.subject import DOCUMENTS, Subject
from net.multihead import MultiHead
from net.sequences.model import SequenceModel
from net.sequences.sites import run
from training.prediction import evaluation_batches

LOGIT, ATTRIBUTION = "logit", "attribution"


@torch.no_grad()
def attribution(subject: Subject) -> Scores:
    """What the parts of the residual stream add to the logit of the answer, where it is asked for.

        logit(a) - mean_v logit(v) = sum over parts p of (U_a - mean_v U_v) N(p),   plus that of the norm's bias

    N is the final norm with the scale that it has there, which makes it linear. Parts are the embedding with the
    positions, and what each sequence mixer and state mixer adds; a mixer of several heads is the sum of what these add
    and its bias. Of documents with several questions the mean over these counts.

    Source: Elhage et al., "A mathematical framework for transformer circuits" (2021).
    """
    examples = subject.some(DOCUMENTS)
    data, found = Mixture([(subject.task.id, examples)]), defaultdict[str, list[Tensor]](list)
    for inputs, part in evaluation_batches(subject.net, data, subject.spec, subject.compute):
        targets = examples.targets[part]
        scored = targets != getattr(subject.spec.objective, "ignored", -1)
        for name, values in attributed(subject.net.trunk, inputs, targets.where(scored, 0)).items():
            found[name].append(values.where(scored, 0).sum(-1) / scored.sum(-1))
    return {name: mean(torch.cat(values).double()) for name, values in found.items()}


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network; "" if it can."""
    if not isinstance(net.trunk, SequenceModel):
        return "only networks of sequence mixers have parts whose sum is the logit"
    return "" if net.trunk.tokens else "the answers are no tokens"


def attributed(net: nn.Module, inputs: Tensor, answers: Tensor) -> dict[str, Tensor]:
    """The logits of answers [B, K] and what each part adds to them, [B, K] each, by the name of the score."""
    assert isinstance(net, SequenceModel)
    hooks, first, last = net.hooks(), "blocks.0.input", f"blocks.{len(net.blocks) - 1}.output"
    sites = [first, last, *(site for site in hooks if site.endswith((".mixer.output", ".heads", ".state.output")))]
    ran = run(net, inputs, read=sites)
    streams = {site: net.at_asked(values.flatten(2), inputs) for site, values in ran.activations.items()}
    toward, bias = _toward(net, streams[last], answers)
    logits = ran.outputs.gather(-1, answers.unsqueeze(-1)).squeeze(-1) - ran.outputs.mean(-1)
    found = {LOGIT: logits, f"{ATTRIBUTION} embedding": (streams[first] * toward).sum(-1)}
    for number in range(len(net.blocks)):
        for kind in ("mixer", "state"):
            name = f"blocks.{number}.{kind}"
            if (added := streams.get(f"{name}.output")) is not None:
                found[f"{ATTRIBUTION} {name}"] = (added * toward).sum(-1)
            if (heads := hooks[f"{name}.heads"].heads if f"{name}.heads" in hooks else 1) > 1:
                back = toward @ net.blocks[number].mixer.joining.weight  # type: ignore[union-attr,operator]
                by_head = (streams[f"{name}.heads"] * back).unflatten(-1, (heads, -1)).sum(-1)
                for head, values in enumerate(by_head.unbind(-1)):
                    found[f"{ATTRIBUTION} {name} head {head}"] = values
    return found if bias is None else {**found, f"{ATTRIBUTION} norm bias": bias}


def _toward(net: SequenceModel, stream: Tensor, answers: Tensor) -> tuple[Tensor, Tensor | None]:
    """The direction of the stream before the final norm that is the logit of the answers, and the norm's own part."""
    norm, weight = net.norm, net.unembedding
    toward, bias = weight[answers] - weight.mean(0), getattr(net.norm, "bias", None)
    if isinstance(norm, nn.Identity):
        return toward, None
    of_bias = None if bias is None else toward @ bias
    toward = toward * norm.weight  # type: ignore[operator]
    if isinstance(norm, nn.LayerNorm):  # it takes the mean off the stream
        stream = stream - stream.mean(-1, keepdim=True)
        toward = toward - toward.mean(-1, keepdim=True)
    epsilon = torch.finfo(stream.dtype).eps if norm.eps is None else norm.eps
    return toward / (stream.square().mean(-1, keepdim=True) + epsilon).sqrt(), of_bias  # type: ignore[operator]
