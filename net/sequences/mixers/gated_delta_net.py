"""Gated DeltaNet."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, State, check_divides
from net.sequences.mixers.delta import delta_rule, delta_step
from net.sequences.mixers.delta_net import DeltaSettings
from net.sequences.mixers.kernels import fused
from net.sequences.mixers.mamba import initial_step_bias
from net.sequences.mixers.short_conv import ShortConvolution

VALUE_FACTOR = 2  # width of the values over that of the keys


class GatedDeltaNet(Mixer):
    """DeltaNet with a decay of the whole state; H heads with keys of width d / H and values of 2 d / H.

        q, k, v = SiLU(conv(W u)), q and k scaled to norm 1,   beta_t = sigmoid(W_b u_t)
        alpha_t = exp(-exp(A_log) softplus(W_a u_t + b_dt))
        S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T
        y_t = W_o (RMSNorm(S_t q_t / sqrt(d / H)) * SiLU(W_g u_t))

    At the start exp(A_log) ~ U(0, 16), softplus(b_dt) log-uniform in [0.001, 0.1]. The state size counts the matrices
    S, as published: not the last inputs of the convolution.

    Source: Yang et al., "Gated delta networks: improving Mamba2 with delta rule" (2024), sections 3.2 and 3.4.
    """

    Settings = DeltaSettings

    joined_by = "o_proj"

    def __init__(self, width: int, length: int, settings: DeltaSettings) -> None:
        super().__init__(width, length, settings)
        check_divides(settings, "heads", width)
        self.heads, values = settings.heads, VALUE_FACTOR * width
        self.widths = [width, width, values]
        self.qkv_proj = nn.Linear(width, sum(self.widths), bias=False)
        self.conv = ShortConvolution(sum(self.widths), settings.kernel)
        self.beta_proj = nn.Linear(width, self.heads, bias=False)
        self.decay_proj = nn.Linear(width, self.heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(self.heads).uniform_(0, 16).log())
        self.dt_bias = nn.Parameter(initial_step_bias(self.heads, 0.001, 0.1))
        self.gate_proj = nn.Linear(width, values, bias=False)
        self.norm = nn.RMSNorm(values // self.heads, eps=1e-5)
        self.o_proj = nn.Linear(values, width, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        q, k, v = self._in_heads(self.conv(self.qkv_proj(inputs)))
        beta, log_decay = self.beta_proj(inputs).sigmoid(), self._log_decay(inputs)
        read = fused("gated_delta_rule", v, k, q, beta=beta, g=log_decay)
        return self._output(delta_rule(q, k, v, beta, log_decay) if read is None else read, inputs)

    def begin(self, batch: int) -> State:
        shape = (self.heads, self.width // self.heads, VALUE_FACTOR * self.width // self.heads)
        return self.qkv_proj.weight.new_zeros(batch, *shape), self.conv.begin(batch)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        matrix, seen = state
        mixed, seen = self.conv.step(self.qkv_proj(inputs), seen)
        beta, decay = self.beta_proj(inputs).sigmoid(), self._log_decay(inputs).exp()
        read, matrix = delta_step(*self._in_heads(mixed), beta, decay, matrix)
        return self._output(read, inputs), (matrix, seen)

    def state_size(self, length: int) -> int:
        return VALUE_FACTOR * self.width * self.width // self.heads

    def _in_heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [..., H, d / H], values [..., H, 2 d / H]."""
        parts = F.silu(mixed).split(self.widths, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        return F.normalize(q, dim=-1) / math.sqrt(q.shape[-1]), F.normalize(k, dim=-1), v

    def _log_decay(self, inputs: Tensor) -> Tensor:
        """log alpha, [..., H]."""
        return -self.A_log.exp() * F.softplus(self.decay_proj(inputs) + self.dt_bias)

    def _output(self, read: Tensor, inputs: Tensor) -> Tensor:
        return self.o_proj(self.norm(read).flatten(-2) * F.silu(self.gate_proj(inputs)))
