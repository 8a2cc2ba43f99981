"""Training one network: the same for every method.

train sources -> Mixture -> shuffled, gathered, augmented on the device, many batches at a time
              -> GradientSteps
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import StreamSpec, Table, TrainSource
from net import has_batch_norm
from net.multihead import MultiHead
from training.batches import Batch, Joined, Replays, batches, with_replay
from training.checkpoints import Checkpoints
from training.monitor import Monitor
from training.recipe import Recipe
from training.steps import GradientSteps, StepRule
from utils.compute import Compute
from utils.errors import TrainingError, UserError
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


class Clock(NamedTuple):
    """Where training is."""

    steps: int  # gradient steps taken
    examples: int  # training examples seen, those that are replayed not counted
    epoch: float | None  # passes over the training examples, with fractions; None if a generator draws them


def not_finite(what: str, when: str, recipe: Recipe, compute: Compute) -> TrainingError:
    """The error for a network that diverged: when, and what to try."""
    remedy = f"try a smaller lr (now {recipe.lr:g})" + (", or --precision fp32" if compute.bf16 else "")
    return TrainingError(f"{what} is not finite {when}; {remedy}")


def check_batch(net: MultiHead, recipe: Recipe, examples: int) -> None:
    """Check that a batch of the recipe can be normalised, where an epoch has `examples`.

    Raises:
        UserError: it has a single example, and the network has batch normalisation.
    """
    if has_batch_norm(net) and min(recipe.batch_size(examples), examples) == 1:
        raise UserError(
            f"batch is {recipe.batch}, of {examples} training examples; this network has batch normalisation, "
            "which needs at least 2 in a batch"
        )


class Training:
    """One network that is being trained: to the end, or to some step, asked, and further.

    Advancing in pieces gives the same bits as in one go, whatever is asked of the network between, and whatever
    random numbers are drawn there. A last batch of one example in an epoch is left out where the network has batch
    normalisation, which cannot normalise it.

    Args:
        net: on the device; is changed in place.
        sources: task id and train source of each task; mini-batches are mixed over tasks.
        recipe: with which length, batches, optimizer and schedule.
        seed, name: of the random stream for data order and augmentation.
        rule: what the method does in every step; plain supervised training without one.
        past: batches of a replay memory; each is put behind a batch of the tasks trained on.
        monitor: is told of steps and epochs.
        checkpoints: where training is saved while it is under way.

    Attributes:
        examples: training examples of an epoch.
        epochs: how many epochs there are, a last one that is cut short included.
        ended: how many of them have ended.
        length: gradient steps in all.

    Raises:
        UserError: see check_batch.
    """

    def __init__(
        self,
        net: MultiHead,
        sources: Sequence[tuple[int, TrainSource]],
        spec: StreamSpec,
        recipe: Recipe,
        compute: Compute,
        seed: int,
        name: tuple[object, ...],
        *,
        rule: StepRule | None = None,
        past: Replays | Joined | None = None,
        monitor: Monitor | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._net, self._sources, self._spec, self._recipe, self._compute = net, sources, spec, recipe, compute
        self._rng, self._file = generator(seed, *name, "data"), "_".join(map(str, name))
        self._rule, self._past = rule or StepRule(), past
        self._monitor, self._checkpoints = monitor or Monitor(), checkpoints or Checkpoints()
        drawn = sum(len(source) for _, source in sources)
        check_batch(net, recipe, drawn)
        self._size = recipe.batch_size(drawn)
        self.examples = drawn - (has_batch_norm(net) and drawn % self._size == 1)
        self._per_epoch = math.ceil(self.examples / self._size)
        self.length = recipe.length(self.examples, self._size)
        self.epochs = math.ceil(self.length / self._per_epoch)
        self._rule.begin(net.train())
        self._modes = [(module, module.training) for module in net.modules()]
        self._steps = GradientSteps(net, spec, recipe, compute, self.length, self._rule)
        self.ended = 0
        self._batches: Iterator[Batch] | None = None  # those of this epoch that are still to come
        self._order = self._rng.get_state()  # before what is left of this epoch's draws
        self._gradients, self._seconds, self._loss = 0, 0.0, math.nan
        self._begin: float | None = None  # when `advance` was called, while it runs
        self._random: dict[str, Tensor] | None = None  # where the global generators were when it returned

    @property
    def clock(self) -> Clock:
        """Where training is."""
        epochs, batch = divmod(self._steps.done, self._per_epoch)
        examples = epochs * self.examples + min(batch * self._size, self.examples)
        derived = all(isinstance(source, Table) for _, source in self._sources)
        return Clock(self._steps.done, examples, examples / self.examples if derived else None)

    @property
    def done(self) -> bool:
        """Whether training has ended."""
        return self.ended == self.epochs

    @property
    def stats(self) -> TrainingStats:
        """What it took so far."""
        clock = self.clock
        return TrainingStats(
            self.examples, clock.examples, self._gradients, clock.steps, self._time_taken(), self._loss
        )  # fmt: skip

    def advance(self, to: int | None = None) -> None:
        """Train until `to` steps have been taken in all; to the end if `to` is None.

        Raises:
            TrainingError: the loss is not finite; says where and what to try.
        """
        to = self.length if to is None else min(to, self.length)
        with self._under_way():
            while not self.done:
                end = min((self.ended + 1) * self._per_epoch, self.length)
                self._take(min(to, end) - self._steps.done)
                if self._steps.done < end:
                    return
                self._end_epoch()
        self._net.eval()

    def state(self) -> Tree:
        """All that is needed to resume."""
        # The parts as they are: copies of tensors would cost time and memory.
        return {
            "ended": self.ended,
            "gradients": self._gradients,
            "seconds": self._time_taken(),
            "order": self._order,
            "net": self._net.state_dict(),
            "steps": self._steps.state(),
            "rule": self._rule.state(),
            "random": self._random if self._begin is None and self._random else random_state(self._compute.device),
        }

    def restore(self, state: Tree) -> None:
        """Resume from what `state` returned of a training that was begun with the same arguments."""
        self.ended, self._gradients, self._seconds = state["ended"], state["gradients"], state["seconds"]
        self._rng.set_state(state["order"])
        self._order, self._random = state["order"], state["random"]
        self._net.load_state_dict(state["net"])
        self._steps.restore(state["steps"])
        self._rule.restore(state["rule"])
        if self._past is not None:
            self._past.skip(self._steps.done)
        taken = self._steps.done - self.ended * self._per_epoch
        if taken:
            self._batches = self._epoch(taken)

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        """The network's mode and the global random numbers as training left them; others may change both after."""
        for module, mode in self._modes:
            module.training = mode
        if self._random is not None:
            restore_random_state(self._random, self._compute.device)
        self._begin = time.perf_counter()
        with self._compute.training_stream():
            yield
        self._seconds, self._begin = self._time_taken(), None
        self._random = random_state(self._compute.device)

    def _time_taken(self) -> float:
        return self._seconds + (0.0 if self._begin is None else time.perf_counter() - self._begin)

    def _epoch(self, taken: int = 0) -> Iterator[Batch]:
        """The batches of an epoch but for the first `taken` ones."""
        data = Mixture([(task_id, source.epoch(self._rng)) for task_id, source in self._sources])
        fresh = batches(
            data, self._spec, self._size, self._rng, augment=self._recipe.augments, count=self.examples
        )  # fmt: skip
        for _ in range(taken):
            next(fresh)
        return fresh if self._past is None else with_replay(fresh, self._past)

    def _take(self, count: int) -> None:
        """Take `count` steps of this epoch."""
        if count <= 0:
            return
        if self._batches is None:
            self._order = self._rng.get_state()
            self._batches = self._epoch()
        steps, monitor, checkpoints = self._steps, self._monitor, self._checkpoints
        for batch in islice(self._batches, count):
            steps(batch)
            self._gradients += len(batch)
            monitor.step(len(batch) - batch.replayed)
            if checkpoints.due():
                checkpoints.save(self._file, self.state)

    def _end_epoch(self) -> None:
        """Look at the loss of the epoch: the only wait for the device in it."""
        seen = self.clock.examples - self.ended * self.examples
        self.ended, self._batches, self._order = self.ended + 1, None, self._rng.get_state()
        self._loss = self._steps.take_loss() / seen
        if not math.isfinite(self._loss):
            raise not_finite("the training loss", self._when(), self._recipe, self._compute)
        self._monitor.epoch_ends(self.ended, self._loss, self._steps.rate)
        if not self.done and self._checkpoints.due(epoch_ends=True):
            self._checkpoints.save(self._file, self.state)

    def _when(self) -> str:
        if self._recipe.epochs is None:
            return f"in step {self._steps.done} of {self.length}"
        return f"in epoch {self.ended} of {self.epochs}"


def train_member(
    net: MultiHead,
    sources: Sequence[tuple[int, TrainSource]],
    spec: StreamSpec,
    recipe: Recipe,
    compute: Compute,
    seed: int,
    name: tuple[object, ...],
    monitor: Monitor,
    *,
    rule: StepRule | None = None,
    past: Replays | Joined | None = None,
    checkpoints: Checkpoints | None = None,
) -> TrainingStats:
    """Train a network to the end, or on from where an earlier process was interrupted; see Training.

    Only plain training may be saved when it is over (see Checkpoints.finished).

    Raises:
        TrainingError: the loss is not finite; says where and what to try.
    """
    checkpoints, file = checkpoints or Checkpoints(), "_".join(map(str, name))
    training = Training(
        net, sources, spec, recipe, compute, seed, name, rule=rule, past=past, monitor=monitor, checkpoints=checkpoints
    )
    saved = checkpoints.found(file) or {}
    if "stats" in saved:
        net.load_state_dict(saved["net"])
        net.eval()
        monitor.member_begins(training.epochs, training.examples, training.epochs)
        return TrainingStats(**saved["stats"])
    if saved:
        training.restore(saved)
    monitor.member_begins(training.epochs, training.examples, training.ended)
    training.advance()
    checkpoints.finished(file, lambda: {"net": net.state_dict(), "stats": asdict(training.stats)})
    return training.stats


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of torch's global generators, which draw dropout."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Make torch's global generators go on from what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
