"""The local learning coefficient of a network, estimated by stochastic gradient Langevin dynamics (SGLD).

Source: Lau et al., "The local learning coefficient: a singularity-aware complexity measure" (2023), definition 2 and
algorithm 1; Watanabe, "Algebraic geometry and statistical learning theory" (2009).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import grad

from datasets.objectives import Scored, Scores, SquaredErrors
from datasets.task import DEV, TEST, Task
from evaluation.flat_loss import FlatLoss
from evaluation.hessian import hessian_matrix, negative, rank
from evaluation.subject import Subject
from net.multihead import MultiHead
from utils.seeding import generator
from utils.settings import Range, setting

_STEP = 0.25  # step times largest curvature: the energy comes out too large by at most 1/15; 4 is unstable
_LOCALISATION = 1e-3  # over the largest curvature
_LEAST = 3  # examples: above 1, so that their log is above 0
_PARTS = 16  # of the trace
_SMALL = 200  # parameters up to which the Hessian costs nothing
_NEAR = 0.1  # fall of the energy, as a share of the coefficient, up to which a point counts as a minimum
_DRAWS, _ALIKE = 100, 0.25  # points around one, and how well a parabola must agree with the mean of the loss there
Loss = Callable[
    [Tensor, Tensor | None], Tensor
]  # parameters of C chains [C, P], rows [C, B] or None: all -> losses [C]


@dataclass(frozen=True)
class SamplingSettings:
    """Settings of the evaluation."""

    examples: int = setting(Range(_LEAST, 10**6), "n, examples that the loss is the mean over, at most", default=1000)
    precision: float = setting(
        Range(0, whole=False, open_low=True), "1 / variance of the noise that squared errors are taken for; log losses "
        "need none", default=100.0,
    )  # fmt: skip
    step: float | None = setting(
        Range(0, whole=False, open_low=True), "epsilon, length of a step (default: 0.25 / largest curvature of the "
        "energy)", default=None,
    )  # fmt: skip
    localisation: float | None = setting(
        Range(0, whole=False, open_low=True), "gamma, of the Gaussian that holds chains near the network (default: "
        "0.001 times the largest curvature of the energy)", default=None,
    )  # fmt: skip
    descent: int = setting(
        Range(0, 10**6), "steps of gradient descent to the minimum of the loss on the examples, first", default=300
    )
    chains: int = setting(Range(2, 1000), "chains of the estimate", default=8)
    steps: int = setting(Range(16, 10**6), "steps of a chain that count", default=1500)
    burn_in: int = setting(Range(0, 10**6), "steps of a chain before them", default=500)
    batch: int | None = setting(Range(1, 10**6), "examples of a gradient (default: all)", default=None)
    multiplicity: int = setting(
        Range(1, 100), "m of the singularity, where it is known: above 1 the estimate is corrected for it", default=1
    )
    most_parameters: int = setting(Range(1, 10**8), "refuse larger networks", default=10_000)


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

    def beta(self, examples: float) -> float:
        """The inverse temperature."""
        return 1 / math.log(examples)


@dataclass(frozen=True)
class Estimate:
    """The estimate with what tells whether to trust it, from the chains that stayed finite."""

    value: float
    stderr: float  # of the mean over chains, from their spread
    effective_samples: float  # in all chains, from the autocorrelation of their losses
    between_chains: float  # R-hat: near 1 if chains agree
    left: int  # chains that did not stay
    trace: Tensor  # [C, T], n beta (L(w_t) - L(w*)) at all steps, the burn-in included, of the chains that stayed
    burn_in: int

    def of_multiplicity(self, multiplicity: int) -> tuple[float, float]:
        """The estimate corrected for a singularity of this multiplicity m, with its error by the jackknife over chains.

            E X + sqrt((m - 1) (E X - Var X)),   X = n beta (L(w) - L(w*))

        With t = n beta the integral of exp(-t L) goes as t^-lambda (log t + c)^(m - 1), so that E X = lambda - (m - 1)
        / (log t + c), which converges slowly, and Var X = E X - (m - 1) / (log t + c)^2.
        """
        if multiplicity == 1:
            return self.value, self.stderr
        kept = self.trace[:, self.burn_in :].double()
        first, second = kept.mean(1), kept.square().mean(1)  # moments in each chain
        chains = len(kept)

        def corrected(mean: Tensor, square: Tensor) -> Tensor:
            return mean + ((multiplicity - 1) * (mean - (square - mean**2))).relu().sqrt()

        without = corrected(*((part.sum() - part) / (chains - 1) for part in (first, second)))
        stderr = ((chains - 1) / chains * (without - without.mean()).square().sum()).sqrt()
        return float(corrected(first.mean(), second.mean())), float(stderr)


def learning_coefficient(subject: Subject) -> Scores:
    """The local learning coefficient of a network by SGLD, and what tells whether to trust the estimate.

    The energy of the chains is n times the mean loss of the task, a log loss, on n examples; squared errors are
    multiplied by precision / 2, which makes them the log loss of Gaussian noise. The coefficient does not depend on
    that: it is the exponent with which the volume of {L(w) - L(w*) < a} vanishes, whatever L is multiplied by. It is
    a property of a minimum: chains begin at the one that gradient descent on the examples leads to, and "fall" tells
    what n beta L loses on the way there. Chains with half and twice the step and localisation tell how far the
    estimate depends on these; chains that left are left out, and counted. "by dimension" is half the rank of the
    Hessian, where the network is small and has come to a minimum. Where the loss is flat in all directions there is no
    estimate, unless step and localisation are set.
    """
    own = subject.own(SamplingSettings)
    flat = FlatLoss(subject, own.examples)
    # Chains of other networks have other random numbers, so that a mean over networks has the error of many chains.
    n, rng = flat.examples, generator(0, "learning coefficient", flat.centre.tolist())
    factor = own.precision / 2 if isinstance(subject.spec.objective, SquaredErrors) else 1.0
    scale = n * Sampler().beta(n) * factor
    curvature = largest_curvature(flat, flat.centre, rng)
    if curvature == 0 and not (own.step and own.localisation):  # no scale tells how long steps may be
        return {"loss": Scored(float(flat(flat.centre.unsqueeze(0))), None, n)}
    centre = _descended(flat, flat.centre, curvature, own.descent if curvature else 0)
    main = Sampler(
        own.step or _STEP / (scale * curvature), own.localisation or _LOCALISATION * scale * curvature,
        own.chains, own.steps, own.burn_in, own.batch,
    )  # fmt: skip
    few = replace(main, chains=max(2, own.chains // 2))
    changed = {
        "step halved": replace(few, step=main.step / 2),
        "step doubled": replace(few, step=main.step * 2),
        "localisation halved": replace(few, localisation=main.localisation / 2),
        "localisation doubled": replace(few, localisation=main.localisation * 2),
    }
    samplers = [main, *changed.values()]
    first, *others = estimates(lambda points, rows: factor * flat(points, rows), centre, n, samplers, rng)
    with torch.no_grad():
        begin, end = flat(torch.stack([flat.centre, centre])).tolist()
    dimension = math.nan
    if len(centre) <= _SMALL:
        dimension = _by_dimension(subject, own, centre, scale, main.localisation, rng)
    found = {
        f"estimate{name}": Scored(*each.of_multiplicity(own.multiplicity), n)
        for name, each in zip(["", *(f", {name}" for name in changed)], [first, *others], strict=True)
    }
    values = {"loss": begin, "fall": scale * (begin - end), "step": main.step, "localisation": main.localisation,
              "by dimension": dimension, **_diagnostics(first)}  # fmt: skip
    found |= {name: Scored(value, None, n) for name, value in values.items()}
    return {name: score for name, score in found.items() if math.isfinite(score.value)}


def obstacle(net: MultiHead, task: Task) -> str:
    """Why the question cannot be asked of a network about a task; "" if it can."""
    least = min(len(task.splits[name]) for name in (DEV, TEST) if name in task.splits)
    return "" if least >= _LEAST else f"it is the limit of many examples, and the task has {least} to test on"


def _diagnostics(found: Estimate) -> dict[str, float]:
    parts = found.trace.mean(0).tensor_split(_PARTS) if len(found.trace) else ()
    return {
        "effective samples": found.effective_samples,
        "between chains": found.between_chains,
        "chains that left": float(found.left),
        **{f"trace {place}": float(part.mean()) for place, part in enumerate(parts, 1)},
    }


def _descended(loss: Loss, start: Tensor, curvature: float, steps: int) -> Tensor:
    """The lowest point [P] that gradient descent from a point [P] comes to; the rate is 1 / curvature."""
    best, lowest, point = start, math.inf, start
    for _ in range(steps):
        point = point.detach().requires_grad_()
        value = loss(point.unsqueeze(0), None).sum()
        if not value.item() < lowest:  # it has arrived, or the curvature has grown on the way
            break
        best, lowest = point.detach(), value.item()
        point = point - torch.autograd.grad(value, point)[0] / curvature
    return best


def _by_dimension(
    subject: Subject, own: SamplingSettings, centre: Tensor, scale: float, localisation: float, rng: torch.Generator
) -> float:  # fmt: skip
    """Half the rank of the Hessian at a point; NaN if it is no minimum on the examples, or none like a parabola."""
    flat = FlatLoss(subject, own.examples, torch.float64)

    def energy(point: Tensor) -> Tensor:
        return scale * flat(point.unsqueeze(0))[0]

    point = centre.double()
    values, vectors = torch.linalg.eigh(hessian_matrix(energy, point))
    # How far the energy falls from here to the minimum of its quadratic approximation: near 0 at a minimum.
    slopes = vectors.T @ grad(energy)(point)
    fall = float((slopes**2 / (values.abs() + localisation)).sum() / 2)
    # At kinks, as of ReLU at 0, the energy rises in directions in which the Hessian is 0.
    away = torch.randn(_DRAWS, len(point), generator=rng, dtype=point.dtype).to(point.device)
    away = torch.cat([away, -away]) / values.abs().max().sqrt()
    risen = scale * (flat(point + away) - flat(point.unsqueeze(0))).mean()
    expected = ((away @ vectors).square() @ values).mean() / 2
    dimension = rank(values) / 2
    critical = not negative(values) and fall <= _NEAR * max(dimension, 1)
    return dimension if critical and abs(risen / expected - 1) < _ALIKE else math.nan


def estimate(loss: Loss, centre: Tensor, examples: float, sampler: Sampler, rng: torch.Generator) -> Estimate:
    """The local learning coefficient at a point: n beta (E L(w) - L(w*)), the mean over the steps of the chains.

    Args:
        loss: the mean loss over rows of the data, of each of C parameter vectors.
        centre: w*, [P].
        examples: n, rows of the data; any number above 1 if the loss is an expected value.
    """
    return estimates(loss, centre, examples, [sampler], rng)[0]


def estimates(
    loss: Loss, centre: Tensor, examples: float, samplers: Sequence[Sampler], rng: torch.Generator
) -> list[Estimate]:
    """Estimates of samplers that differ in step, localisation and number of chains alone, from one computation."""
    first, sizes = samplers[0], [sampler.chains for sampler in samplers]
    step, localisation = (
        torch.tensor(column, dtype=centre.dtype, device=centre.device)
        .repeat_interleave(torch.tensor(sizes, device=centre.device)).unsqueeze(1)
        for column in zip(*((sampler.step, sampler.localisation) for sampler in samplers), strict=True)
    )  # fmt: skip
    trace = _chains(loss, centre, examples, first, step, localisation, rng)
    return [_estimate(part, first.burn_in) for part in trace.split(sizes)]


def _chains(
    loss: Loss, centre: Tensor, examples: float, sampler: Sampler, step: Tensor, localisation: Tensor,
    rng: torch.Generator,
) -> Tensor:  # fmt: skip
    """n beta (L(w_t) - L(w*)) along chains, [C, T], of steps and localisations [C, 1]; NaN where far from w*."""
    points = centre.expand(len(step), -1).clone()
    with torch.no_grad():
        base = loss(points, None)
    scale, trace, rows = examples * sampler.beta(examples), [], None
    # Without a loss the distance is sqrt(P / gamma), and further than this in one case of 250,000.
    limit = (math.sqrt(centre.numel()) + 5) / localisation.sqrt().squeeze(1)
    for _ in range(sampler.burn_in + sampler.steps):
        if sampler.batch is not None:
            rows = torch.randint(int(examples), (len(step), sampler.batch), generator=rng).to(centre.device)
        points.requires_grad_()
        values = loss(points, rows)
        (gradient,) = torch.autograd.grad(values.sum(), points)
        with torch.no_grad():
            near = (points - centre).norm(dim=1) < limit
            trace.append((scale * (values.detach() - base)).where(near, math.nan))
            noise = torch.randn(points.shape, generator=rng, dtype=points.dtype).to(centre.device)
            drift = scale * gradient + localisation * (points - centre)
            points = points.detach() - step / 2 * drift + step.sqrt() * noise
    return torch.stack(trace, 1)


def _estimate(trace: Tensor, burn_in: int) -> Estimate:
    """What chains [C, T] tell; NaN if none has stayed finite."""
    stayed = trace[trace.isfinite().all(1)]
    kept, left = stayed[:, burn_in:], len(trace) - len(stayed)
    if not len(stayed):
        return Estimate(math.nan, math.nan, math.nan, math.nan, left, stayed, burn_in)
    means = kept.double().mean(1)
    stderr = float(means.std() / math.sqrt(len(means))) if len(means) > 1 else math.nan
    return Estimate(
        float(means.mean()), stderr, effective_samples(kept), between_chains(kept), left, stayed, burn_in
    )  # fmt: skip


def largest_curvature(loss: Loss, centre: Tensor, rng: torch.Generator, rounds: int = 30) -> float:
    """The size of the largest eigenvalue of the Hessian of a loss at w*, [P], by power iteration."""
    direction = torch.randn(centre.shape, generator=rng, dtype=centre.dtype).to(centre.device)
    size = 0.0
    for _ in range(rounds):
        direction = direction / direction.norm().clamp_min(1e-30)
        point = centre.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point.unsqueeze(0), None).sum(), point, create_graph=True)
        (direction,) = torch.autograd.grad(gradient @ direction, point)
        size = float(direction.norm())
    return size


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
