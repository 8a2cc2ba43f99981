"""The structure of documents: where their items stand, what could stand there instead, and the exact answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

NOWHERE = -1  # the position of an item in a document that has none


@dataclass(frozen=True)
class Schema:
    """What is known of M documents, the rows of a store."""

    positions: Mapping[str, Tensor]  # by item: where it stands in each document, [M] int64, or NOWHERE
    replacements: Mapping[str, Tensor]  # by item that can be replaced: another token of its kind, [M] int64
    answers: Tensor  # [M, A] int64, the tokens that may answer the question; anything where the probability is 0
    probabilities: Tensor  # [M, A] float32, how probable each is, given the document and its structure
    known: Mapping[str, Tensor] = field(default_factory=dict)  # what else is known of each document, by name, [M]

    def rows(self, rows: Tensor) -> "Schema":
        """The schema of some of the documents, rows [N]."""
        return self._each(lambda values: values[rows])

    def to(self, device: torch.device) -> "Schema":
        """The schema on a device."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Schema":
        positions, replacements, known = (
            {item: change(values) for item, values in part.items()}
            for part in (self.positions, self.replacements, self.known)
        )
        return Schema(positions, replacements, change(self.answers), change(self.probabilities), known)
