"""What an evaluation is asked about."""

from dataclasses import dataclass

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
