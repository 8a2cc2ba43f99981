"""What a trained network answers: outputs and predictions on un-augmented examples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from datasets.mixture import Mixture
from datasets.task import Examples, StreamSpec
from net.multihead import MultiHead, TaskWeights
from utils.compute import Compute

_CHUNK_BYTES = 4 << 20
# Evaluation on a CPU is fastest where the activations of a batch stay in its caches.
_EVALUATION_BYTES = {"cpu": 256 << 10, "cuda": _CHUNK_BYTES}


@torch.no_grad()
def outputs_on(
    net: MultiHead, task_id: int, examples: Examples, spec: StreamSpec, compute: Compute
) -> Iterator[Tensor]:
    """Outputs of a network, in test mode, on un-augmented examples of one task: parts of [N, ..., C], on the device."""
    data = Mixture([(task_id, examples)])
    for inputs, part in evaluation_batches(net, data, spec, compute):
        with compute.autocast():
            outputs = net(inputs, data.task_ids[part])
        yield outputs[..., : net.head_sizes[task_id]]


@torch.no_grad()
def outputs_of_heads(
    net: MultiHead,
    tasks: Sequence[int],
    data: Mixture,
    spec: StreamSpec,
    compute: Compute,
    own: Mapping[int, TaskWeights],
) -> dict[int, Tensor]:
    """Outputs of some heads of a network, in test mode, for all inputs, of whatever task: by task [N, C].

    Args:
        own: of the tasks that have something of their own in the trunk; each costs a forward pass of its own.
    """
    together = [task for task in tasks if not own.get(task)]
    found: dict[int, list[Tensor]] = {task: [] for task in tasks}
    for group in [together, *([task] for task in tasks if own.get(task))]:
        with net.for_task(own.get(group[0], {}) if group else {}):
            for inputs, _ in evaluation_batches(net, data, spec, compute) if group else ():
                with compute.autocast():
                    outputs = net.heads(net.trunk(inputs), torch.tensor(group, device=compute.device))
                for place, task in enumerate(group):
                    found[task].append(outputs[..., place, : net.head_sizes[task]])
    return {task: torch.cat(parts) for task, parts in found.items()}


def evaluation_batches(
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
    """Predictions of a trained network on un-augmented examples of one task, [N, ..., C], on the device."""
    return torch.cat([spec.objective.predict(part) for part in outputs_on(net, task_id, examples, spec, compute)])
