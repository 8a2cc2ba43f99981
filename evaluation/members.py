"""A trained network of a zoo, and the tasks that it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from net.multihead import MultiHead, TaskWeights


@dataclass
class Member:
    """A trained network, its tasks, and its predictions until they are written to the run directory."""

    number: int  # from 0, the place in the zoo
    episode: int
    tasks: tuple[int, ...]
    net: MultiHead
    weights: tuple[float, ...]  # in the mean that answers each of the tasks
    replaces: bool  # whether earlier members do not answer any more
    predictions: dict[tuple[int, str], Tensor] = field(default_factory=dict)  # (task id, split) -> [N, C]
    task_weights: Mapping[int, TaskWeights] = field(default_factory=dict)  # by task: what only it has in the trunk
