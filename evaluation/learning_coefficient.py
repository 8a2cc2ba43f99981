"""The local learning coefficient of a network, estimated by stochastic gradient Langevin dynamics (SGLD).

Source: Lau et al., "The local learning coefficient: a singularity-aware complexity measure" (2023), definition 2 and
algorithm 1; Watanabe, "Algebraic geometry and statistical learning theory" (2009).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]  # parameters of C chains [C, P], rows of the data [C, B] -> losses [C]


@dataclass(frozen=True)
class Sampler:
    """How chains are drawn from the tempered posterior around a point.

    w <- w - epsilon/2 (n beta grad L_B(w) + gamma (w - w*)) + sqrt(epsilon) N(0, 1),   beta = 1 / log n
    """

    step: float = 1e-4  # epsilon
    localisation: float = 1.0  # gamma
    chains: int = 8
    steps: int = 4000
    burn_in: int = 1000  # steps that are left out
    batch: int | None = None  # B rows that a gradient is of; None: all

    def beta(self, examples: int) -> float:
        """The inverse temperature."""
        return 1 / math.log(examples)


@dataclass(frozen=True)
class Estimate:
    """The estimate with what tells whether to trust it."""

    value: float
    stderr: float  # of the mean over chains, from their spread
    effective_samples: float  # in all chains, from the autocorrelation of their losses
    between_chains: float  # R-hat: near 1 if chains agree
    trace: Tensor  # [C, T], n beta (L(w_t) - L(w*)) after the burn-in


def estimate(loss: Loss, centre: Tensor, examples: int, sampler: Sampler, rng: torch.Generator) -> Estimate:
    """The local learning coefficient at a point: n beta (E L(w) - L(w*)), the mean over the steps of the chains.

    Args:
        loss: the mean loss over rows of the data, of each of C parameter vectors.
        centre: w*, [P].
        examples: n, rows of the data.
    """
    beta, chains = sampler.beta(examples), sampler.chains
    points = centre.expand(chains, -1).clone()
    whole = torch.arange(examples, device=centre.device).expand(chains, -1)
    with torch.no_grad():
        base = loss(points, whole)
    trace = []
    for number in range(sampler.burn_in + sampler.steps):
        rows = whole
        if sampler.batch is not None:
            rows = torch.randint(examples, (chains, sampler.batch), generator=rng).to(centre.device)
        points.requires_grad_()
        values = loss(points, rows)
        (gradient,) = torch.autograd.grad(values.sum(), points)
        with torch.no_grad():
            drift = examples * beta * gradient + sampler.localisation * (points - centre)
            noise = torch.randn(points.shape, generator=rng, dtype=points.dtype).to(centre.device)
            if number >= sampler.burn_in:
                trace.append(examples * beta * (values.detach() - base))
            points = points.detach() - sampler.step / 2 * drift + math.sqrt(sampler.step) * noise
    found = torch.stack(trace, 1)
    means = found.mean(1)
    return Estimate(
        float(means.mean()),
        float(means.std() / math.sqrt(chains)) if chains > 1 else math.nan,
        effective_samples(found), between_chains(found), found,
    )  # fmt: skip


def between_chains(trace: Tensor) -> float:
    """R-hat of chains [C, T]: sqrt of the variance of all values over that within chains; NaN for one chain.

    Source: Gelman et al., "Bayesian data analysis" (2013), section 11.4.
    """
    chains, length = trace.shape
    if chains < 2:
        return math.nan
    within, between = trace.var(1).mean(), length * trace.mean(1).var()
    return float((((length - 1) / length * within + between / length) / within).sqrt())


def effective_samples(trace: Tensor) -> float:
    """Independent samples that tell as much as chains [C, T]: C T / (1 + 2 sum of autocorrelations).

    Pairs of autocorrelations are added as long as their sum is positive. Source: Geyer, "Practical Markov chain Monte
    Carlo" (1992), section 3.3.
    """
    chains, length = trace.shape
    away = trace - trace.mean(1, keepdim=True)
    size = 2 ** math.ceil(math.log2(2 * length))
    power = torch.fft.rfft(away, size).abs().square()
    correlation = torch.fft.irfft(power, size)[:, :length].mean(0)
    correlation = correlation / correlation[0]
    pairs = correlation[1 : 1 + 2 * ((length - 1) // 2)].unflatten(0, (-1, 2)).sum(1)
    stop = int((pairs <= 0).int().argmax()) if bool((pairs <= 0).any()) else len(pairs)
    return float(chains * length / (1 + 2 * pairs[:stop].sum()))
