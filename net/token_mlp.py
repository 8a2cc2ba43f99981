"""A perceptron of one hidden layer for a few tokens and a question behind them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.activations import ACTIVATIONS
from utils.errors import UserError
from utils.settings import Range, setting


class TokenMLP(nn.Module):
    """Sequences [B, L + 1] -> outputs [B, 1, V] at the one position that is asked about (see StreamSpec.asked).

    It reads the tokens t_1, t_2, ... before that position, not the token there, each with the table of its position.
    Without embeddings the tables lead straight to the hidden values, as a matrix on one-hot vectors does:

        outputs = W_2 act(sum_i E_i[t_i]),   with embeddings  W_2 act(W_1 sum_i E_i[t_i])  or side by side for the sum

    UserError for tasks that do not ask about one position of tokens.

    Source: Gromov, "Grokking modular arithmetic" (2023), act(x) = x^2, without the factors of its layers; with
    embeddings as in Liu et al., "Towards understanding grokking" (2022).
    """

    can_be_asked = True
    input_dtype = torch.int64

    @dataclass(frozen=True)
    class Settings:
        """Settings of the perceptron."""

        hidden: int = setting(Range(1, 2**20), "hidden values", default=512)
        embedding: int | None = setting(
            Range(1, 65536), "values of the embedding of a token (default: tables lead to the hidden values)",
            default=None,
        )  # fmt: skip
        combined: str = setting(("sum", "concatenate"), "what the hidden layer gets of the embeddings", default="sum")
        shared: bool = setting(bool, "all positions have one table", default=False)
        activation: str = setting(tuple(ACTIVATIONS), "of the hidden values", default="quadratic")
        bias: bool = setting(bool, "hidden values and outputs have biases", default=False)

    def __init__(self, shape: tuple[int, ...], settings: Settings, outputs: int, asked: int) -> None:
        super().__init__()
        if asked != 1 or len(shape) != 1 or shape[0] < 3:
            raise UserError("model: token_mlp is for tokens with one question behind them, which this task has not")
        if settings.combined == "concatenate" and settings.embedding is None:
            raise UserError("combined: concatenate needs embeddings to stand side by side; set embedding")
        self.read, self.outputs = shape[0] - 2, outputs
        self.activation, self.together = ACTIVATIONS[settings.activation], settings.combined == "sum"
        tables, values = 1 if settings.shared else self.read, settings.embedding or settings.hidden
        self.tables = nn.Parameter(torch.empty(tables, outputs, values))
        if settings.embedding is None:  # as of nn.Linear on one-hot vectors
            bound = 1 / math.sqrt(self.read * outputs)
            nn.init.uniform_(self.tables, -bound, bound)
            self.first: nn.Module = nn.Identity()
            self.bias = nn.Parameter(torch.zeros(values)) if settings.bias else None
        else:
            nn.init.normal_(self.tables, std=1 / math.sqrt(values))
            inputs = values if self.together else self.read * values
            self.first, self.bias = nn.Linear(inputs, settings.hidden, bias=settings.bias), None
        self.last = nn.Linear(settings.hidden, outputs, bias=settings.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(self.embedded(inputs))
        hidden = hidden if self.bias is None else hidden + self.bias
        return self.last(self.activation(hidden)).unsqueeze(1)  # type: ignore[no-any-return]

    def embedded(self, inputs: Tensor) -> Tensor:
        """The embeddings of the tokens before the question, added up or side by side, [B, values]."""
        places = torch.arange(self.read, device=inputs.device)
        first_rows = places % len(self.tables) * self.outputs
        found = F.embedding(inputs[:, : self.read] + first_rows, self.tables.flatten(0, 1))
        # A question may stand earlier: tokens from there on are not read.
        found = found * (places < inputs[:, -1:]).unsqueeze(-1)
        return found.sum(1) if self.together else found.flatten(1)
