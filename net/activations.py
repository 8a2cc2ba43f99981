"""The functions that a setting `activation` may name."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "gelu": F.gelu, "quadratic": torch.square, "identity": lambda values: values,
}  # fmt: skip
