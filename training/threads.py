"""How many CPU threads a network is trained with."""

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from net import input_dtype
from utils.machine import WORK_OF_A_THREAD, threads_for

MOST_THREADS = torch.get_num_threads()  # as many as there are cores, or as OMP_NUM_THREADS says

# Less work justifies one more thread where networks side by side share it out; see docs/performance.md.
_EASIER = 8


def use_threads(
    trunk: nn.Module, shape: tuple[int, ...], batch: int | str, device: torch.device, networks: int = 1
) -> None:  # fmt: skip
    """On a CPU, set the number of threads to what the work of a step is worth.

    Waking a second thread costs a small network more than it saves, on a busy machine. The last digits of a result
    depend on the number of threads, so it follows from the network, its inputs, of this `shape`, and the batch size
    alone; a full batch is worth all threads. Of several `networks` that compute together each thread takes some.
    """
    if device.type == "cpu":
        work = networks * multiply_adds(trunk, shape)
        least = WORK_OF_A_THREAD if networks == 1 else WORK_OF_A_THREAD // _EASIER
        most = MOST_THREADS
        torch.set_num_threads(most if isinstance(batch, str) else threads_for(batch * work, most, least))


def multiply_adds(trunk: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds in the forward pass of one example."""
    device = next(trunk.parameters(), torch.empty(0)).device  # a trunk without parameters is on the CPU
    training = trunk.training
    # Detached, since the counter fails if a part of a parameter is the input of a module.
    values = {name: parameter.detach() for name, parameter in trunk.named_parameters()}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(trunk.eval(), values, (torch.zeros(1, *shape, dtype=input_dtype(trunk), device=device),))
    trunk.train(training)
    return counter.get_total_flops() // 2
