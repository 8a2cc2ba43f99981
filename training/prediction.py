"""Outputs and predictions of a network in test mode, on un-augmented examples."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import Examples, StreamSpec
from net.multihead import MultiHead, TaskWeights
from utils.compute import Compute

# Bytes of input in a batch. A CPU is fastest where the activations of a batch stay in its caches.
_BATCH_BYTES, _BATCH_BYTES_CPU = 4 << 20, 256 << 10


def predict_examples(net: MultiHead, task_id: int, examples: Examples, spec: StreamSpec, compute: Compute) -> Tensor:
    """Predictions of a network on examples of one task, [N, ..., C], on the device."""
    return torch.cat([spec.objective.predict(part) for part in outputs_on(net, task_id, examples, spec, compute)])


@torch.no_grad()
def outputs_on(
    net: MultiHead, task_id: int, examples: Examples, spec: StreamSpec, compute: Compute
) -> Iterator[Tensor]:
    """Outputs of a network on examples of one task: parts of [N, ..., C], on the device."""
    data = Mixture([(task_id, examples)])
    for inputs, part in evaluation_batches(net, data, spec, compute):
        with compute.autocast():
            outputs = net(inputs, data.task_ids[part])
        yield outputs[..., : net.head_sizes[task_id]]


@torch.no_grad()
def outputs_of_heads(
    net: MultiHead, tasks: Sequence[int], data: Mixture, spec: StreamSpec, compute: Compute,
    own: Mapping[int, TaskWeights],
) -> dict[int, Tensor]:  # fmt: skip
    """Outputs of the heads of `tasks` for all inputs, whatever task these belong to: by task, [N, ..., C].

    `own`: by task, weights of the trunk that it alone has; each task with some costs a forward pass of its own.
    """
    found: dict[int, list[Tensor]] = {task: [] for task in tasks}
    shared = [task for task in tasks if not own.get(task)]
    for group in filter(None, [shared, *([task] for task in tasks if own.get(task))]):
        with net.for_task(own.get(group[0], {})):
            numbers = torch.tensor(group, device=compute.device)
            for inputs, _ in evaluation_batches(net, data, spec, compute):
                with compute.autocast():
                    outputs = net.heads(net.trunk(inputs), numbers)
                for column, task in enumerate(group):
                    found[task].append(outputs[..., column, : net.head_sizes[task]])
    return {task: torch.cat(parts) for task, parts in found.items()}


def evaluation_batches(
    net: MultiHead, data: Mixture, spec: StreamSpec, compute: Compute
) -> Iterator[tuple[Tensor, slice]]:
    """Inputs in order, and their positions; puts the network in test mode."""
    net.eval()
    budget = _BATCH_BYTES_CPU if compute.device.type == "cpu" else _BATCH_BYTES
    size = max(64, min(512, budget // (4 * math.prod(spec.input_shape))))
    for start in range(0, max(1, len(data)), size):
        part = slice(start, start + size)
        yield spec.preprocess(data.inputs(part)), part
