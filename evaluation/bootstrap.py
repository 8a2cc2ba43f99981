"""Means over independent cases and ratios of means, with standard errors."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from datasets.objectives import Scored


def averages(columns: Mapping[str, Tensor]) -> dict[str, Scored]:
    """The means of values [N] by name, with the standard errors s / sqrt(N), which a single value does not have."""
    values = torch.stack(list(columns.values())).cpu().double()
    count = values.shape[1]
    errors = (values.std(1) / math.sqrt(count)).tolist() if count > 1 else [None] * len(values)
    return {
        name: Scored(mean, error, count)
        for name, mean, error in zip(columns, values.mean(1).tolist(), errors, strict=True)
    }


def resamples(count: int, times: int, rng: torch.Generator) -> Tensor:
    """How often each of N = `count` cases is among N that are drawn with replacement, [times, N] float64."""
    drawn = torch.randint(count, (times, count), generator=rng)
    found = torch.zeros(times, count, dtype=torch.float64)
    return found.scatter_add_(1, drawn, torch.ones_like(found))


def ratios(numerators: Tensor, denominators: Tensor, drawn: Tensor) -> Tensor:
    """Ratios of means, their standard errors and the ends of their 95 % intervals, [K, 4] float64.

        mean_n x_kn / mean_n y_n

    Args:
        numerators: [K, N] values x on the CPU, in float64.
        denominators: [N] values y.
        drawn: [S, N], see `resamples`; those in which the mean of y is 0 are left out.

    Source: Efron and Tibshirani, "An introduction to the bootstrap" (1993), sections 6.2 and 13.3 (percentiles).
    """
    below = drawn @ denominators
    found = (drawn @ numerators.T)[below != 0] / below[below != 0].unsqueeze(1)  # [S, K]
    ends = found.quantile(torch.tensor([0.025, 0.975], dtype=found.dtype), 0)
    return torch.stack([numerators.sum(1) / denominators.sum(), found.std(0), *ends], 1)
