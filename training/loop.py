"""Training one network, the same for every method: train sources -> Mixture -> batches -> GradientSteps."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import StreamSpec, Table, TrainSource
from net import has_batch_norm
from net.multihead import MultiHead
from training.batches import Batch, Columns, Replays, batches, lots, with_replay
from training.monitor import Checkpoints, Monitor, Watch
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

    def __add__(self, other: "TrainingStats") -> "TrainingStats":
        if not self.examples:
            return other
        examples, images, gradients, steps, seconds, _ = map(sum, zip(astuple(self), astuple(other), strict=True))
        loss = (self.loss * self.examples + other.loss * other.examples) / examples
        return TrainingStats(examples, images, gradients, steps, seconds, loss)


class Clock(NamedTuple):
    """The current time of training."""

    steps: int  # gradient steps taken
    examples: int  # training examples seen, replayed ones not counted
    epoch: float | None  # passes over the training examples, with fractions; None if a generator draws them


def not_finite(what: str, when: str, recipe: Recipe, compute: Compute) -> TrainingError:
    """The error for a network that diverged, with a remedy."""
    precision = ", or --precision fp32" if compute.bf16 else ""
    return TrainingError(f"{what} is not finite {when}; try a smaller lr (now {recipe.lr:g}){precision}")


def arrival_order(examples: int, recipe: Recipe, seed: int, name: tuple[object, ...]) -> Tensor:
    """The order in which the examples of a table come in the first epoch of a Training, [n] int64.

    Without a last batch of one example, which a network with batch normalisation is not trained on.
    """
    size = recipe.batch_size(examples)
    batches = math.ceil(recipe.length(examples, size) / recipe.steps_per_batch)
    arriving = min(batches * size, examples - (examples % size == 1))
    return torch.randperm(examples, generator=Feed.stream(seed, name))[:arriving]


def check_batch(net: MultiHead, recipe: Recipe, examples: int) -> None:
    """UserError if batches have a single example and the network normalises batches; an epoch has `examples`."""
    if has_batch_norm(net) and min(recipe.batch_size(examples), examples) == 1:
        raise UserError(
            f"batch is {recipe.batch}, of {examples} training examples; this network has batch normalisation, "
            "which needs at least 2 in a batch"
        )


class Feed:
    """The batches of a network's training examples, an epoch at a time, from the random stream of their order."""

    def __init__(
        self, sources: Sequence[tuple[int, TrainSource]], spec: StreamSpec, recipe: Recipe, seed: int,
        name: tuple[object, ...],
    ) -> None:  # fmt: skip
        self._sources, self._spec, self._augment = sources, spec, recipe.augments
        self._rng = self.stream(seed, name)
        self.fixed = all(isinstance(source, Table) for _, source in sources)  # epochs have the same examples
        self._table: Mixture | None = None  # these examples
        changed = recipe.augments and spec.preprocess.draw(1, generator(0, "trial")) is not None
        # Examples that are drawn at random come as they are drawn: no other order is better.
        self.in_order = len(sources) == 1 and not self.fixed
        self.plain = self.in_order and not changed
        self.constant = self.fixed and not changed  # whole epochs differ in nothing but the order

    @staticmethod
    def stream(seed: int, name: tuple[object, ...]) -> torch.Generator:
        """The random stream of the training `name` of a run."""
        return generator(seed, *name, "data")

    def state(self) -> Tensor:
        """The state of the random stream."""
        return self._rng.get_state()

    def restore(self, state: Tensor) -> None:
        """Resume from what `state` returned."""
        self._rng.set_state(state)

    def drawn(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets and task ids of the next epoch's first `count` examples, where this feed is `plain`."""
        ((number, source),) = self._sources
        examples = source.epoch(self._rng)
        inputs, targets = examples.store[:count], examples.targets[:count]
        return self._spec.preprocess(inputs), targets, torch.full((1,), number, device=targets.device).expand(count)

    def epoch(self, size: int, count: int) -> Iterator[Batch]:
        """The next epoch's first `count` examples in batches of `size`."""
        return batches(self._data(), self._spec, size, self._rng, augment=self._augment, count=count,
                       shuffle=not self.in_order)  # fmt: skip

    def lots(self, size: int, count: int, networks: int, *, shuffle: bool = True) -> Iterator[Columns]:
        """The same examples, those of many batches together: inputs, targets and task ids; see training/stacked.py."""
        return lots(self._data(), self._spec, size, self._rng, augment=self._augment, count=count,
                    shuffle=shuffle and not self.in_order, networks=networks)  # fmt: skip

    def _data(self) -> Mixture:
        data = self._table or Mixture([(task_id, source.epoch(self._rng)) for task_id, source in self._sources])
        if self.fixed:
            self._table = data
        return data


class Training:
    """The training of one network, which can be advanced to any step, and the network evaluated in between.

    Advancing in pieces gives the same bits as in one go, whatever is evaluated and drawn in between. With batch
    normalisation, which cannot normalise a single example, an epoch's last batch is left out if it has one example;
    UserError if all batches have one.

    Args:
        net: on the device; is changed in place.
        sources: task id and train source of each task; mini-batches are mixed over tasks.
        seed, name: of the random stream for data order and augmentation.
        rule: what the method changes in every step; plain supervised training without one.
        past: batches of replay memories; one of each follows a batch of the tasks trained on.
        before: the state of an optimizer that goes on, see `optimizer_state`.
        feed: where batches come from, by default the sources; see training/stacked.py.
        watch: what `complete` asks on the way; `watched` has the answers, each with the steps and examples until then.

    Attributes:
        losses: mean training loss over the last epoch, of each network (there is one; see training/stacked.py).
        diverged: number of a network -> steps after which its loss was not finite; if it is all of them, TrainingError.
    """

    def __init__(
        self, net: MultiHead, sources: Sequence[tuple[int, TrainSource]], spec: StreamSpec, recipe: Recipe,
        compute: Compute, seed: int, name: tuple[object, ...], *, rule: StepRule | None = None,
        past: Sequence[Replays] = (), monitor: Monitor | None = None, checkpoints: Checkpoints | None = None,
        before: Mapping[str, Tree] | None = None, watch: Watch | None = None, feed: Feed | None = None,
    ) -> None:  # fmt: skip
        self._net, self._recipe, self._compute, self._file = net, recipe, compute, "_".join(map(str, name))
        self._feed = feed or Feed(sources, spec, recipe, seed, name)
        self._rule, self._past, self._watch = rule or StepRule(), past, watch
        self.watched: list[tuple[int, int, Tree]] = []
        self._monitor, self._checkpoints = monitor or Monitor(), checkpoints or Checkpoints()
        drawn = sum(len(source) for _, source in sources)
        check_batch(net, recipe, drawn)
        self._size = recipe.batch_size(drawn)
        self.examples = drawn - (has_batch_norm(net) and drawn % self._size == 1)  # of an epoch
        self._per_epoch = math.ceil(self.examples / self._size) * recipe.steps_per_batch
        self.length = recipe.length(self.examples, self._size)  # gradient steps in all
        self.epochs = math.ceil(self.length / self._per_epoch)  # one that is cut short included
        self._rule.begin(net.train())
        self._modes = [(module, module.training) for module in net.modules()]
        self._steps = GradientSteps(net, spec, recipe, compute, self.length, self._rule, before)
        self.ended = 0  # epochs
        self._batches: Iterator[Batch] | None = None  # the rest of this epoch
        self._order = self._feed.state()  # at the start of this epoch
        self._gradients, self._seconds = 0, 0.0
        self.losses = [math.nan]
        self.diverged: dict[int, int] = {}
        self._begin: float | None = None  # when `advance` was called, while it runs
        self._random: dict[str, Tensor] | None = None  # state of the global generators when it returned

    @property
    def clock(self) -> Clock:
        """The current time of training."""
        return self.clock_after(self._steps.done)

    def clock_after(self, done: int) -> Clock:
        """The time of training after so many steps."""
        examples = self._recipe.seen(done, self.examples, self._size)
        whole = self.examples * self._recipe.steps_per_batch
        return Clock(done, examples, examples / whole if self._feed.fixed else None)

    def optimizer_state(self) -> dict[str, Tree]:
        """A copy of the optimizer's state, by name of the parameter."""
        return self._steps.optimizer_state()

    @property
    def done(self) -> bool:
        """Whether training has ended."""
        return self.ended == self.epochs

    @property
    def stats(self) -> TrainingStats:
        """What training took so far."""
        steps, examples, _ = self.clock
        return TrainingStats(self.examples, examples, self._gradients, steps, self._time_taken(), self._loss())

    def complete(self) -> TrainingStats:
        """Train to the end, from the last checkpoint if there is one; the network ends in test mode.

        Only plain training may be saved when it is over (see Checkpoints.finished).
        """
        saved = self._checkpoints.found(self._file) or {}
        if "stats" in saved:
            self._net.load_state_dict(saved["net"])
            self._net.eval()
            self.watched = saved["watched"]
            self._monitor.member_begins(self.epochs, self.examples * self._recipe.steps_per_batch, self.epochs)
            return TrainingStats(**saved["stats"])
        if saved:
            self.restore(saved)
        self._monitor.member_begins(self.epochs, self.examples * self._recipe.steps_per_batch, self.ended)
        if self._watch is not None:
            # The last step is left to whoever trained: what is answered then is measured anyway.
            for step in range((len(self.watched) + 1) * self._watch.every, self.length, self._watch.every):
                self.advance(step)
                self.watched.append((step, self.clock.examples, self._watch.ask()))
        self.advance()
        self._checkpoints.finished(
            self._file, lambda: {"net": self._net.state_dict(), "stats": asdict(self.stats), "watched": self.watched}
        )
        return self.stats

    def advance(self, to: int | None = None) -> None:
        """Train until `to` steps have been taken in all, or to the end; TrainingError if the loss is not finite."""
        to = self.length if to is None else min(to, self.length)
        with self._under_way():
            while not self.done:
                end = min((self.ended + 1) * self._per_epoch, self.length)
                self._take(min(to, end) - self._steps.done)
                if self._steps.done < end:
                    return
                self._end_epoch()
        self._net.eval()

    def stop(self) -> None:
        """End training here: the loss is that of the part of the epoch that was seen, if there is one."""
        seen = self.clock.examples - self.ended * self.examples * self._recipe.steps_per_batch
        if not self.done and seen > 0:
            self.losses = self._epoch_losses(seen)

    def state(self) -> Tree:
        """All that is needed to resume; tensors are not copied, which would cost time and memory."""
        return {
            "ended": self.ended,
            "gradients": self._gradients,
            "seconds": self._time_taken(),
            "order": self._order,
            "net": self._net.state_dict(),
            "steps": self._steps.state(),
            "rule": self._rule.state(),
            "watched": self.watched,
            "losses": self.losses,
            "random": self._random if self._begin is None and self._random else random_state(self._compute.device),
        }

    def restore(self, state: Tree) -> None:
        """Resume from the `state` of a training with the same arguments."""
        self.ended, self._gradients, self._seconds = state["ended"], state["gradients"], state["seconds"]
        self._feed.restore(state["order"])
        self._order, self._random = state["order"], state["random"]
        self._net.load_state_dict(state["net"])
        self._steps.restore(state["steps"])
        self._rule.restore(state["rule"])
        self.watched, self.losses = state["watched"], state["losses"]
        for replays in self._past:
            replays.skip(self._steps.done)
        taken = self._steps.done - self.ended * self._per_epoch
        if taken > 0:  # below 0 when training is over and its last epoch was cut short
            self._batches = self._epoch(taken)

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        """Bring back the modules' modes and the global random numbers of training, which others may change between."""
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
        """The batches of an epoch without the first `taken` ones."""
        every = self._feed.epoch(self._size, self.examples)
        repeat = self._recipe.steps_per_batch
        new = islice(every if repeat == 1 else (batch for batch in every for _ in range(repeat)), taken, None)
        return with_replay(new, self._past) if self._past else new

    def _take(self, count: int) -> None:
        """Take `count` steps of this epoch."""
        if count <= 0:
            return
        if self._batches is None:
            self._batches = self._epoch()
        steps, monitor, checkpoints = self._steps, self._monitor, self._checkpoints
        for batch in islice(self._batches, count):
            steps(batch)
            self._gradients += len(batch)
            monitor.step(len(batch) - batch.replayed)
            if checkpoints.due():
                checkpoints.save(self._file, self.state)

    def _end_epoch(self) -> None:
        """Read the loss of the epoch: the only wait for the device in it."""
        seen = self.clock.examples - self.ended * self.examples * self._recipe.steps_per_batch
        self.ended, self._batches, self._order = self.ended + 1, None, self._feed.state()
        self.losses = self._epoch_losses(seen)
        for number, loss in enumerate(self.losses):
            if not math.isfinite(loss):
                self.diverged.setdefault(number, self._steps.done)
        if len(self.diverged) == len(self.losses):
            raise not_finite("the training loss", self._when(), self._recipe, self._compute)
        self._monitor.epoch_ends(self.ended, self._loss(), self._steps.rate)
        if not self.done and self._checkpoints.due(epoch_ends=True):
            self._checkpoints.save(self._file, self.state)

    def _epoch_losses(self, seen: int) -> list[float]:
        """The mean training loss of each network over the examples seen in this epoch; waits for the device."""
        return [self._steps.take_loss() / seen]

    def _loss(self) -> float:
        """The mean of the losses that are finite."""
        going = [loss for loss in self.losses if math.isfinite(loss)]
        return sum(going) / len(going) if going else math.nan

    def _when(self) -> str:
        if self._recipe.epochs is None:
            return f"in step {self._steps.done} of {self.length}"
        return f"in epoch {self.ended} of {self.epochs}"


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's global generators, from which dropout is drawn."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set torch's global generators to what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps":
        torch.mps.set_rng_state(state["mps"])
