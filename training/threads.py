"""How many threads of the CPU a network is trained with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.machine import threads_for

# As many as there are cores, or as OMP_NUM_THREADS says.
MOST_THREADS = torch.get_num_threads()


def use_threads(trunk: nn.Module, shape: tuple[int, ...], batch: int | str, device: torch.device) -> None:
    """On a CPU, train with as many threads as the work of a step is worth.

    A second thread saves a small network less than its waking costs beside other processes. The last digits of a
    result depend on the number of threads, so it is decided by the network, its inputs and the batch size alone.

    Args:
        trunk: of the network that is to be trained.
        shape: of one of its inputs.
        batch: see Recipe; a full batch is worth all threads.
    """
    if device.type == "cpu":
        work = multiply_adds(trunk, shape)
        torch.set_num_threads(MOST_THREADS if isinstance(batch, str) else threads_for(batch * work, MOST_THREADS))


def multiply_adds(trunk: nn.Module, shape: tuple[int, ...]) -> int:
    """Of convolutions and linear layers in the forward pass of one example: outputs times weights behind each."""
    work = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        nonlocal work
        work += outputs.numel() * layer.weight[0].numel()  # type: ignore[index, operator]

    layers = [layer for layer in trunk.modules() if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    device, training = next(trunk.parameters()).device, trunk.training
    with torch.inference_mode():
        trunk.eval()(torch.zeros(1, *shape, device=device))
    trunk.train(training)
    for handle in handles:
        handle.remove()
    return work
