"""The checkpoints of a run of train_task.py: the weights of its network along the way."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluation.measurements import Measurement
from methods.base import new_network
from net import build_net
from net.multihead import MultiHead
from records.configuration import saved_config
from records.manifest import Manifest, reading
from records.members import CHECKPOINT_FILE, SavedMember, checkpoint_steps, read_tensors_of
from records.task_config import TaskRunConfig
from training.features import task_stream
from utils.seeding import seeded


@dataclass(frozen=True)
class Networks:
    """Builds networks of the architecture of a run, whose weights are then replaced."""

    path: Path
    config: Mapping[str, Any]  # config.yaml
    members: Sequence[SavedMember]

    @cached_property
    def settings(self) -> TaskRunConfig:
        """The configuration of the run."""
        return saved_config(str(self.path / "config.yaml"), self.config, TaskRunConfig)  # type: ignore[no-any-return]

    def build(self) -> MultiHead:
        """A network; that of an unfinished run needs the data of the run, which tell its inputs and outputs."""
        with seeded(0):
            if self.members:
                facts, net = self.members[0], self.settings.net
                sizes = dict(zip(facts.tasks, map(len, facts.classes), strict=True))
                return build_net(net.model, facts.input_shape, net.settings, sizes, facts.heads, facts.asked)
            stream = task_stream(self.settings.data, self.settings.net, self.settings.seed, torch.device("cpu"))
            task = stream.tasks[0]
            return new_network(self.settings, stream.spec, {task.id: task.num_outputs})


@dataclass(frozen=True)
class Checkpoint:
    """The network of a run after so many steps; a UserError if its file is missing or damaged."""

    step: int
    examples: int | None  # training examples until then; None if the network was not evaluated there
    path: Path  # of the run
    manifest: Manifest
    networks: Networks

    def weights(self) -> dict[str, Tensor]:
        """The state dict of the network, on the CPU."""
        return read_tensors_of(self.path, self.manifest, CHECKPOINT_FILE.format(self.step))

    def network(self) -> MultiHead:
        """The network in test mode, on the CPU."""
        weights, net = self.weights(), self.networks.build()
        with reading(self.path, CHECKPOINT_FILE.format(self.step)):
            net.load_state_dict(weights)
        return net.eval()


def checkpoints_of(
    networks: Networks, manifest: Manifest, rows: Iterable[Measurement]
) -> dict[int, Checkpoint]:  # fmt: skip
    """Step -> checkpoint, in their order."""
    examples = {row.step: row.examples for row in rows}
    return {
        step: Checkpoint(step, examples.get(step), networks.path, manifest, networks)
        for step in checkpoint_steps(manifest)
    }
