"""What a method hands over to be measured: its networks and what it learned; and running means of predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from evaluation.anytime import Moment
from net.multihead import MultiHead, TaskWeights
from training.loop import TrainingStats
from utils.trees import Tree


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
    task_weights: Mapping[int, TaskWeights] = field(default_factory=dict)  # by task: trunk weights that it alone has


@dataclass(frozen=True)
class Learned:
    """The record of what was learned in one episode."""

    tasks: tuple[int, ...]  # ids of the tasks trained on
    weights: Mapping[int, float]  # sampling weight of each task that could be drawn; empty if none is drawn
    stats: TrainingStats
    changed: tuple[int, ...]  # tasks whose predictions may differ from before
    moments: Sequence[Moment] = ()  # of the episode, with --evaluate_every


class PredictionCache:
    """Running weighted means of predictions, by task and split, so that no member is ever evaluated twice."""

    def __init__(self) -> None:
        self._means: dict[tuple[int, str], tuple[Tensor, float]] = {}  # and the sum of the weights
        self._changed: set[tuple[int, str]] = set()  # since the last state_dict

    def add(self, task_id: int, split: str, probabilities: Tensor, weight: float) -> None:
        """Add the predictions, [N, C], of one more member on the examples of a split."""
        self._changed.add((task_id, split))
        if (task_id, split) not in self._means:
            self._means[task_id, split] = probabilities.clone(), weight
            return
        mean, weights = self._means[task_id, split]
        weights += weight
        # lerp_ keeps the mean of a single member exact to the bit, whatever its weight.
        self._means[task_id, split] = mean.lerp_(probabilities, weight / weights), weights

    def average(self, task_id: int, split: str) -> Tensor:
        """Weighted mean over the members added so far, [N, C]."""
        return self._means[task_id, split][0]

    def joined(self, task_id: int, positions: Tensor, probabilities: Tensor, weight: float) -> Tensor:
        """The average at some positions of the test split, [K, C], if one more member said this about them."""
        if (task_id, "test") not in self._means:
            return probabilities
        mean, weights = self._means[task_id, "test"]
        return mean[positions.to(mean.device)].lerp(probabilities, weight / (weights + weight))

    def restrict(self, task_id: int, split: str, positions: Tensor) -> None:
        """Keep only the examples at `positions`."""
        self._changed.add((task_id, split))
        mean, weights = self._means[task_id, split]
        self._means[task_id, split] = mean[positions.to(mean.device)], weights

    def state_dict(self) -> dict[str, Tree]:
        """A part for each task and split; None for those that have not changed since the last call."""
        parts = {
            f"task_{task}_{split}": (task, split, *mean) if (task, split) in self._changed else None
            for (task, split), mean in self._means.items()
        }
        self._changed.clear()
        return parts

    def load_state_dict(self, state: Mapping[str, Tree]) -> None:
        """Continue from what `state_dict` returned; parts of other names are ignored."""
        for part, content in state.items():
            if part.startswith("task_"):
                task, split, *mean = content
                self._means[task, split] = tuple(mean)

    def __contains__(self, task_and_split: tuple[int, str]) -> bool:
        """Whether a member was added."""
        return task_and_split in self._means
