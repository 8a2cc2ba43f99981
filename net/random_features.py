"""Random features: a fixed random layer on top of a trunk."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.settings import Range, setting


@dataclass(frozen=True, kw_only=True)
class RandomFeatureSettings:
    """How many random features there are, and of which kind; see RandomFeatures."""

    random_features: int = setting(
        Range(0, 10**6), "random features that are made of those of the trunk; 0: heads act on the trunk", default=0
    )
    kernel: str = setting(("relu", "cosine"), "the kind of random features, see RandomFeatures", default="relu")
    gamma: float | None = setting(
        Range(0, whole=False, open_low=True), "of the cosine features (default: 1 / features of the trunk)",
        default=None,
    )  # fmt: skip


class RandomFeatures(nn.Module):
    """inputs -> features h [B, D] of a trunk -> N random features [B, N], whose weights are drawn once and stay.

    With the entries of W [N, D] standard normal and those of b uniform in [0, 2 pi):

    relu    max(0, W h / sqrt(D)), the random projection of McDonnell et al., "RanPAC", NeurIPS 2023; the mean over the
            features of the product for h and h' tends to half the arc-cosine kernel of order 1 (Cho & Saul 2009) over D
    cosine  sqrt(2) cos(sqrt(2 gamma) W h + b) of Rahimi & Recht, "Random Features for Large-Scale Kernel Machines",
            NIPS 2007, as in Prabhu et al., "RanDumb", NeurIPS 2024; that mean tends to exp(-gamma |h - h'|^2)
    """

    def __init__(self, trunk: nn.Module, features: int, settings: RandomFeatureSettings) -> None:
        super().__init__()
        self.trunk, self.cosine = trunk, settings.kernel == "cosine"
        self.head_bias = getattr(trunk, "head_bias", True)
        self.input_dtype = getattr(trunk, "input_dtype", torch.float32)
        gamma = 1 / features if settings.gamma is None else settings.gamma
        scale = math.sqrt(2 * gamma) if self.cosine else 1 / math.sqrt(features)
        self.projection = nn.Buffer(scale * torch.randn(settings.random_features, features))
        self.phase = nn.Buffer(2 * math.pi * torch.rand(settings.random_features)) if self.cosine else None

    def forward(self, inputs: Tensor) -> Tensor:
        projected = self.trunk(inputs) @ self.projection.T
        return math.sqrt(2) * (projected + self.phase).cos() if self.phase is not None else projected.relu()


def with_random_features(trunk: nn.Module, features: int, settings: Any) -> tuple[nn.Module, int]:
    """The trunk and its number of features; with RandomFeatures on top if settings of a method ask for these.

    UserError if `gamma` is given where there are no cosine features.
    """
    if not isinstance(settings, RandomFeatureSettings):
        return trunk, features
    if settings.gamma is not None and not (settings.random_features and settings.kernel == "cosine"):
        raise UserError("settings.gamma: is for random_features with kernel: cosine; leave it out")
    if not settings.random_features:
        return trunk, features
    return RandomFeatures(trunk, features, settings), settings.random_features
