"""Feature maps of linear attention: the score of q and k is phi(q) . phi(k)."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class FeatureMap(ABC):
    """A map phi of the f values of a query or key to features.

    Args:
        width: f.
        length: positions of the longest input.
    """

    def __init__(self, width: int, length: int) -> None:
        self.width, self.length = width, length
        self.size = width  # number of features

    @abstractmethod
    def __call__(self, values: Tensor, positions: Tensor) -> Tensor:
        """Values [B, L, H, f] at positions [L], counted from 0 -> features [B, L, H, F]."""

    def scores(self, queries: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """phi(q_t) . phi(k_s) for all t and s: [B, L, H, f] twice, positions [L] -> [B, H, L, L]."""
        return _products(self(queries, positions), self(keys, positions))


class Taylor(FeatureMap):
    """The exponential to second order: phi(q) . phi(k) = 1 + s + s^2 / 2 for s = q . k / sqrt(f).

    phi(x) = (1, x / f^(1/4), x_i^2 / sqrt(2 f), x_i x_j / sqrt(f) for i < j): each product once, F = 1 + f + f (f+1)/2.
    Source: Arora et al., "Simple linear attention language models" (2024), section 4.
    """

    def __init__(self, width: int, length: int) -> None:
        super().__init__(width, length)
        self.size = 1 + width + width * (width + 1) // 2

    def __call__(self, values: Tensor, positions: Tensor) -> Tensor:
        first, second = torch.triu_indices(self.width, self.width, device=values.device)
        weights = torch.ones_like(first, dtype=values.dtype).masked_fill(first == second, math.sqrt(0.5))
        products = values[..., first] * values[..., second] * weights / math.sqrt(self.width)
        return torch.cat([torch.ones_like(values[..., :1]), values / self.width**0.25, products], -1)

    def scores(self, queries: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        s = _products(queries, keys) / math.sqrt(self.width)
        return 1 + s + s.square() / 2


class Identity(FeatureMap):
    """phi(x) = x."""

    def __call__(self, values: Tensor, positions: Tensor) -> Tensor:
        return values


class ReLU(FeatureMap):
    """phi(x) = max(x, 0)."""

    def __call__(self, values: Tensor, positions: Tensor) -> Tensor:
        return values.relu()


class Square(FeatureMap):
    """phi(x) = x^2."""

    def __call__(self, values: Tensor, positions: Tensor) -> Tensor:
        return values.square()


class PosELU(FeatureMap):
    """phi(x) = 1 + elu(x). Source: Katharopoulos et al., "Transformers are RNNs" (2020), equation 7."""

    def __call__(self, values: Tensor, positions: Tensor) -> Tensor:
        return 1 + torch.nn.functional.elu(values)


class Softmax(FeatureMap):
    """phi(x) = softmax(x) over the features. Source: Shen et al., "Efficient attention" (2018), section 3."""

    def __call__(self, values: Tensor, positions: Tensor) -> Tensor:
        return values.softmax(-1)


class Cosformer(FeatureMap):
    """phi(x)_t = max(x, 0) (cos w t, sin w t), w = pi / (2 l): scores fall off with the distance.

    Longest length l, F = 2 f; a longer input raises ValueError, as its scores would turn negative.
    Source: Qin et al., "cosFormer" (2022), section 3.
    """

    def __init__(self, width: int, length: int) -> None:
        super().__init__(width, length)
        self.size = 2 * width

    def __call__(self, values: Tensor, positions: Tensor) -> Tensor:
        if positions[-1] >= self.length:
            raise ValueError(f"cosformer: position {int(positions[-1])} of an input; the mixer is for {self.length}")
        angle = (math.pi / 2 / self.length * positions.to(values.dtype))[:, None, None]
        return torch.cat([values.relu() * angle.cos(), values.relu() * angle.sin()], -1)


FEATURE_MAPS: dict[str, type[FeatureMap]] = {
    "taylor": Taylor,
    "relu": ReLU,
    "square": Square,
    "identity": Identity,
    "pos_elu": PosELU,
    "softmax": Softmax,
    "cosformer": Cosformer,
}


def _products(queries: Tensor, keys: Tensor) -> Tensor:
    return torch.einsum("bthf,bshf->bhts", queries, keys)
