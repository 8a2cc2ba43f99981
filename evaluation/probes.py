"""Linear probes: which tokens of a document can be read from the activations at which site and position?"""

import re
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.objectives import Scored, Scores
from datasets.schema import NOWHERE
from datasets.synthetic.language import ORIGINAL, TARGET
from datasets.task import DEV, TEST, Examples, Task
from evaluation.subject import Subject, schema_lacks
from net.multihead import MultiHead
from net.sequences.sites import run
from training.prediction import evaluation_batches
from utils.seeding import generator

LABELS = (ORIGINAL, TARGET)  # items whose tokens are to be told
MOST = 1024  # documents that are used at most; the first half trains
PENALTY = 1.0  # C of scikit-learn: the loss is C sum_n loss_n + |W|^2 / 2
ITERATIONS = 100
_ROUNDING = 1e-5  # of the root mean square of all values at a site: a feature that deviates by less is a constant


def probes(subject: Subject) -> Scores:
    """How well a linear probe tells the original query and the target from the activations at each site and item.

    A probe is a multinomial logistic regression of standardised activations (scikit-learn: lbfgs, C = 1, at most 100
    iterations), trained on the first half of at most 1,024 documents. "accuracy LABEL from SITE@ITEM" is that on the
    other half, where a token that did not occur in the first one counts as wrong; "ceiling LABEL" is the share of
    those that did occur, which no accuracy exceeds, and "ceiling control at ITEM" the same of the tokens at an item.

    "control" is the same for labels that are a fixed random function of the token at the item, drawn with the
    frequencies of the true labels, and "selectivity" is accuracy - control: a probe that is selective finds what the
    network has computed there, rather than remembers what each token stands for. Where all documents have the same
    token, as at the divider, a control label would be a constant, which any probe tells: there is neither.

    Source: Hewitt & Liang, "Designing and interpreting probes with control tasks" (2019), section 2.
    """
    examples = subject.some(MOST)
    tokens, activations = activations_at_items(subject, examples)
    half, vocabulary = len(examples) // 2, subject.net.head_sizes[subject.task.id]
    labels = {label: tokens[label] for label in LABELS if label in tokens}
    controls = {
        (label, item): control_labels(label, item, true, tokens[item], vocabulary)
        for label, true in labels.items()
        for item in tokens
        if len(tokens[item].unique()) > 1
    }
    bounded = labels | {f"control at {item}": tokens[item] for _, item in controls}
    found = {f"ceiling {name}": _share(torch.isin(of[half:], of[:half]).numpy()) for name, of in bounded.items()}
    for (site, item), values in activations.items():
        asked = [(label, kind) for label in labels for kind in ("accuracy", "control")
                 if kind == "accuracy" or (label, item) in controls]  # fmt: skip
        answers = [labels[label] if kind == "accuracy" else controls[label, item] for label, kind in asked]
        right = dict(zip(asked, probed(values.numpy(), [part.numpy() for part in answers]), strict=True))
        for label in labels:
            where = f"{label} from {site}@{item}"
            found[f"accuracy {where}"] = _share(right[label, "accuracy"])
            if (label, "control") in right:
                found[f"control {where}"] = _share(right[label, "control"])
                found[f"selectivity {where}"] = _difference(right[label, "accuracy"], right[label, "control"])
    return found


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network; "" if it can."""
    if reason := schema_lacks(task):
        return reason
    if min(len(task.splits[name]) for name in (DEV, TEST) if name in task.splits) < 2:
        return "it takes two documents at least"
    return "" if probed_sites(net) else "the network has no layers whose activations can be read"


def probed_sites(net: MultiHead) -> list[str]:
    """The sites of a network that are probed.

    The stream after a layer is the one before the next. Left out for the time they would take are what mixers get, the
    normalised stream, and what heads have read, of which the mixer's output is a linear map: they may hold more.
    """
    sites = net.trunk.sites() if hasattr(net.trunk, "sites") else ()  # type: ignore[operator]
    chosen = re.compile(r"blocks\.\d+\.(input|mixer\.output|state\.output)")
    last = sites[-1:] if "blocks.0.input" in sites else ()
    return [site for site in sites if chosen.fullmatch(site) or site in last]


@torch.no_grad()
def activations_at_items(
    subject: Subject, examples: Examples
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Tensor]]:  # fmt: skip
    """By item, its token in each document [N] int64; by site and item, the activations there [N, d] float64.

    Both are on the CPU. Items are those that every document has, up to the position where the answer is next.
    """
    net, spec, compute = subject.net, subject.spec, subject.compute
    assert examples.schema is not None
    positions, places = examples.schema.rows(examples.rows).positions, dict[str, Tensor]()
    sites, tokens = probed_sites(net), dict[str, list[Tensor]]()
    activations: dict[tuple[str, str], list[Tensor]] = {}
    asked = examples.store[examples.rows, -1]
    for item, place in positions.items():
        if ((place != NOWHERE) & (place <= asked)).all():
            places[item] = place.to(compute.device)
    data = Mixture([(subject.task.id, examples)])
    for inputs, part in evaluation_batches(net, data, spec, compute):
        with compute.autocast():
            read = run(net.trunk, inputs, read=sites).activations  # type: ignore[arg-type]
        rows = torch.arange(len(inputs), device=inputs.device)
        for item, place in places.items():
            tokens.setdefault(item, []).append(inputs[rows, place[part]].cpu())
            for site in sites:
                activations.setdefault((site, item), []).append(read[site][rows, place[part]].double().cpu())
    return {item: torch.cat(parts) for item, parts in tokens.items()}, {
        (site, item): torch.cat(activations[site, item]) for site in sites for item in places
    }


def control_labels(label: str, item: str, true: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """A label for each of the tokens [N] at an item that depends on the token alone, drawn from the true labels [N].

    They are the same whenever it is asked about the same documents.
    """
    rng = generator(0, "probes", label, item)
    return true[torch.randint(len(true), (vocabulary,), generator=rng)][tokens]


def probed(inputs: np.ndarray, labels: Sequence[np.ndarray]) -> list[np.ndarray]:
    """For each of several labels [N] of inputs [N, d]: where the probe is right in the second half, [N - N // 2]."""
    # Slow to import.
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    half, right = len(inputs) // 2, []
    training, test = inputs[:half], inputs[half:]
    mean, away = training.mean(0), training.std(0)
    # What hardly differs between documents is rounding: it must not be blown up to something that can be read.
    scale = np.where(away > _ROUNDING * np.sqrt(np.mean(training**2)), away, np.inf)
    training, test = (training - mean) / scale, (test - mean) / scale
    # Threads that wait for each other take ten times as long for such small products as one alone.
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it has not converged, there are many classes
        for known in labels:
            classes = np.unique(known[:half])
            if len(classes) > 1:
                probe = LogisticRegression(C=PENALTY, max_iter=ITERATIONS).fit(training, known[:half])
                right.append(probe.predict(test) == known[half:])
            else:
                right.append(known[half:] == classes[0])
    return right


def _share(right: np.ndarray) -> Scored:
    p = float(right.mean())
    return Scored(p, float(np.sqrt(p * (1 - p) / len(right))), len(right))


def _difference(right: np.ndarray, others: np.ndarray) -> Scored:
    """The difference of two accuracies on the same documents, with the standard error of a mean."""
    away = right.astype(float) - others
    return Scored(
        float(away.mean()), float(away.std(ddof=1) / np.sqrt(len(away))) if len(away) > 1 else None, len(away)
    )
