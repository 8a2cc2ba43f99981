"""A multilayer perceptron, for vectors and for whatever may be flattened into one."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from net.config import DropoutSettings
from utils.settings import Range, setting


class MLP(nn.Module):
    """inputs [B, ...] of any shape -> features [B, width]: `depth` times a linear map, ReLU and dropout."""

    @dataclass(frozen=True)
    class Settings(DropoutSettings):
        """Settings of the multilayer perceptron."""

        width: int = setting(Range(1, 65536), "units of each hidden layer", default=256)
        depth: int = setting(Range(1, 1000), "hidden layers", default=2)

    def __init__(self, shape: tuple[int, ...], settings: Settings) -> None:
        super().__init__()
        sizes = [math.prod(shape)] + [settings.width] * settings.depth
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        for layer in self.layers:
            x = self.dropout(layer(x).relu())
        return x
