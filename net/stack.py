"""Several networks of one architecture that compute together."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from net.multihead import MultiHead


def stackable(net: MultiHead) -> bool:
    """Whether networks of this architecture can be a Stack: the trunk says how, and there is a single head."""
    return hasattr(net.trunk, "stacked") and len(net.head_sizes) == 1 and net.kind != "identity"


class Stack(nn.Module):
    """S networks on S batches: inputs [S, B, *input], task ids of any shape -> outputs [S, B, ..., C].

    The networks keep their own parameters, so that each can be saved, evaluated and trained alone; a forward pass
    stacks them. Their trunk has a function `stacked`: parameters by name [S, ...], inputs [S, B, *input] -> features
    [S, B, ..., D].
    """

    def __init__(self, nets: Sequence[MultiHead]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self._trunk: Mapping[str, list[Tensor]] = _by_name([net.trunk for net in nets])
        self._weights: list[Tensor] = [net.weight for net in nets]
        self._biases: list[Tensor] = [net.bias for net in nets if "bias" in net.head_values()]

    @property
    def trunk(self) -> nn.Module:
        """One of the trunks, which have the same architecture."""
        return self.nets[0].trunk  # type: ignore[return-value]

    def forward(self, inputs: Tensor, task_ids: Tensor) -> Tensor:
        parameters = {name: torch.stack(values) for name, values in self._trunk.items()}
        features = self.trunk.stacked(parameters, inputs)  # type: ignore[operator]
        weight, between = torch.stack(self._weights), (1,) * (features.ndim - 3)
        # As a trunk may have it, the examples of a batch lie side by side in memory, for outputs as for features.
        outputs = torch.matmul(weight.view(len(weight), *between, *weight.shape[1:]), features.transpose(-1, -2))
        if self._biases:
            outputs = outputs + torch.stack(self._biases).view(len(weight), *between, -1, 1)
        return outputs.transpose(-1, -2)


def _by_name(modules: Sequence[nn.Module]) -> dict[str, list[Tensor]]:
    """The parameters of modules of one architecture by name."""
    columns = zip(*(module.named_parameters() for module in modules), strict=True)
    return {column[0][0]: [parameter for _, parameter in column] for column in columns}
