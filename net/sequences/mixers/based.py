"""Based: linear attention with a feature map."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.sequences.mixers.base import Mixer, MixerSettings, State, check_divides
from net.sequences.mixers.feature_maps import FEATURE_MAPS
from utils.settings import Range, setting

_QUADRATIC = 512  # positions up to which the L x L scores are the cheaper view
_CHUNK = 128
_EPSILON = 1e-12


class Based(Mixer):
    """Linear attention with H heads of f values for queries and keys, d / H for values.

        q, k, v = W u
        S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t)
        y_t = W_o (phi(q_t)^T S_t / (phi(q_t)^T z_t + 1e-12))

    `feature_maps` has the maps phi; with the default the score is the exponential to second order. Those whose scores
    may be negative (identity) or all zero (relu) may divide by almost nothing. Source: Arora et al., "Simple linear
    attention language models balance the recall-throughput tradeoff" (2024), section 4; its layers of short windows
    are another mixer.
    """

    @dataclass(frozen=True)
    class Settings(MixerSettings):
        """Settings of linear attention."""

        heads: int = setting(Range(1, 4096), "attention heads, a divisor of the width", default=1)
        feature: int = setting(Range(1, 4096), "f, values of a query or key in each head", default=16)
        feature_map: str = setting(tuple(FEATURE_MAPS), "feature map of queries and keys", default="taylor")
        view: str = setting(
            ("auto", "quadratic", "chunked"),
            "how all positions are computed: with all scores, from sums of chunks, or the cheaper for the length",
            default="auto",
            machine=True,
        )

    joined_by = "output"

    def __init__(self, width: int, length: int, settings: Settings) -> None:
        super().__init__(width, length, settings)
        check_divides(settings, "heads", width)
        self.heads, self.view = settings.heads, settings.view
        self.phi = FEATURE_MAPS[settings.feature_map](settings.feature, length)
        self.q, self.k = (nn.Linear(width, self.heads * settings.feature, bias=False) for _ in range(2))
        self.v, self.output = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, inputs: Tensor) -> Tensor:
        length = inputs.shape[1]
        positions = torch.arange(length, device=inputs.device)
        quadratic = self.view == "quadratic" or (self.view == "auto" and length <= _QUADRATIC)
        summed = (self._quadratic if quadratic else self._chunked)(*self._projected(inputs), positions)
        return self._normalised(summed)

    def weights(self, inputs: Tensor) -> Tensor:
        """How much position t attends to position s: phi(q_t) . phi(k_s), divided as the outputs are, [B, H, t, s]."""
        q, k, _ = self._projected(inputs)
        scores = self.phi.scores(q, k, torch.arange(inputs.shape[1], device=inputs.device)).tril()
        return scores / (scores.sum(-1, keepdim=True) + _EPSILON)

    def begin(self, batch: int) -> State:
        sums = self.v.weight.new_zeros(batch, self.heads, self.phi.size, self.width // self.heads + 1)
        return sums, torch.zeros(1, dtype=torch.long, device=sums.device)

    def step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        q, k, v = self._projected(inputs.unsqueeze(1))
        sums, position = state
        sums = sums + torch.einsum("bhf,bhe->bhfe", self.phi(k, position)[:, 0], v[:, 0])
        summed = torch.einsum("bhf,bhfe->bhe", self.phi(q, position)[:, 0], sums)
        return self._normalised(summed), (sums, position + 1)

    def state_size(self, length: int) -> int:
        return self.heads * self.phi.size * (self.width // self.heads + 1)

    def _projected(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, L, H, f], values with a one behind them [B, L, H, d / H + 1], whose sum is z."""
        q, k, v = (part(inputs).unflatten(-1, (self.heads, -1)) for part in (self.q, self.k, self.v))
        return q, k, F.pad(v, (0, 1), value=1.0)

    def _normalised(self, summed: Tensor) -> Tensor:
        return self.output((summed[..., :-1] / (summed[..., -1:] + _EPSILON)).flatten(-2))  # type: ignore[no-any-return]

    def _quadratic(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """phi(q_t)^T (S_t, z_t) with all L x L scores, [B, L, H, d / H + 1]."""
        return torch.einsum("bhts,bshe->bthe", self.phi.scores(q, k, positions).tril(), v)

    def _chunked(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        """The same from the sums before each chunk and the scores within it."""
        parts = (part.split(_CHUNK, 1) for part in (q, k, v))
        before, found = self.begin(len(v))[0], []
        for queries, keys, values, at in zip(*parts, positions.split(_CHUNK), strict=True):
            within = self._quadratic(queries, keys, values, at)
            found.append(within + torch.einsum("bthf,bhfe->bthe", self.phi(queries, at), before))
            before = before + torch.einsum("bshf,bshe->bhfe", self.phi(keys, at), values)
        return torch.cat(found, 1)
