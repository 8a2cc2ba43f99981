"""RWKV-7."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, MixerSettings, State, check_divides
from net.sequences.mixers.delta import generalised_delta_rule, generalised_delta_step
from net.sequences.mixers.kernels import fused
from utils.settings import Range, setting

STREAMS = {"read": 0.2, "decay": 0.9, "key": 0.9, "value": 0.4, "rate": 0.9, "gate": 0.2}  # and powers of their mixing
LOWEST_LOG_DECAY = -math.exp(-0.5)
Parts = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class RWKV7(Mixer):
    """A delta rule with a decay and a removal of its own for each channel; H heads of `head_size` channels.

        x^s_t = u_t + (u_{t-1} - u_t) * mu^s for the streams s = r, d, k, v, a, g   (u_0 = 0)
        r = W_r x^r,   k = W_k x^k,   v = W_v x^v,   a = sigmoid(a_0 + A_1 A_2 x^a),   g = G_1 sigmoid(G_2 x^g)
        w = exp(-e^{-1/2} sigmoid(w_0 + D_1 tanh(D_2 x^d)))
        k^ = xi * k, scaled to norm 1 in each head,   k~ = k * (1 + (a - 1) * alpha)
        S_t = S_{t-1} (diag(w_t) - k^_t (a_t * k^_t)^T) + v_t k~_t^T
        y_t = W_o (g_t * (GroupNorm(S_t r_t) + (r_t . (rho * k~_t)) v_t))

    Values are not mixed with those of the first layer, which one mixer does not see. At the start mu, w_0 (slow to fast
    decays over the channels), a_0 = 0, xi = .85, alpha = 1 and rho = 0 are as in the authors' first layers; D_2, A_2
    and G_2 are 0, D_1, A_1 and G_1 orthogonal. The state size counts the matrices S, as published: not the last input.

    Source: Peng et al., "RWKV-7 'Goose' with expressive dynamic state evolution" (2025), section 4.
    """

    @dataclass(frozen=True)
    class Settings(MixerSettings):
        """Settings of RWKV-7."""

        head_size: int = setting(Range(1, 4096), "channels of a head, a divisor of the width", default=64)
        rank: int | None = setting(
            Range(1, 4096), "rank of the decay's, rate's and gate's maps; as published for the width if not set",
            default=None,
        )  # fmt: skip

    joined_by = "o_proj"

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        check_divides(settings, "head_size", width)
        self.head_size, self.heads = settings.head_size, width // settings.head_size
        channel = torch.arange(width) / width
        self.mixing = nn.Parameter(torch.stack([1 - channel**power for power in STREAMS.values()]))
        self.read_proj, self.key_proj, self.value_proj = (nn.Linear(width, width, bias=False) for _ in range(3))
        rank = settings.rank or _rank(1.8 * width**0.5)
        self.decay, self.rate = _low_rank(width, rank, nn.Tanh()), _low_rank(width, rank, nn.Identity())
        self.gate = _low_rank(width, settings.rank or _rank(0.6 * width**0.8), nn.Sigmoid())
        self.decay_bias = nn.Parameter(5 * torch.linspace(0, 1, width) ** 0.85 - 6.5)
        self.rate_bias = nn.Parameter(torch.zeros(width))
        self.removal = nn.Parameter(torch.full((width,), 0.85))
        self.replacement = nn.Parameter(torch.ones(width))
        self.bonus = nn.Parameter(torch.zeros(width))
        self.norm = nn.GroupNorm(self.heads, width, eps=1e-5 * self.head_size)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        parts, gate = self._parts(inputs, F.pad(inputs, (0, 0, 1, 0))[:, :-1])
        r, log_decay, k, v, a, b = parts
        read = fused("generalised_delta_rule", v, k, r, a=-a, b=b, gk=log_decay)
        return self._output(generalised_delta_rule(*parts) if read is None else read, parts, gate)

    def begin(self, batch: int) -> State:
        matrix = self.mixing.new_zeros(batch, self.width // self.head_size, self.head_size, self.head_size)
        return matrix, self.mixing.new_zeros(batch, self.width)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        parts, gate = self._parts(inputs, state[1])
        read, matrix = generalised_delta_step(*parts, state[0])
        return self._output(read, parts, gate), (matrix, inputs)

    def state_size(self, length: int) -> int:
        return self.width * self.head_size

    def keeps_init(self) -> Iterator[nn.Module]:
        for maps in (self.decay, self.rate, self.gate):
            yield from (layer for layer in maps if isinstance(layer, nn.Linear))

    def _parts(self, inputs: Tensor, previous: Tensor) -> tuple[Parts, Tensor]:
        """r, log w, k~, v, k^ and a * k^, [..., H, head_size] each, and the gate [..., d]."""
        change = previous - inputs
        streams = {name: torch.addcmul(inputs, change, mu) for name, mu in zip(STREAMS, self.mixing, strict=True)}
        log_decay = LOWEST_LOG_DECAY * (self.decay_bias + self.decay(streams["decay"])).sigmoid()
        rate = (self.rate_bias + self.rate(streams["rate"])).sigmoid()
        key, value = self.key_proj(streams["key"]), self.value_proj(streams["value"])
        removed = F.normalize(self._in_heads(key * self.removal), dim=-1)
        kept = key * (1 + (rate - 1) * self.replacement)
        parts = (self.read_proj(streams["read"]), log_decay, kept, value, rate)
        r, log_decay, kept, value, rate = (self._in_heads(part) for part in parts)
        return (r, log_decay, kept, value, removed, rate * removed), self.gate(streams["gate"])

    def _output(self, read: Tensor, parts: Parts, gate: Tensor) -> Tensor:
        r, _, key, value, *_ = parts
        bonus = (r * key * self._in_heads(self.bonus)).sum(-1, keepdim=True) * value
        normed = self.norm(read.reshape(-1, self.width)).view(gate.shape)
        return self.o_proj(gate * (normed + bonus.flatten(-2)))

    def _in_heads(self, channels: Tensor) -> Tensor:
        return channels.unflatten(-1, (-1, self.head_size))


def _rank(wished: float) -> int:
    """The multiple of 32 nearest to a rank, at least 32."""
    return max(32, 32 * round(wished / 32))


def _low_rank(width: int, rank: int, inner: nn.Module) -> nn.Sequential:
    """A map of the channels through `rank` values, whose first half is 0 at the start."""
    down, up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
    nn.init.zeros_(down.weight)
    nn.init.orthogonal_(up.weight, 0.1 * max(1.0, math.sqrt(rank / width)))
    return nn.Sequential(down, inner, up)
