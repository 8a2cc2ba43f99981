"""Member: a trained network of a zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from net.multihead import MultiHead, TaskWeights


@dataclass
class Member:
    """A trained network, its tasks, and its predictions until they are written to the run directory."""

    number: int  # from 0, in the order of joining
    episode: int
    tasks: tuple[int, ...]
    net: MultiHead
    weights: tuple[float, ...]  # of its predictions in the mean of each task
    replaces: bool  # whether earlier members no longer answer
    predictions: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # (task id, split) -> [N, C]
    task_weights: Mapping[int, TaskWeights] = field(
        default_factory=dict
    )  # by task: trunk weights that only this task has
