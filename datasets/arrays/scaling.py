"""Features and targets on a common scale: (x - mean) / sd with fixed numbers, so that no later task changes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.objectives import RealNumbers
from datasets.task import Preprocess
from utils.errors import UserError


def moments(values: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each feature of examples [N, D], or of each channel of [N, C, ...].

    In double precision; the standard deviation of what does not vary counts as 1.
    """
    axes = (0, *range(2, values.ndim))
    mean, sd = values.mean(axes, dtype=np.float64), values.std(axes, dtype=np.float64)
    still = sd <= 1e-6 * np.abs(mean)  # no more than the rounding of float32
    return mean.tolist(), np.where(still, 1.0, sd).tolist()


def _plain(mean: Tensor, sd: Tensor) -> dict[str, list[float]]:
    return {"mean": mean.tolist(), "sd": sd.tolist()}


def _scale(where: str, facts: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The inverse of `_plain`; a UserError, which begins with `where`, if there are no such numbers."""
    try:
        mean, sd = (torch.tensor([float(value) for value in facts[key]]) for key in ("mean", "sd"))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{where} must have the lists of numbers mean and sd") from None
    if mean.shape != sd.shape or not (sd > 0).all():
        raise UserError(f"{where}: mean and sd must have as many numbers, sd above 0")
    return mean, sd


@dataclass(frozen=True)
class ArrayPreprocess(Preprocess):
    """Stored numbers [B, D] or [B, C, ...] -> (x - mean) / sd, by feature or channel; as they are without any mean."""

    mean: Tensor | None = None  # [D] or [C], float32
    sd: Tensor | None = None
    columns: tuple[str, ...] = ()  # the names of the D features; () if they have none

    def __call__(self, inputs: Tensor, choices: Tensor | None = None) -> Tensor:
        if self.mean is None or self.sd is None:
            return inputs
        shape = (-1, *(1,) * (inputs.ndim - 2))
        return (inputs - self.mean.to(inputs.device).view(shape)) / self.sd.to(inputs.device).view(shape)

    @property
    def facts(self) -> dict[str, Any]:
        named = {"columns": list(self.columns)} if self.columns else {}
        return named if self.mean is None or self.sd is None else {**_plain(self.mean, self.sd), **named}

    @classmethod
    def saved(cls, where: str, facts: Mapping[str, Any]) -> "ArrayPreprocess":
        columns = tuple(map(str, facts.get("columns", ())))
        return cls(*_scale(where, facts), columns) if facts.keys() - {"columns"} else cls(columns=columns)


class ScaledNumbers(RealNumbers):
    """Regression whose outputs are (target - mean) / sd; predictions, targets and scores keep the unit of the data.

    mean and sd, [D], are fixed numbers on the device of the outputs; the training loss is in units of sd.
    """

    def __init__(self, mean: Tensor, sd: Tensor) -> None:
        self.mean, self.sd = mean, sd

    @property
    def facts(self) -> dict[str, Any]:
        return _plain(self.mean, self.sd)

    @classmethod
    def saved(cls, where: str, facts: Mapping[str, Any], device: torch.device) -> "ScaledNumbers":
        mean, sd = _scale(where, facts)
        return cls(mean.to(device), sd.to(device))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().loss(outputs, self._scaled(targets))

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().losses(outputs, self._scaled(targets))

    def predict(self, outputs: Tensor) -> Tensor:
        return super().predict(outputs) * self.sd + self.mean

    def uninformed(self, shape: Sequence[int], num_outputs: int, training: Tensor | None = None) -> Tensor:
        if training is None:
            return self.mean.expand(shape[0], -1).clone()
        return super().uninformed(shape, num_outputs, training)

    def _scaled(self, targets: Tensor) -> Tensor:
        return (targets.float() - self.mean) / self.sd
