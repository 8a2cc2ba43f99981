"""Ways to combine the answers of members, with parameters fitted on held-out examples.

    members' outputs -> (temperature of each member) -> mean, weighted mean or stacking -> (temperature of the task)

Parameters are fitted on training examples that no member was trained on (--hold_out), never on test data. There may be
few of these: so priors draw the parameters towards their values in the plain mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

COMBINE = ("mean", "weighted", "stacked")
TEMPERATURES = ("none", "task", "member")
# Strengths of the priors.
_PRIOR_EXAMPLES = 10.0  # the weights of training count as much as so many examples
_LOG_TEMPERATURE_SPREAD = 0.25  # standard deviation around the common temperature of all tasks, or members
_STACKING_SPREAD = 0.5  # standard deviation of exponents around those of the mean, and of biases around 0
_LOG_TEMPERATURES = (-3.0, 3.0)
_LEAST = 1e-12  # probability
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Combination:
    """A function from the outputs of the members that learned a task to the zoo's answer.

    With z_m the outputs of member m, p_m = softmax(z_m / t_m):

        p(c) = sum_m w_m p_m(c) / sum_m w_m                        mean; weighted: other w_m
        p(c) ~ exp( sum_m a_m log p_m(c) + b_c )                   stacked
        and then p(c)^(1/t) / sum_c p(c)^(1/t)                     temperature of the task

    Attributes:
        members: numbers of the members.
        weights: w_m; stacked: a_m.
        biases: stacked: b_c; else None.
        temperatures: t_m, one a member; empty: all 1.
        temperature: t.
    """

    members: tuple[int, ...]
    weights: tuple[float, ...]
    biases: tuple[float, ...] | None = None
    temperatures: tuple[float, ...] = ()
    temperature: float = 1.0

    def __call__(self, outputs: Sequence[Tensor]) -> Tensor:
        """[N, C] of each member, before softmax or as log-probabilities -> probabilities [N, C]."""
        temperatures = self.temperatures or (1.0,) * len(outputs)
        p = [(z.float() if t == 1 else z.float() / t).softmax(-1) for z, t in zip(outputs, temperatures, strict=True)]
        if self.biases is None:
            mean = weighted_mean(p, self.weights)
        else:
            logs = torch.stack([p_m.clamp_min(_LEAST).log() for p_m in p], -1)
            mean = (logs @ logs.new_tensor(self.weights) + logs.new_tensor(self.biases)).softmax(-1)
        return mean if self.temperature == 1 else (mean.clamp_min(_LEAST).log() / self.temperature).softmax(-1)


@dataclass(frozen=True)
class MemberPredictions:
    """Saved predictions of members on examples of one task, such as the held-out ones."""

    log_probabilities: Mapping[int, Tensor]  # by member [N, C]
    targets: Tensor  # [N]

    def of(self, combination: Combination) -> Tensor:
        """The probabilities of a combination of these members, [N, C]."""
        return combination([self.log_probabilities[member] for member in combination.members])


def weighted_mean(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean, computed like the running mean of a run: the same to the bit."""
    mean, total = parts[0].clone(), weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += weight
        mean.lerp_(part, weight / total)
    return mean


def fitted(
    plain: Mapping[int, Combination], held: Mapping[int, MemberPredictions], combine: str, temperature: str,
    budget: int | None = None,
) -> dict[int, Combination]:  # fmt: skip
    """Combinations of all tasks, fitted on held-out examples; `plain`: the means with the weights of training."""
    made = dict(plain)
    if budget is not None:
        made = {task: with_budget(one, held[task], budget) for task, one in made.items()}
    if temperature == "member":
        parts: dict[int, list[tuple[Tensor, Tensor]]] = {}  # a member has the same temperature in all its tasks
        for task, one in made.items():
            for member in one.members:
                parts.setdefault(member, []).append((held[task].log_probabilities[member], held[task].targets))
        found = _temperatures(parts)
        made = {task: replace(one, temperatures=tuple(found[m] for m in one.members)) for task, one in made.items()}
    if combine != "mean":
        fit = weighted if combine == "weighted" else stacked
        made = {task: fit(one, held[task]) for task, one in made.items()}
    if temperature == "task":
        answers = {task: held[task].of(one).clamp_min(_LEAST).log() for task, one in made.items()}
        found = _temperatures({task: [(logs, held[task].targets)] for task, logs in answers.items()})
        made = {task: replace(one, temperature=found[task]) for task, one in made.items()}
    return made


def with_budget(one: Combination, held: MemberPredictions, budget: int) -> Combination:
    """The same combination of at most `budget` members: each next one gives the lowest loss on held-out examples.

    Source: forward selection of Caruana et al., "Ensemble selection from libraries of models", 2004, without repeats.
    """
    predictions = torch.stack([held.log_probabilities[member].exp() for member in one.members])
    right = predictions[:, torch.arange(len(held.targets)), held.targets].double()  # [members, N]
    weights = torch.tensor(one.weights, dtype=torch.float64)
    chosen: list[int] = []
    total, mass = torch.zeros_like(right[0]), 0.0
    for _ in range(min(budget, len(right))):
        means = (total + weights[:, None] * right) / (mass + weights[:, None])
        losses = -means.clamp_min(_LEAST).log().sum(-1)
        losses[chosen] = math.inf
        best = int(losses.argmin())
        chosen.append(best)
        total, mass = total + weights[best] * right[best], mass + float(weights[best])
    keep = sorted(chosen)
    return replace(one, members=tuple(one.members[i] for i in keep), weights=tuple(one.weights[i] for i in keep))


def weighted(one: Combination, held: MemberPredictions) -> Combination:
    """The most probable weights of a mixture of the members, by expectation maximisation.

    The prior is a Dirichlet distribution around the weights of training.
    """
    alone = [held.of(replace(one, members=(m,), weights=(1.0,), temperatures=one.temperatures[i : i + 1]))
            for i, m in enumerate(one.members)]  # fmt: skip
    right = torch.stack(alone, -1)[torch.arange(len(held.targets)), held.targets].double().numpy()  # [N, members]
    prior = np.array(one.weights) / sum(one.weights)
    weights = prior.copy()
    for _ in range(200):
        shares = weights * right
        shares /= np.maximum(shares.sum(-1, keepdims=True), _LEAST)
        weights = (shares.sum(0) + _PRIOR_EXAMPLES * prior) / (len(right) + _PRIOR_EXAMPLES)
    return replace(one, weights=tuple(weights.tolist()))


def stacked(one: Combination, held: MemberPredictions) -> Combination:
    """The most probable exponents and biases, under a normal prior around the geometric mean.

    Source: stacking, Wolpert 1992, with a log-linear second level.
    """
    from scipy.optimize import minimize  # slow to import, and most runs combine nothing
    from scipy.special import log_softmax

    temperatures = one.temperatures or (1.0,) * len(one.members)
    logs = np.stack([(held.log_probabilities[m].double() / t).log_softmax(-1).clamp_min(math.log(_LEAST)).numpy()
                     for m, t in zip(one.members, temperatures, strict=True)], -1)  # fmt: skip
    here, targets = np.arange(len(logs)), held.targets.numpy()
    start = np.concatenate([np.array(one.weights) / sum(one.weights), np.zeros(logs.shape[1])])
    members = len(one.members)

    def loss(values: Array) -> tuple[float, Array]:
        answer = log_softmax(logs @ values[:members] + values[members:], axis=-1)
        error = np.exp(answer)
        error[here, targets] -= 1
        gradient = np.concatenate([np.einsum("nc,ncm->m", error, logs), error.sum(0)])
        away = (values - start) / _STACKING_SPREAD**2
        penalty = 0.5 * float(away @ (values - start))
        return penalty - float(answer[here, targets].sum()), gradient + away

    values = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return replace(one, weights=tuple(values[:members].tolist()), biases=tuple(values[members:].tolist()))


def _temperatures(groups: Mapping[int, Sequence[tuple[Tensor, Tensor]]]) -> dict[int, float]:
    """The most probable temperature of each group of log-probabilities [N, C] and targets [N].

    The prior of log t is normal, around the log t that is best for all groups together.
    Source: Guo et al., "On calibration of modern neural networks", 2017.
    """
    from scipy.optimize import minimize_scalar  # slow to import

    def loss(x: float, parts: Sequence[tuple[Tensor, Tensor]], common: float, spread: float) -> float:
        losses = []
        for logs, targets in parts:
            right = (logs / math.exp(x)).softmax(-1).gather(-1, targets.unsqueeze(-1))
            losses.append(-float(right.clamp_min(_LEAST).log().double().sum()))
        return sum(losses) + 0.5 * ((x - common) / spread) ** 2

    def best(*given: object) -> float:
        return float(minimize_scalar(loss, args=given, bounds=_LOG_TEMPERATURES, method="bounded").x)

    common = best([part for parts in groups.values() for part in parts], 0.0, 1.0)
    return {group: math.exp(best(parts, common, _LOG_TEMPERATURE_SPREAD)) for group, parts in groups.items()}
