"""What an evaluation is asked about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from datasets.task import StreamSpec, Task
from net.multihead import MultiHead
from utils.compute import Compute


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
