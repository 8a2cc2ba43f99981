"""An autoencoder of one layer whose outputs are rectified: the toy model of superposition."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from net.activations import ACTIVATIONS
from utils.errors import UserError
from utils.settings import Range, setting


class Autoencoder(nn.Module):
    """features [B, f] -> their reconstruction [B, f] from n hidden values.

        y = c act(U (W x + b_h) + b),   W: [n, f],   U = W' if tied

    Column i of W is the vector of feature i. The weights begin as those of nn.Linear, W uniform in plus or minus
    1 / sqrt(f), biases at 0; or, with `start`: k, of two hidden values near the critical point with k vectors of
    length 1 at equal angles, the others 0 and their biases `dead_bias`. UserError where there is none.

    Source: Elhage et al., "Toy models of superposition" (2022); `start` as in Chen et al., "Dynamical versus Bayesian
    phase transitions in a toy model of superposition" (2023), section 4.
    """

    head_bias = False
    examples_last = True  # of the axes of a stack's inputs in memory: inner loops are over examples, not features

    @dataclass(frozen=True)
    class Settings:
        """Settings of the autoencoder."""

        hidden: int = setting(Range(1, 4096), "n, hidden values", default=2)
        tied: bool = setting(bool, "the decoder has the weights of the encoder", default=True)
        bias: bool = setting(bool, "the outputs have a bias", default=True)
        hidden_bias: bool = setting(bool, "the hidden values have a bias", default=False)
        activation: str = setting(tuple(ACTIVATIONS), "of the outputs", default="relu")
        lengths: str = setting(
            ("free", "unit", "equal"), "of the vectors of features; unit: 1; equal: their mean", default="free"
        )
        scale: float = setting(Range(0, whole=False, open_low=True), "c, of the outputs", default=1.0)
        trained_scale: bool = setting(bool, "c is trained", default=False)
        start: int = setting(
            Range(0, 4096), "k of the k-gon near which the weights begin; 0: they are drawn", default=0
        )
        noise: float = setting(
            Range(0, whole=False), "standard deviation of what is added to the vectors of a k-gon", default=0.1
        )
        dead_bias: float | None = setting(
            Range(-100, 100, whole=False), "bias of the features that are not of the k-gon (default: 1 / (2f), their "
            "mean if one feature at a time is there)", default=None,
        )  # fmt: skip

    def __init__(self, shape: tuple[int, ...], settings: Settings) -> None:
        super().__init__()
        (self.features,), self.width = shape, settings.hidden
        self.activation, self.lengths = ACTIVATIONS[settings.activation], settings.lengths
        self.scale = settings.scale
        bound = self.features**-0.5
        self.encoder = nn.Parameter(torch.empty(self.width, self.features).uniform_(-bound, bound))
        drawn = torch.empty(0 if settings.tied else self.features, self.width)
        self.decoder = None if settings.tied else nn.Parameter(drawn.uniform_(-(self.width**-0.5), self.width**-0.5))
        self.bias = nn.Parameter(torch.zeros(self.features)) if settings.bias else None
        self.hidden_bias = nn.Parameter(torch.zeros(self.width)) if settings.hidden_bias else None
        self.factor = nn.Parameter(torch.tensor([settings.scale])) if settings.trained_scale else None
        if settings.start:
            self._begin_at(settings.start, settings.noise, settings.dead_bias)

    @torch.no_grad()
    def _begin_at(self, k: int, noise: float, dead_bias: float | None) -> None:
        if self.width != 2 or self.decoder is not None or self.lengths != "free" or k > self.features:
            raise UserError(
                f"start is {k}: a {k}-gon needs hidden: 2, tied: true, lengths: free and at least {k} features; there "
                f"are {self.width} hidden values and {self.features} features"
            )
        angles = 2 * math.pi * torch.arange(k) / k
        self.encoder.normal_(0, noise)
        self.encoder[:, :k] += torch.stack([angles.cos(), angles.sin()])
        if self.bias is not None:
            self.bias[k:] = 1 / (2 * self.features) if dead_bias is None else dead_bias

    def forward(self, inputs: Tensor) -> Tensor:
        parameters = {name: parameter.unsqueeze(0) for name, parameter in self.named_parameters()}
        return self.stacked(parameters, inputs.unsqueeze(0))[0]

    def vectors(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """The vectors of the features, [n, f], or of the networks with these parameters, [S, n, f]."""
        encoder = self.encoder if parameters is None else parameters["encoder"]
        if self.lengths == "free":
            return encoder
        sizes = encoder.norm(dim=-2, keepdim=True)
        return encoder / sizes * (1.0 if self.lengths == "unit" else sizes.mean(-1, keepdim=True))

    def hidden(self, inputs: Tensor) -> Tensor:
        """The hidden values, [B, n]."""
        found = inputs @ self.vectors().T
        return found if self.hidden_bias is None else found + self.hidden_bias

    def stacked(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The reconstructions of S networks at once, parameters by name [S, ...], inputs [S, B, f] -> [S, B, f]."""
        vectors = self.vectors(parameters)
        hidden = vectors @ inputs.transpose(1, 2)  # [S, n, B]
        if "hidden_bias" in parameters:
            hidden = hidden + parameters["hidden_bias"].unsqueeze(2)
        decoder = parameters["decoder"] if "decoder" in parameters else vectors.transpose(1, 2)
        if "bias" in parameters:
            outputs: Any = torch.baddbmm(parameters["bias"].unsqueeze(2), decoder, hidden)
        else:
            outputs = decoder @ hidden
        scale = parameters["factor"].unsqueeze(-1) if "factor" in parameters else self.scale
        outputs = self.activation(outputs).transpose(1, 2)
        return outputs if isinstance(scale, float) and scale == 1 else scale * outputs
