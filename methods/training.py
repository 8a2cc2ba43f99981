"""Training one network, and predicting with it: the same for every method.

train sources -> Mixture -> shuffled, gathered, augmented on the device, many batches at a time
              -> GradientSteps
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import Examples, StreamSpec, TrainSource
from methods.steps import WARM_UP, Batch, Compute, GradientSteps, Rule, make_optimizer
from net.multihead import MultiHead, Own
from utils.checkpoints import Checkpoints
from utils.config import HyperConfig
from utils.errors import TrainingError
from utils.monitor import Monitor
from utils.seeding import generator
from utils.trees import Tree

# Batches are gathered and augmented together, up to this many bytes of network input: the cost of
# launching those operations is shared by all batches of the chunk, and the chunk stays in the cache.
_CHUNK_BYTES = 4 << 20
# Of a replay memory not more batches than these, which a small task can use up.
_REPLAYS_AT_ONCE = 64
# Evaluation on a CPU is fastest where the activations of a batch stay in its caches.
_EVALUATION_BYTES = {"cpu": 256 << 10, "cuda": _CHUNK_BYTES}


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


def batches(data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool) -> Iterator[Batch]:
    """The examples in a random order, in batches of `size`; the last one may be smaller.

    A last batch of one example is left out: batch normalisation cannot normalise one value a channel.
    The next epoch shuffles anew, so it is another example each time.
    """
    order = torch.randperm(len(data), generator=rng)
    if len(data) % size == 1:
        order = order[:-1]
    choices = spec.preprocess.draw(len(order), rng) if augment else None
    choices = choices.to(data.device) if choices is not None else None
    data = data.reordered(order)
    chunk = size * _at_once(size, spec)
    for start in range(0, len(data), chunk):
        part = slice(start, start + chunk)
        inputs = spec.preprocess(data.inputs(part), None if choices is None else choices[part])
        split = (inputs.split(size), data.targets[part].split(size), data.task_ids[part].split(size))
        for batch in zip(*split, strict=True):
            yield Batch(*batch)


def _at_once(size: int, spec: StreamSpec) -> int:
    """How many batches of `size` are gathered together."""
    return max(1, _CHUNK_BYTES // (size * 4 * math.prod(spec.input_shape)))


class Replays:
    """Batches of `size` examples of a replay memory, drawn with replacement, without end.

    Args:
        recorded: [len(data), C], comes along with the examples.
    """

    def __init__(
        self, data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool,
        recorded: Tensor | None = None,
    ) -> None:  # fmt: skip
        self._data, self._spec, self._size, self._rng = data, spec, size, rng
        self._augment, self._recorded = augment, recorded
        self._at_once = min(_REPLAYS_AT_ONCE, _at_once(size, spec))
        self._ready: Iterator[Batch] = iter(())

    def __iter__(self) -> Replays:
        return self

    def __next__(self) -> Batch:
        batch = next(self._ready, None)
        if batch is None:
            self._ready = self._gathered(*self._drawn())
            batch = next(self._ready)
        return batch

    def skip(self, count: int) -> None:
        """Go on after `count` more batches, as if they had been asked for; nothing is gathered for most of them."""
        for _ in range(count // self._at_once):
            self._drawn()
        for _ in range(count % self._at_once):
            next(self)

    def _drawn(self) -> tuple[Tensor, Tensor | None]:
        chunk = self._size * self._at_once
        picks = torch.randint(len(self._data), (chunk,), generator=self._rng)
        return picks, self._spec.preprocess.draw(chunk, self._rng) if self._augment else None

    def _gathered(self, picks: Tensor, choices: Tensor | None) -> Iterator[Batch]:
        drawn, size = self._data.reordered(picks), self._size
        choices = None if choices is None else choices.to(drawn.device)
        inputs = self._spec.preprocess(drawn.inputs(slice(0, len(picks))), choices)
        along: Sequence[Tensor | None] = [None] * self._at_once
        if self._recorded is not None:
            along = self._recorded[picks.to(self._recorded.device)].split(size)
        split = (inputs.split(size), drawn.targets.split(size), drawn.task_ids.split(size))
        for (images, targets, task_ids), said in zip(zip(*split, strict=True), along, strict=True):
            yield Batch(images, targets, task_ids, recorded=said)


class Joined:
    """Batches of several replay memories, one of each in every batch."""

    def __init__(self, parts: Sequence[Replays]) -> None:
        self._parts = parts

    def __iter__(self) -> Joined:
        return self

    def __next__(self) -> Batch:
        return joined([next(part) for part in self._parts])

    def skip(self, count: int) -> None:
        """Go on after `count` more batches."""
        for part in self._parts:
            part.skip(count)


def with_replay(new: Iterator[Batch], past: Iterator[Batch]) -> Iterator[Batch]:
    """Each batch of the new task followed by one of the replay memory."""
    for batch, old in zip(new, past, strict=False):
        both = joined([batch, old])
        yield replace(both, replayed=len(old), recorded=old.recorded)


def joined(parts: Sequence[Batch]) -> Batch:
    """Several batches as one."""
    return Batch(
        torch.cat([part.inputs for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.task_ids for part in parts]),
    )


def not_finite(what: str, epoch: int, hyper: HyperConfig, compute: Compute) -> TrainingError:
    """The error for a network that diverged: when, and what to try."""
    remedy = f"try a smaller lr (now {hyper.lr:g})" + (", or --precision fp32" if compute.bf16 else "")
    return TrainingError(f"{what} is not finite in epoch {epoch} of {hyper.epochs}; {remedy}")


def train_member(
    net: MultiHead,
    sources: Sequence[tuple[int, TrainSource]],
    spec: StreamSpec,
    hyper: HyperConfig,
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


def choose_launch(
    net: MultiHead, task_id: int, source: TrainSource, spec: StreamSpec, hyper: HyperConfig, compute: Compute,
    waits: str = "",
) -> tuple[Compute, str]:  # fmt: skip
    """Find out whether training steps of a network can be captured, by capturing one.

    Args:
        net: a trial network on the device; its weights may be changed.
        waits: why the method's steps cannot be captured, if so.

    Returns:
        What to run with, and how steps are launched, for people; "" where there is no choice.
    """
    if compute.device.type != "cuda":
        make_optimizer(net, hyper, hyper.lr)  # torch loads a second's worth of modules, which is not training
        return compute, ""
    if waits:
        return compute, f"steps launched one operation at a time ({waits})"
    captured, rng = replace(compute, captured=True), generator(0, "trial")
    data = Mixture([(task_id, source.epoch(rng))])
    try:
        with captured.training_stream():
            steps = GradientSteps(net.train(), spec, hyper, captured, WARM_UP + 2, Rule())
            for batch in batches(data, spec, hyper.batch, rng, augment=False):
                for _ in range(WARM_UP + 2):
                    steps(batch)
                break
            steps.take_loss()
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        return compute, f"steps launched one operation at a time (a CUDA graph cannot hold one: {reason})"
    return captured, "steps launched as CUDA graphs"


@torch.no_grad()
def outputs_on(
    net: MultiHead, task_id: int, examples: Examples, spec: StreamSpec, compute: Compute
) -> Iterator[Tensor]:
    """Outputs of a network, in test mode, on un-augmented examples of one task: parts of [N, C], on the device."""
    data = Mixture([(task_id, examples)])
    for inputs, part in _evaluation_batches(net, data, spec, compute):
        with compute.autocast():
            outputs = net(inputs, data.task_ids[part])
        yield outputs[:, : net.head_sizes[task_id]]


@torch.no_grad()
def outputs_of_heads(
    net: MultiHead, tasks: Sequence[int], data: Mixture, spec: StreamSpec, compute: Compute, own: Mapping[int, Own]
) -> dict[int, Tensor]:
    """Outputs of some heads of a network, in test mode, for all inputs, of whatever task: by task [N, C].

    Args:
        own: of the tasks that have something of their own in the trunk; each costs a forward pass of its own.
    """
    together = [task for task in tasks if not own.get(task)]
    found: dict[int, list[Tensor]] = {task: [] for task in tasks}
    for group in [together, *([task] for task in tasks if own.get(task))]:
        with net.for_task(own.get(group[0], {}) if group else {}):
            for inputs, _ in _evaluation_batches(net, data, spec, compute) if group else ():
                with compute.autocast():
                    outputs = net.heads(net.trunk(inputs), torch.tensor(group, device=compute.device))
                for place, task in enumerate(group):
                    found[task].append(outputs[:, place, : net.head_sizes[task]])
    return {task: torch.cat(parts) for task, parts in found.items()}


def _evaluation_batches(
    net: MultiHead, data: Mixture, spec: StreamSpec, compute: Compute
) -> Iterator[tuple[Tensor, slice]]:
    """Un-augmented inputs in order, and which ones they are; the network is in test mode."""
    net.eval()
    budget = _EVALUATION_BYTES.get(compute.device.type, _CHUNK_BYTES)
    size = max(64, min(512, budget // (4 * math.prod(spec.input_shape))))
    for start in range(0, max(1, len(data)), size):
        part = slice(start, start + size)
        yield spec.preprocess(data.inputs(part)), part


def predict_examples(net: MultiHead, task_id: int, examples: Examples, spec: StreamSpec, compute: Compute) -> Tensor:
    """Predictions of a trained network on un-augmented examples of one task, [N, C], on the device."""
    return torch.cat([spec.objective.predict(part) for part in outputs_on(net, task_id, examples, spec, compute)])
