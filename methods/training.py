"""Training one network, and predicting with it: the same for every method.

train sources -> Mixture -> shuffled, gathered, augmented on the device, many batches at a time
              -> training_step -> loss, still on the device
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.task import Examples, Mixture, StreamSpec, TrainSource
from net.multihead import MultiHead
from utils.config import HyperConfig
from utils.errors import TrainingError
from utils.monitor import Monitor
from utils.seeding import generator

# Batches are gathered and augmented together, up to this many bytes of network input: the cost of
# launching those operations is shared by all batches of the chunk, and the chunk stays in the cache.
_CHUNK_BYTES = 4 << 20
_MAX_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Compute:
    """Where and how precisely networks run."""

    device: torch.device
    bf16: bool = False

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


@dataclass(frozen=True)
class TrainingStats:
    """What training one or several members took."""

    examples: int = 0  # in one epoch
    images: int = 0  # forward and backward passes of single examples
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
            self.steps + other.steps,
            self.seconds + other.seconds,
            (self.loss * self.examples + other.loss * other.examples) / examples,
        )


def cosine(step: int, steps: int) -> float:
    """Learning-rate factor at a step from 0: 1 at the start, towards 0 after the last (Loshchilov & Hutter 2017)."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def make_optimizer(net: MultiHead, hyper: HyperConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum 0.9 and weight decay `l2_reg` on every parameter."""
    device = next(net.parameters()).device.type
    return torch.optim.SGD(
        net.parameters(),
        hyper.lr,
        momentum=0.9,
        nesterov=True,
        weight_decay=hyper.l2_reg,
        fused=device in ("cpu", "cuda"),
    )


def training_step(
    net: MultiHead, optimizer: torch.optim.Optimizer, spec: StreamSpec, compute: Compute, batch: Batch
) -> Tensor:
    """One gradient step; returns the loss, still on the device so that nothing waits for it."""
    with compute.autocast():
        outputs = net(batch.inputs, batch.task_ids)
    loss = spec.objective.loss(outputs, batch.targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@dataclass(frozen=True)
class Batch:
    """What a network sees in one step."""

    inputs: Tensor  # [B, *input]
    targets: Tensor  # [B, *target]
    task_ids: Tensor  # [B]


def batches(data: Mixture, spec: StreamSpec, size: int, rng: torch.Generator, *, augment: bool) -> Iterator[Batch]:
    """The examples in a random order, in batches of `size`; the last one may be smaller.

    A last batch of one example is left out: batch normalisation cannot normalise one value a channel.
    The next epoch shuffles anew, so it is another example each time.
    """
    device = data.targets.device
    order = torch.randperm(len(data), generator=rng)
    if len(data) % size == 1:
        order = order[:-1]
    choices = spec.preprocess.draw(len(order), rng) if augment else None
    order = order.to(device)
    choices = choices.to(device) if choices is not None else None
    per_input = 4 * math.prod(spec.input_shape)
    chunk = size * max(1, _CHUNK_BYTES // (size * per_input))
    for start in range(0, len(order), chunk):
        part = slice(start, start + chunk)
        picks = order[part]
        inputs = spec.preprocess(data.inputs(picks), None if choices is None else choices[part])
        split = (inputs.split(size), data.targets[picks].split(size), data.task_ids[picks].split(size))
        for batch in zip(*split, strict=True):
            yield Batch(*batch)


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
) -> TrainingStats:
    """Train `net` in place on all tasks of `sources` together, cosine learning rate over all steps.

    Args:
        sources: task id and train source of each task.
        seed, name: of the random stream for data order and augmentation.

    Raises:
        TrainingError: the loss is not finite; says where and what to try.
    """
    net.train()
    optimizer = make_optimizer(net, hyper)
    rng = generator(seed, *name, "data")
    step, steps = 0, 0
    begin = time.perf_counter()
    for epoch in range(1, hyper.epochs + 1):
        data = Mixture([(task_id, source.epoch(rng)) for task_id, source in sources])
        if epoch == 1:
            count = len(data) - (len(data) % hyper.batch == 1)
            steps = hyper.epochs * math.ceil(count / hyper.batch)
            monitor.member_begins(hyper.epochs, count)
        total = torch.zeros((), device=compute.device)
        lr = hyper.lr
        for batch in batches(data, spec, hyper.batch, rng, augment=augment):
            lr = hyper.lr * cosine(step, steps)
            optimizer.param_groups[0]["lr"] = lr
            loss = training_step(net, optimizer, spec, compute, batch)
            total += loss * len(batch.targets)
            step += 1
            monitor.step(len(batch.targets))
        mean = total.item() / count  # the only wait for the device in an epoch
        if not math.isfinite(mean):
            raise not_finite("the training loss", epoch, hyper, compute)
        monitor.epoch_ends(epoch, mean, lr)
    seconds = time.perf_counter() - begin
    net.eval()
    return TrainingStats(count, hyper.epochs * count, step, seconds, mean)


@torch.inference_mode()
def predict_examples(net: MultiHead, task_id: int, examples: Examples, spec: StreamSpec, compute: Compute) -> Tensor:
    """Predictions of a trained network on un-augmented examples of one task, [N, C], on the device."""
    net.eval()
    data = Mixture([(task_id, examples)])
    size = max(16, min(_MAX_EVALUATION_BATCH, _CHUNK_BYTES // (4 * math.prod(spec.input_shape))))
    parts = []
    for positions in torch.arange(len(data), device=compute.device).split(size):
        inputs = spec.preprocess(data.inputs(positions))
        with compute.autocast():
            outputs = net(inputs, data.task_ids[positions])
        parts.append(spec.objective.predict(outputs)[:, : net.head_sizes[task_id]])
    return torch.cat(parts)
