"""Recurrent networks with weights written down instead of learned, for the index of the second largest number."""

import torch
from torch import Tensor

from net import build_net
from net.multihead import MultiHead
from net.sequences.rnn import RNN
from utils.errors import UserError

LENGTHS = (2, 3, 10)  # of the inputs of these networks

Weights = tuple[Tensor, Tensor, Tensor]  # of the input [h, 1], of the recurrence [h, h], of the head [n, h]; float64


def handcrafted_2nd_argmax(length: int, gain: float = 100.0) -> MultiHead:
    """A network, in test mode, of one task, 1: which of 2, 3 or 10 numbers is the second largest.

    With two numbers it is always right, with ten where at least two are positive; `gain` is that of the network of
    three numbers, see `_of_three`. UserError for other lengths.
    """
    if length not in LENGTHS:
        raise UserError(f"length is {length}; there are handcrafted networks of the lengths 2, 3 and 10")
    makers = {2: _of_two, 3: lambda: _of_three(gain), 10: _of_ten}
    into, recurrent, out = (weight.float() for weight in makers[length]())
    with torch.random.fork_rng(devices=[]):
        net = build_net("rnn", (length,), RNN.Settings(hidden_size=len(into)), {1: length})
    net.load_state_dict({"trunk.rnn.weight_ih_l0": into, "trunk.rnn.weight_hh_l0": recurrent, "weight": out})
    return net.eval()


def _matrix(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _of_two() -> Weights:
    """The state is the positive and the negative part of s = x_1 - x_0; outputs are s and -s."""
    flip = _matrix((1, -1), (-1, 1))
    return flip[:, :1], -flip, flip


def _of_three(gain: float) -> Weights:
    """The state is relu(s1), relu(s2), relu(-s2), relu(-s1) of a linear state s = F x after three numbers.

        s1 = (x_0 - x_1) + gain (x_2 - x_1),   s2 = (x_2 - x_0) + gain (x_2 - x_1)

    Outputs are |s1| + |s2|, (gain + 1) |s2| - gain |s1| and (gain + 1) |s1| - gain |s2|. In exact arithmetic the share
    of right answers tends to 1 as the gain grows; in float32 a gain of 100 is about the best.
    """
    F = _matrix((1, -(gain + 1), gain), (-1, -gain, gain + 1))
    signed = _matrix((1, 0, 0, -1), (0, 1, -1, 0))
    absolute = signed.abs()
    out = _matrix((1, 1), (-gain, gain + 1), (gain + 1, -gain)) @ absolute
    step = F[:, :2] @ torch.linalg.inv(F[:, 1:])  # s <- step s + F_3 x
    return signed.T @ F[:, 2:], signed.T @ step @ signed, out


def _of_ten() -> Weights:
    """Outputs are relu(x_i) + 2 max(0, all numbers but x_i). With M the largest number so far, or 0:

    0-9    a shift register of relu(x)
    10-17  max(0, all numbers but one) - x: the register's number and the state before are undone by 19, 20 and 21
    18     max(M two steps ago, x) - x
    19-21  M - M before,   M before,   M - x
    """
    into, recurrent, out = (torch.zeros(size, dtype=torch.float64) for size in ((22, 1), (22, 22), (10, 22)))
    into[[9, 19]] = 1
    into[[*range(10, 19), 21]] = -1
    for i in range(9):
        recurrent[i, i + 1] = 1
    for i in range(10, 18):
        recurrent[i, [i + 1, 19, 20]] = 1
        recurrent[i, 21] = -1
    recurrent[18, 20] = 1
    recurrent[19, [19, 20]] = -1
    recurrent[20, [19, 20]] = recurrent[21, [19, 20]] = 1
    for i in range(9):
        out[i, i] = 1
        out[i, [10 + i, 19, 20]] = 2
        out[i, 21] = -2
    out[9, 9], out[9, 20] = 1, 2
    return into, recurrent, out
