"""A recurrent network of one layer, for sequences of numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from net.sequences.sites import Tap
from utils.settings import Range, setting


class RNN(nn.Module):
    """numbers [B, n] -> the last state [B, h] of a recurrent network with ReLU; the length n may differ between calls.

        s_0 = 0,   s_t = relu(W_ih x_t + W_hh s_{t-1})   for t = 1..n

    The parameters have the names and the initialisation of nn.RNN. Without biases the state stays 0 until the first
    number that is not: zeros in front of a sequence change nothing.
    """

    head_name = "linear"  # in published files

    @dataclass(frozen=True)
    class Settings:
        """Settings of the recurrent network."""

        hidden_size: int = setting(Range(1, 4096), "values of the state", default=16)
        bias: bool = setting(bool, "the recurrence and the heads have biases", default=False)

    def __init__(self, shape: tuple[int, ...], settings: Settings) -> None:
        super().__init__()
        self.width = width = settings.hidden_size
        self.length = shape[0]
        self.head_bias = settings.bias
        sizes = {"weight_ih_l0": (width, 1), "weight_hh_l0": (width, width)}
        if settings.bias:
            sizes |= {"bias_ih_l0": (width,), "bias_hh_l0": (width,)}  # type: ignore[dict-item]
        bound = width**-0.5
        self.rnn = nn.ParameterDict()
        for name, size in sizes.items():
            self.rnn[name] = nn.Parameter(torch.empty(size).uniform_(-bound, bound))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.stacked(self._as_one(), inputs.unsqueeze(0))[0]

    @staticmethod
    def stacked(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The last states of S networks at once, parameters by name [S, ...], inputs [S, B, n] -> [S, B, h]."""
        for state in _states(parameters, inputs):
            last = state
        return last

    def states(self, inputs: Tensor, first: Tensor | None = None) -> Tensor:
        """The states after each number, [B, n, h]; the recurrence begins at `first`, [B, h], by default at 0."""
        begin = None if first is None else first.unsqueeze(0)
        return torch.stack([state[0] for state in _states(self._as_one(), inputs.unsqueeze(0), begin)], 1)

    def sites(self) -> tuple[str, ...]:
        """The names of the sites, see net/sequences/sites.py: the states after each number, [B, h]."""
        return tuple(f"states.{place}" for place in range(self.length))

    def tapped(self, inputs: Tensor, tap: Tap) -> Tensor:
        """The last state, where each state is replaced by what a tap makes of it."""
        state = None
        for place in range(inputs.shape[1]):
            state = tap(f"states.{place}", self.states(inputs[:, place : place + 1], state)[:, -1])
        assert state is not None
        return state

    def holding(self, inputs: Tensor, neurons: Tensor) -> Tensor:
        """The last states of K networks, in each of which one of the `neurons`, [K], is held at 0: [K, B, h]."""
        held = {
            name: parameter.repeat(len(neurons), *(1,) * parameter[0].ndim)
            for name, parameter in self._as_one().items()
        }
        for parameter in held.values():  # without any input a neuron with ReLU is 0
            parameter[torch.arange(len(neurons)), neurons] = 0
        return self.stacked(held, inputs.expand(len(neurons), *inputs.shape))

    def _as_one(self) -> dict[str, Tensor]:
        return {name: parameter.unsqueeze(0) for name, parameter in self.named_parameters()}


def _states(parameters: Mapping[str, Tensor], inputs: Tensor, first: Tensor | None = None) -> Iterator[Tensor]:
    """The state of each of S networks after each number, [S, B, h].

    In memory the examples of a batch lie side by side, [S, h, B]: faster for narrow networks, see docs/performance.md.
    """
    recurrent, driving = parameters["rnn.weight_hh_l0"], parameters["rnn.weight_ih_l0"]
    state = None if first is None else first.transpose(1, 2)
    if state is None and inputs.shape[-1] == 1:  # then nothing else would give the recurrent weights a gradient
        state = recurrent.new_zeros(len(recurrent), recurrent.shape[1], inputs.shape[1])
    bias = None
    if "rnn.bias_ih_l0" in parameters:
        bias = (parameters["rnn.bias_ih_l0"] + parameters["rnn.bias_hh_l0"]).unsqueeze(-1)
    for number in inputs.transpose(1, 2).contiguous().split(1, 1):  # [S, 1, B]
        driven = driving * number if bias is None else driving * number + bias
        state = (driven if state is None else torch.baddbmm(driven, recurrent, state)).relu()
        yield state.transpose(1, 2)
