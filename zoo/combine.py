"""How members become one answer, and what of it is fitted on held-out examples.

    members' outputs -> (temperature of each member) -> mean, weighted mean or stacking -> (temperature of the task)

Everything is fitted on training examples that no member was trained on (--hold_out), never on test data. There may be
few of them: so what is fitted is drawn towards what it would be without them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

COMBINE = ("mean", "weighted", "stacked")
TEMPERATURES = ("none", "task", "member")
# Prior knowledge, in the units of what is fitted.
_PRIOR_EXAMPLES = 10.0  # that say nothing against the weights of training
_LOG_TEMPERATURE_SPREAD = 0.25  # of tasks, or members, around their common temperature
_STACKING_SPREAD = 0.5  # of exponents around those of the mean, of biases around 0
_LOG_TEMPERATURES = (-3.0, 3.0)
_LEAST = 1e-12  # probability
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Combination:
    """How the members that learned a task answer it.

    With z_m the outputs of member m, p_m = softmax(z_m / t_m):

        p(c) = sum_m w_m p_m(c) / sum_m w_m                        mean; weighted: other w_m
        p(c) ~ exp( sum_m a_m log p_m(c) + b_c )                   stacked
        and then p(c)^(1/t) / sum_c p(c)^(1/t)                     temperature of the task

    Attributes:
        members: their numbers.
        weights: w_m; stacked: a_m.
        biases: stacked: b_c; else None.
        temperatures: t_m, one a member.
        temperature: t.
    """

    members: tuple[int, ...]
    weights: tuple[float, ...]
    biases: tuple[float, ...] | None = None
    temperatures: tuple[float, ...] = ()
    temperature: float = 1.0

    def __call__(self, outputs: Sequence[Tensor]) -> Tensor:
        """[N, C] of each member, before softmax or as log-probabilities -> probabilities [N, C]."""
        heat = self.temperatures or (1.0,) * len(outputs)
        said = [(z.float() if t == 1 else z.float() / t).softmax(-1) for z, t in zip(outputs, heat, strict=True)]
        if self.biases is None:
            mean = weighted_mean(said, self.weights)
        else:
            logs = torch.stack([p.clamp_min(_LEAST).log() for p in said], -1)
            mean = (logs @ logs.new_tensor(self.weights) + logs.new_tensor(self.biases)).softmax(-1)
        return mean if self.temperature == 1 else (mean.clamp_min(_LEAST).log() / self.temperature).softmax(-1)


@dataclass(frozen=True)
class HeldOut:
    """What members said about held-out examples of one task.

    Attributes:
        log_probabilities: member -> [N, C].
        targets: [N].
    """

    log_probabilities: Mapping[int, Tensor]
    targets: Tensor

    def of(self, combination: Combination) -> Tensor:
        """Its answer, [N, C]."""
        return combination([self.log_probabilities[member] for member in combination.members])


def weighted_mean(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The same numbers as the running mean of a run, to the bit."""
    mean, total = parts[0].clone(), weights[0]
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += weight
        mean.lerp_(part, weight / total)
    return mean


def negative_log_likelihood(probabilities: Tensor, targets: Tensor) -> float:
    """Sum over examples, nats."""
    return -float(probabilities.gather(-1, targets.unsqueeze(-1)).clamp_min(_LEAST).log().double().sum())


def fitted(
    plain: Mapping[int, Combination], held: Mapping[int, HeldOut], combine: str, temperature: str,
    budget: int | None = None,
) -> dict[int, Combination]:  # fmt: skip
    """Combinations of all tasks, fitted on held-out examples.

    Args:
        plain: of each task, the mean with the weights of training.
        combine: one of COMBINE. temperature: one of TEMPERATURES.
        budget: at most so many members for each task.
    """
    made = dict(plain)
    if budget is not None:
        made = {task: with_budget(one, held[task], budget) for task, one in made.items()}
    if temperature == "member":
        made = with_member_temperatures(made, held)
    fit = {"mean": lambda one, said: one, "weighted": weighted, "stacked": stacked}[combine]
    made = {task: fit(one, held[task]) for task, one in made.items()}
    return with_task_temperatures(made, held) if temperature == "task" else made


def with_budget(one: Combination, held: HeldOut, budget: int) -> Combination:
    """At most `budget` members: see order_of_members."""
    keep = sorted(order_of_members(one, held)[:budget])
    return replace(
        one,
        members=tuple(one.members[place] for place in keep),
        weights=tuple(one.weights[place] for place in keep),
    )


def order_of_members(one: Combination, held: HeldOut) -> list[int]:
    """Places of members, the most useful first: with each, the loss on held-out examples is the least that it can be.

    Source: forward selection of Caruana et al., "Ensemble selection from libraries of models", 2004, without repeats.
    """
    said = torch.stack([held.log_probabilities[member].exp() for member in one.members])
    right = said[:, torch.arange(len(held.targets)), held.targets].double()  # [members, N]
    weights = torch.tensor(one.weights, dtype=torch.float64)
    chosen: list[int] = []
    total, mass = torch.zeros_like(right[0]), 0.0
    while len(chosen) < len(right):
        means = (total + weights[:, None] * right) / (mass + weights[:, None])
        losses = -means.clamp_min(_LEAST).log().sum(-1)
        losses[chosen] = math.inf
        best = int(losses.argmin())
        chosen.append(best)
        total, mass = total + weights[best] * right[best], mass + float(weights[best])
    return chosen


def weighted(one: Combination, held: HeldOut) -> Combination:
    """Weights with the largest likelihood of a mixture, by expectation maximisation; a Dirichlet prior holds them near
    those of training.
    """
    said = [held.of(replace(one, members=(m,), weights=(1.0,), temperatures=one.temperatures[i : i + 1]))
            for i, m in enumerate(one.members)]  # fmt: skip
    right = torch.stack(said, -1)[torch.arange(len(held.targets)), held.targets].double().numpy()  # [N, members]
    prior = np.array(one.weights) / sum(one.weights)
    weights = prior.copy()
    for _ in range(200):
        shares = weights * right
        shares /= np.maximum(shares.sum(-1, keepdims=True), _LEAST)
        weights = (shares.sum(0) + _PRIOR_EXAMPLES * prior) / (len(right) + _PRIOR_EXAMPLES)
    return replace(one, weights=tuple(weights.tolist()))


def stacked(one: Combination, held: HeldOut) -> Combination:
    """Exponents and biases with the largest likelihood under a normal prior around the plain (geometric) mean.

    Source: stacking, Wolpert 1992, with a log-linear second level.
    """
    heat = one.temperatures or (1.0,) * len(one.members)
    from scipy.special import log_softmax  # slow to import

    logs = np.stack([(held.log_probabilities[m].double() / t).log_softmax(-1).clamp_min(math.log(_LEAST)).numpy()
                     for m, t in zip(one.members, heat, strict=True)], -1)  # fmt: skip
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

    from scipy.optimize import minimize  # slow to import, and most runs combine nothing

    values = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return replace(one, weights=tuple(values[:members].tolist()), biases=tuple(values[members:].tolist()))


def with_task_temperatures(made: Mapping[int, Combination], held: Mapping[int, HeldOut]) -> dict[int, Combination]:
    """A temperature for each task."""
    logs = {task: held[task].of(one).clamp_min(_LEAST).log() for task, one in made.items()}
    heat = _temperatures({task: [(logs[task], held[task].targets)] for task in made})
    return {task: replace(one, temperature=heat[task]) for task, one in made.items()}


def with_member_temperatures(made: Mapping[int, Combination], held: Mapping[int, HeldOut]) -> dict[int, Combination]:
    """A temperature for each member, the same in all its tasks."""
    said: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for task, one in made.items():
        for member in one.members:
            said.setdefault(member, []).append((held[task].log_probabilities[member], held[task].targets))
    heat = _temperatures(said)
    return {task: replace(one, temperatures=tuple(heat[m] for m in one.members)) for task, one in made.items()}


def _temperatures(said: Mapping[int, Sequence[tuple[Tensor, Tensor]]]) -> dict[int, float]:
    """One for each group of log-probabilities [N, C] and targets [N], drawn towards the one that is best for all.

    Source: Guo et al., "On calibration of modern neural networks", 2017.
    """

    from scipy.optimize import minimize_scalar  # slow to import

    def loss(log_temperature: float, parts: Sequence[tuple[Tensor, Tensor]]) -> float:
        heat = math.exp(log_temperature)
        return sum(negative_log_likelihood((logs / heat).softmax(-1), targets) for logs, targets in parts)

    def best(parts: Sequence[tuple[Tensor, Tensor]], common: float, spread: float) -> float:
        def penalised(x: float) -> float:
            return loss(x, parts) + 0.5 * ((x - common) / spread) ** 2

        return float(minimize_scalar(penalised, bounds=_LOG_TEMPERATURES, method="bounded").x)

    everything = [part for parts in said.values() for part in parts]
    common = best(everything, 0.0, 1.0)
    return {group: math.exp(best(parts, common, _LOG_TEMPERATURE_SPREAD)) for group, parts in said.items()}
