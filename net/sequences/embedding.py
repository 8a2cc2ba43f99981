"""Embeddings of tokens that are not trained."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

EMBEDDINGS = ("learned", "one_hot")


class OneHot(nn.Module):
    """token numbers [...] -> [..., d]: token v is the unit vector v in the first V values, the others are 0.

    UserError unless the width d is above V: the other values are for positions, see `sines`.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        if width <= vocabulary:
            raise UserError(
                f"width is {width}; embedding: one_hot needs more than the {vocabulary} tokens, for positions"
            )
        self.weight = nn.Buffer(torch.eye(vocabulary, width), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight)

    def sines(self, length: int) -> Tensor:
        """Sines and cosines of positions [length, d] in the last m = d - V values, 0 in the first V.

        Values 2i and 2i + 1 of the m are sin and cos of position / 10000^(2i / m).

        Source: Vaswani et al., "Attention is all you need" (2017), section 3.5.
        """
        vocabulary, width = self.weight.shape
        each = torch.arange(width - vocabulary)
        angles = torch.arange(length).unsqueeze(-1) / 10000.0 ** (2 * (each // 2) / len(each))
        return F.pad(torch.where(each % 2 == 0, angles.sin(), angles.cos()), (vocabulary, 0))
