"""What an evaluation is asked about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from datasets.task import Examples, StreamSpec, Task
from net.multihead import MultiHead
from utils.compute import Compute

T = TypeVar("T")
DOCUMENTS = 320  # the most that are asked about where a network of sequence mixers is taken apart


@dataclass(frozen=True)
class Subject:
    """A trained network, in test mode and with its weights for one of its tasks; it is asked about `task.test`."""

    net: MultiHead
    task: Task
    spec: StreamSpec
    compute: Compute
    step: int = 0  # training steps behind it, where it is asked while it is trained
    # By step, in their order: builds the network as it was then, in test mode. Empty where nothing was kept.
    earlier: Mapping[int, Callable[[], MultiHead]] = field(default_factory=dict)
    settings: Any = None  # of the evaluation that is asked; None: its defaults

    def own(self, kind: type[T]) -> T:
        """The settings of the evaluation that is asked, whose class is `kind`."""
        return kind() if self.settings is None else self.settings  # type: ignore[no-any-return]

    def some(self, most: int) -> Examples:
        """The test examples; of more than `most` so many, evenly: they may be in the order of their classes."""
        examples = self.task.test
        count = len(examples)
        return examples if count <= most else examples.subset(torch.arange(most) * count // most)


def schema_lacks(task: Task) -> str:
    """Why nothing can be asked about the items of a task's documents; "" if it can."""
    return (
        "" if task.test.schema is not None else "the task has no documents with a schema; those of languages have one"
    )
