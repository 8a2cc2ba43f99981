"""H3."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, MixerSettings, State, check_divides
from net.sequences.mixers.convolution import causal_convolution
from utils.errors import UserError
from utils.settings import Range, setting


class H3(Mixer):
    """H3: a shift over keys, products of keys and values remembered by a diagonal state space, read by queries.

        q, k, v = W u + b,   k <- shift(k),   y_t = W_o read(q_t, diagonal(k v^T)_t) + b_o

    Inside each group h of e channels the products k v^T are an e x e matrix M_t, whose entries share one diagonal state
    space of the group, and read is q_t^T diagonal(M)_t. With N numbers of state, see `Shift` and `Diagonal`. The state
    counts d N as published; the step form keeps d N (1 + e). Source: Fu et al., "Hungry hungry hippos" (2022),
    section 3.
    """

    @dataclass(frozen=True)
    class Settings(MixerSettings):
        """Settings of H3."""

        state: int | None = setting(Range(2, 4096), "N, an even number; by default width / 4", default=None)
        group: int = setting(Range(1, 4096), "channels of a group, a divisor of the width", default=2)

    joined_by = "output"

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        self.states = width // 4 if settings.state is None else settings.state
        check_divides(settings, "group", width)
        if self.states % 2 or not self.states:
            raise UserError(f"{settings.mixer}: state is {self.states}; it must be an even number at least 2")
        self.groups = width // settings.group
        self.q, self.k, self.v, self.output = (nn.Linear(width, width) for _ in range(4))
        self.shift = Shift(width, self.states)
        self.diagonal = Diagonal(self.groups, self.states // 2)

    def forward(self, inputs: Tensor) -> Tensor:
        keys = self.shift(self.k(inputs))
        memory = self.diagonal(self._products(keys, inputs))
        return self._read(inputs, memory)

    def begin(self, batch: int) -> State:
        size = self.width // self.groups
        return self.shift.begin(batch), self.diagonal.begin(batch, size)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        keys, shifted = self.shift.step(self.k(inputs), state[0])
        memory, modes = self.diagonal.step(self._products(keys, inputs), state[1])
        return self._read(inputs, memory), (shifted, modes)

    def state_size(self, length: int) -> int:
        return self.width * self.states

    def _products(self, keys: Tensor, inputs: Tensor) -> Tensor:
        """[..., h, e, e] from keys and inputs [..., d]."""
        return self._grouped(keys).unsqueeze(-1) * self._grouped(self.v(inputs)).unsqueeze(-2)

    def _read(self, inputs: Tensor, memory: Tensor) -> Tensor:
        read = torch.einsum("...hi,...hij->...hj", self._grouped(self.q(inputs)), memory)
        return self.output(read.flatten(-2))  # type: ignore[no-any-return]

    def _grouped(self, values: Tensor) -> Tensor:
        return values.unflatten(-1, (self.groups, -1))


class Shift(nn.Module):
    """The state space of a shift matrix with a skip, channel by channel: [B, L, d] -> [B, L, d].

        x_t[n] = x_{t-1}[n - 1] + B[n] u_t,   y_t = sum_n C[n] x_t[n] + D u_t,   n = 0..N-1

    which is a filter of N positions; B is initially (1, 0, ...), C and D N(0, 1).
    """

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.eye(1, states).repeat(width, 1))
        self.c = nn.Parameter(torch.randn(width, states))
        self.d = nn.Parameter(torch.randn(width))

    def forward(self, inputs: Tensor) -> Tensor:
        width, states = self.c.shape
        # Row j holds B[n - l] for l = N - 1 - j, in the order in which a convolution of torch takes its weights.
        shifted = F.pad(self.b, (states - 1, 0)).unfold(-1, states, 1)
        filter = torch.einsum("djn,dn->dj", shifted, self.c)
        padded = F.pad(inputs.transpose(1, 2), (states - 1, 0))
        return F.conv1d(padded, filter.unsqueeze(1), groups=width).transpose(1, 2) + self.d * inputs

    def begin(self, batch: int) -> Tensor:
        """Zeros [B, d, N]."""
        return self.c.new_zeros(batch, *self.c.shape)

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, d] and x [B, d, N] -> outputs [B, d], the next x."""
        state = F.pad(state[..., :-1], (1, 0)) + self.b * inputs.unsqueeze(-1)
        return (self.c * state).sum(-1) + self.d * inputs, state


class Diagonal(nn.Module):
    """A diagonal state space of m complex modes for each group, with a skip: [B, L, h, e, e] -> the same shape.

        x_t = r x_{t-1} + p u_t,   y_t = 2 Re sum_m C x_t + D u_t
        r = (1 + Delta a / 2) / (1 - Delta a / 2),   p = Delta B / (1 - Delta a / 2)

    which is the convolution with K_l = 2 Re sum_m C p r^l. Initially a = -1/2 + i pi m, B = 1, Delta log-uniform in
    [.001, .1], C and D N(0, 1). Source: Gu et al., "On the parameterization and initialization of diagonal state space
    models" (2022), sections 3 and 4.
    """

    def __init__(self, groups: int, modes: int) -> None:
        super().__init__()
        self.log_decay = nn.Parameter(torch.full((groups, modes), math.log(0.5)))
        self.angle = nn.Parameter((math.pi * torch.arange(modes)).repeat(groups, 1))
        self.b = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(groups, modes, 1))  # real and imaginary part
        self.c = nn.Parameter(torch.randn(groups, modes, 2) / math.sqrt(2))
        self.log_step = nn.Parameter(torch.empty(groups).uniform_(math.log(0.001), math.log(0.1)))
        self.d = nn.Parameter(torch.randn(groups))

    def forward(self, inputs: Tensor) -> Tensor:
        ratio, gain = self._discrete()
        powers = torch.arange(inputs.shape[1], device=inputs.device)[:, None, None] * ratio.log()
        kernel = 2 * (torch.view_as_complex(self.c) * gain * powers.exp()).real.sum(-1)
        return causal_convolution(inputs, kernel[..., None, None]) + self.d[:, None, None] * inputs

    def begin(self, batch: int, size: int) -> Tensor:
        """Zeros [B, h, e, e, m, 2], real and imaginary parts, for e = `size`."""
        groups, modes, _ = self.c.shape
        return self.c.new_zeros(batch, groups, size, size, modes, 2)

    def step(self, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, h, e, e] and the modes -> outputs of the same shape, the next modes."""
        ratio, gain = (value[:, None, None] for value in self._discrete())
        modes = ratio * torch.view_as_complex(state) + gain * inputs.unsqueeze(-1)
        read = 2 * (torch.view_as_complex(self.c)[:, None, None] * modes).real.sum(-1)
        return read + self.d[:, None, None] * inputs, torch.view_as_real(modes)

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """r and p by the bilinear rule, complex [h, m]."""
        half = self.log_step.exp()[:, None] * torch.complex(-self.log_decay.exp(), self.angle) / 2
        gain = self.log_step.exp()[:, None] * torch.view_as_complex(self.b) / (1 - half)
        return (1 + half) / (1 - half), gain
