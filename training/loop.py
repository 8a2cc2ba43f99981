"""Training one network: the same for every method.

train sources -> Mixture -> shuffled, gathered, augmented on the device, many batches at a time
              -> GradientSteps
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import StreamSpec, TrainSource
from net.multihead import MultiHead
from training.batches import Joined, Replays, batches, with_replay
from training.checkpoints import Checkpoints
from training.monitor import Monitor
from training.recipe import Recipe
from training.steps import GradientSteps, Rule
from utils.compute import Compute
from utils.errors import TrainingError
from utils.seeding import generator
from utils.trees import Tree


@dataclass(frozen=True)
class TrainingStats:
    """What training one or several members took."""

    examples: int = 0  # in one epoch
    images: int = 0  # examples of the tasks trained on, over all epochs
    gradients: int = 0  # of single examples: those of `images`, of replayed and of reference examples
    steps: int = 0
    seconds: float = 0.0  # inside the training loop only
    loss: float = math.nan  # mean over the last epoch

    def __add__(self, other: TrainingStats) -> TrainingStats:
        if not self.examples:
            return other
        examples = self.examples + other.examples
        return TrainingStats(
            examples,
            self.images + other.images,
            self.gradients + other.gradients,
            self.steps + other.steps,
            self.seconds + other.seconds,
            (self.loss * self.examples + other.loss * other.examples) / examples,
        )


@dataclass
class Place:
    """Where training is: after `batch` batches of an epoch."""

    epoch: int = 1
    batch: int = 0
    gradients: int = 0  # of single examples, so far
    seconds: float = 0.0  # so far
    order: Tensor | None = None  # state of the data's random generator before the epoch


def not_finite(what: str, epoch: int, hyper: Recipe, compute: Compute) -> TrainingError:
    """The error for a network that diverged: when, and what to try."""
    remedy = f"try a smaller lr (now {hyper.lr:g})" + (", or --precision fp32" if compute.bf16 else "")
    return TrainingError(f"{what} is not finite in epoch {epoch} of {hyper.epochs}; {remedy}")


def train_member(
    net: MultiHead,
    sources: Sequence[tuple[int, TrainSource]],
    spec: StreamSpec,
    hyper: Recipe,
    compute: Compute,
    seed: int,
    name: tuple[object, ...],
    monitor: Monitor,
    *,
    augment: bool,
    rule: Rule | None = None,
    past: Replays | Joined | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainingStats:
    """Train `net` in place on all tasks of `sources` together, cosine learning rate over all steps.

    Args:
        sources: task id and train source of each task.
        seed, name: of the random stream for data order and augmentation.
        rule: what the method does in every step; plain supervised training without one.
        past: batches of a replay memory; each is put behind a batch of the tasks trained on.
        checkpoints: where training is saved while it is under way, and found if it was interrupted: what comes
            out is the same to the bit. Only plain training may be saved when it is over (see Checkpoints.finished).

    Raises:
        TrainingError: the loss is not finite; says where and what to try.
    """
    rule, checkpoints = rule or Rule(), checkpoints or Checkpoints()
    rng, file = generator(seed, *name, "data"), "_".join(map(str, name))
    saved = checkpoints.found(file) or {}
    if "stats" in saved:
        net.load_state_dict(saved["net"])
        net.eval()
        stats = TrainingStats(**saved["stats"])
        monitor.member_begins(hyper.epochs, stats.examples, hyper.epochs)
        return stats
    place = Place(**saved["place"]) if saved else Place()
    first = place.epoch
    rule.begin(net.train())
    begin = time.perf_counter() - place.seconds

    def state() -> Tree:
        here = replace(place, seconds=time.perf_counter() - begin)
        # The fields as they are: asdict would copy tensors.
        return {"place": vars(here), "net": net.state_dict(), "steps": steps.state(), "rule": rule.state(),
                "random": random_state(compute.device)}  # fmt: skip

    with compute.training_stream():
        for epoch in range(first, hyper.epochs + 1):
            if place.order is not None:
                rng.set_state(place.order)
            place = replace(place, epoch=epoch, order=rng.get_state())
            data = Mixture([(task_id, source.epoch(rng)) for task_id, source in sources])
            if epoch == first:
                count = len(data) - (len(data) % hyper.batch == 1)
                steps = GradientSteps(net, spec, hyper, compute, hyper.epochs * math.ceil(count / hyper.batch), rule)
                monitor.member_begins(hyper.epochs, count, epoch - 1)
                if saved:
                    net.load_state_dict(saved["net"])
                    steps.restore(saved["steps"])
                    rule.restore(saved["rule"])
                    if past is not None:
                        past.skip(steps.done)
                    restore_random_state(saved["random"], compute.device)
            fresh = islice(batches(data, spec, hyper.batch, rng, augment=augment), place.batch, None)
            for batch in fresh if past is None else with_replay(fresh, past):
                steps(batch)
                place.batch += 1
                place.gradients += len(batch)
                monitor.step(len(batch) - batch.replayed)
                if checkpoints.due():
                    checkpoints.save(file, state)
            mean = steps.take_loss() / count  # the only wait for the device in an epoch
            if not math.isfinite(mean):
                raise not_finite("the training loss", epoch, hyper, compute)
            monitor.epoch_ends(epoch, mean, steps.rate)
            place = Place(epoch + 1, 0, place.gradients, place.seconds, rng.get_state())
            if epoch < hyper.epochs and checkpoints.due(epoch_ends=True):
                checkpoints.save(file, state)
    net.eval()
    stats = TrainingStats(
        count, hyper.epochs * count, place.gradients, steps.done, time.perf_counter() - begin, mean
    )  # fmt: skip
    checkpoints.finished(file, lambda: {"net": net.state_dict(), "stats": asdict(stats)})
    return stats


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of torch's global generators, which draw dropout."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on drawing where `random_state` was asked."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
