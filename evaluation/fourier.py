"""The Fourier components of a network that adds modulo p: how far it computes by waves, and how far it remembers.

Source: Nanda et al., "Progress measures for grokking via mechanistic interpretability" (2023), sections 4 and 5.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.objectives import Scored, Scores
from datasets.synthetic.modular import all_pairs, arithmetic
from datasets.task import Examples, Task
from evaluation.subject import Subject
from net.multihead import MultiHead
from net.sequences.model import SequenceModel
from net.token_mlp import TokenMLP
from training.prediction import outputs_on

# A frequency is a key one from this part of the power that it has where all logits are waves and all waves are alike.
# Of a table that knows only the pairs that are trained on, each has the part `train_share`.
KEY = 0.5
MOST = 64  # frequencies whose power is a score
_SIGNS = {"addition": 1, "subtraction": -1}


class Measures(NamedTuple):
    """Losses and accuracies of logits on all pairs, each a number."""

    train_loss: float
    rest_loss: float
    train_accuracy: float
    rest_accuracy: float
    restricted_loss: float
    excluded_loss: float


@torch.no_grad()
def fourier(subject: Subject) -> Scores:
    """How much of what a network says about all pairs are waves of a few frequencies.

    "key frequencies" is the number of frequencies of which the logits have waves, see `key_frequencies`; they are those
    of the network as it is, not as it will be. For losses and accuracies see `measures`. "power at K" is the share of
    frequency K in the embedding of numbers, see `power`, and "squared weights" the sum of squares of all parameters.
    """
    sign, modulus, outputs, trained = _asked(subject)
    keys, powers = key_frequencies(outputs, sign), power(embedding(subject.net, modulus))
    found = measures(outputs, trained, keys, sign)
    count, total = trained.numel(), int(trained.sum())
    sizes = {"train": total, "rest": count - total, "excluded": total}
    scores = {
        name.replace("_", " "): Scored(value, None, sizes.get(name.split("_")[0], count))
        for name, value in found._asdict().items()
    }
    squares = [parameter.double().square().sum() for parameter in subject.net.parameters()]
    scores["key frequencies"] = Scored(float(len(keys)), None, len(powers))
    scores["squared weights"] = Scored(float(torch.stack(squares).sum()), None, 1)
    shown = powers.tolist()[:MOST]
    return scores | {f"power at {k}": Scored(value, None, 1) for k, value in enumerate(shown, 1)}


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network about a task; "" if it can."""
    found = arithmetic(task)
    if found is None or found[0] not in _SIGNS:
        return "only of modular addition and subtraction are the waves known"
    return "" if _tables(net) else "the network has no embedding of numbers"


def power(embeddings: Tensor) -> Tensor:
    """The share of each frequency 1, ..., floor(p / 2) in the power of embeddings of 0, ..., p - 1; without the mean.

        share_k = P_k / sum_j P_j,   P_k = sum_d |sum_a E_ad exp(-2 pi i a k / p)|^2, twice where k != p / 2

    Args:
        embeddings: E, [p, D].
    """
    squares = torch.fft.fft(embeddings.double(), dim=0).abs().square().sum(1)
    half = len(squares) // 2
    folded = torch.stack([squares[k] if 2 * k == len(squares) else 2 * squares[k] for k in range(1, half + 1)])
    return folded / folded.sum().clamp_min(torch.finfo(torch.float64).tiny)


def key_frequencies(logits: Tensor, sign: int = 1) -> list[int]:
    """The frequencies k, from 1, whose waves have at least 1 / p of the power of logits, [p, p, p] as in `measures`.

    The power is that of the logits without their mean over c and their mean over all pairs; the waves are
    cos(w (a + b)) and sin(w (a + b)), w = 2 pi k / p, with any factors for each c. With n frequencies alone each has
    1 / n of the power on the average, at least 2 / (p - 1). The embedding does not tell key frequencies where all
    are used: then each has as much power as in random numbers.
    """
    p = len(logits)
    centred = logits.double() - logits.double().mean(2, keepdim=True)
    squares = torch.fft.fft2(centred, dim=(0, 1)).abs().square().sum(2)
    total = squares.sum() - squares[0, 0]
    waves = torch.stack([sum(squares[j, sign * j % p] for j in {k, p - k}) for k in range(1, p // 2 + 1)])
    return [k for k, value in enumerate(waves.tolist(), 1) if value >= KEY * 2 / p * float(total) > 0]


def measures(logits: Tensor, trained: Tensor, keys: Iterable[int], sign: int = 1) -> Measures:
    """Losses of logits and of parts of them, which are chosen after a Fourier transform over a and b.

    "restricted": on all pairs, of the constant and the waves cos(w (a + b)) and sin(w (a + b)) alone, w = 2 pi k / p
    for the key frequencies k. "excluded": on the pairs that are trained on, of all but these waves.

    Args:
        logits: of the outputs 0, ..., p - 1 for all pairs (a, b), [p, p, p].
        trained: which pairs are trained on, a mask [p, p].
        keys: key frequencies, from 1.
        sign: 1 for addition; -1 for subtraction, whose waves are those of a - b.
    """
    logits, p = logits.double(), len(logits)
    numbers = torch.arange(p, device=logits.device)
    right = (numbers.unsqueeze(1) + sign * numbers) % p
    waves = torch.zeros(p, p, 1, dtype=torch.bool, device=logits.device)
    for k in {frequency for key in keys for frequency in (key, -key)}:
        waves[k % p, sign * k % p] = True
    constant = torch.zeros_like(waves)
    constant[0, 0] = True
    spectrum = torch.fft.fft2(logits, dim=(0, 1))
    kept = torch.fft.ifft2(spectrum.where(waves | constant, 0), dim=(0, 1)).real
    without = logits - torch.fft.ifft2(spectrum.where(waves, 0), dim=(0, 1)).real

    def loss(part: Tensor, pairs: Tensor) -> float:
        return float(F.cross_entropy(part[pairs], right[pairs]))

    hits, everything = (logits.argmax(-1) == right).double(), torch.ones_like(trained)
    return Measures(
        loss(logits, trained), loss(logits, ~trained), float(hits[trained].mean()), float(hits[~trained].mean()),
        loss(kept, everything), loss(without, trained),
    )  # fmt: skip


def embedding(net: MultiHead, modulus: int) -> Tensor:
    """The embedding of the numbers 0, ..., p - 1, [p, D]; tables of different positions stand side by side."""
    return torch.cat([table[:modulus] for table in _tables(net)], 1)


def _tables(net: MultiHead) -> list[Tensor]:
    """The tables of embeddings of a network, each [V, d]; none if it has none."""
    trunk = net.trunk
    if isinstance(trunk, TokenMLP):
        return list(trunk.tables)
    return [trunk.embed.weight] if isinstance(trunk, SequenceModel) and trunk.tokens else []  # type: ignore[list-item]


def _asked(subject: Subject) -> tuple[int, int, Tensor, Tensor]:
    """The sign of the operation, p, the logits of all pairs [p, p, p], and which are trained on, [p, p]."""
    operation, modulus = arithmetic(subject.task) or ("", 0)
    inputs, trained = all_pairs(subject.task)
    examples = Examples(inputs, torch.arange(len(inputs), device=inputs.device), inputs[:, :1])
    parts = list(outputs_on(subject.net, subject.task.id, examples, subject.spec, subject.compute))
    outputs = torch.cat(parts).squeeze(1)[:, :modulus]
    square = (modulus, modulus)
    return _SIGNS[operation], modulus, outputs.unflatten(0, square), trained.unflatten(0, square)
