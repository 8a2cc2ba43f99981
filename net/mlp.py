"""A multilayer perceptron, for vectors and for whatever may be flattened into one."""

import math
import reprlib
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from net.config import DropoutSettings
from utils.errors import UserError
from utils.settings import Range, setting

_UNITS, _MOST_LAYERS = Range(1, 65536), 1000


class Widths:
    """The units of each hidden layer."""

    kind = str  # see Declaration.kind

    @staticmethod
    def read(where: str, value: object) -> tuple[int, ...]:
        """The checked numbers; a UserError begins with `where`."""
        if not isinstance(value, (list, tuple)) or len(value) > _MOST_LAYERS:
            least = f"it must list the units of up to {_MOST_LAYERS} hidden layers, such as [256, 256], or [] for none"
            raise UserError(f"{where} is {reprlib.repr(value)}; {least}")
        return tuple(_UNITS.check(f"{where}: layer {number}", units) for number, units in enumerate(value, 1))


class MLP(nn.Module):
    """inputs [B, ...] of any shape -> features [B, last of widths]: linear maps, each with ReLU and dropout.

    Without hidden layers the features are the inputs, and a head is a linear classifier.

    init: torch leaves nn.Linear as it is; xavier (Glorot & Bengio 2010): weights are uniform in plus or minus
    sqrt(6 / (inputs + outputs)) and biases zero, those of the heads as well, see MultiHead.
    """

    @dataclass(frozen=True)
    class Settings(DropoutSettings):
        """Settings of the multilayer perceptron."""

        widths: tuple[int, ...] = setting(Widths, "units of each hidden layer", default=(256, 256))
        bias: bool = setting(bool, "hidden layers have biases", default=True)
        init: str = setting(("torch", "xavier"), "how weights begin, see the class", default="torch")

    def __init__(self, shape: tuple[int, ...], settings: Settings) -> None:
        super().__init__()
        sizes = (math.prod(shape), *settings.widths)
        self.layers = nn.ModuleList(nn.Linear(*pair, bias=settings.bias) for pair in pairwise(sizes))
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()
        self.head_init = settings.init
        if settings.init == "xavier":
            for name, parameter in self.layers.named_parameters():
                if name.endswith("bias"):
                    nn.init.zeros_(parameter)
                else:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        for layer in self.layers:
            x = self.dropout(layer(x).relu())
        return x
