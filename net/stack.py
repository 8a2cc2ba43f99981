"""Several networks of one architecture that compute together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from net.multihead import MultiHead

_TRUNK = "trunk."


def stackable(net: MultiHead) -> bool:
    """Whether networks of this architecture can be a Stack: the trunk says how, and there is one task."""
    return hasattr(net.trunk, "stacked") and len(net.head_sizes) == 1


class Stack(nn.Module):
    """S networks on S batches: inputs [S, B, *input], task ids of any shape -> outputs [S, ..., C, B].

    Parameters of the same name are rows of one tensor, of which each network's own are views: what trains the stack
    trains the networks, and each can be saved, loaded and evaluated alone. Networks next to each other that have the
    same `key` share their tensors; others have some of their own, for an optimizer that tells them apart. Their trunk
    has a function `stacked`: parameters by name [S, ...], inputs [S, B, *input] -> features [S, B, ..., D].
    """

    def __init__(self, nets: Sequence[MultiHead], keys: Sequence[Any] = ()) -> None:
        super().__init__()
        self.nets = list(nets)
        keys = keys or [None] * len(nets)
        begins = [n for n, key in enumerate(keys) if n == 0 or key != keys[n - 1]]
        self.parts = [range(*pair) for pair in zip(begins, [*begins[1:], len(nets)], strict=True)]
        self._names = [name for name, _ in nets[0].named_parameters()]
        self.rows = nn.ParameterList()  # for each part, the tensor [networks of the part, ...] of each name
        for part in self.parts:
            columns = zip(*(nets[n].parameters() for n in part), strict=True)
            for own in map(list, columns):
                whole = nn.Parameter(torch.stack([value.detach() for value in own]), own[0].requires_grad)
                self.rows.append(whole)
                for value, row in zip(own, whole.detach(), strict=True):
                    value.data = row
        self._alone = self._named() if len(self.parts) == 1 else None  # one part needs no new tensors

    @property
    def trunk(self) -> nn.Module:
        """One of the trunks, which have the same architecture."""
        return self.nets[0].trunk

    def part(self, number: int) -> list[nn.Parameter]:
        """The tensors of one part, in the order of a network's parameters."""
        count = len(self._names)
        return list(self.rows)[number * count : (number + 1) * count]

    def train(self, mode: bool = True) -> "Stack":
        for net in self.nets:
            net.train(mode)
        return super().train(mode)

    def forward(self, inputs: Tensor, task_ids: Tensor) -> Tensor:
        return _outputs(self.nets[0], *(self._alone or self._named()), inputs)

    def _named(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The parameters of all networks by name, [S, ...]: those of the trunk, and those of the head."""
        parts = [self.part(number) for number in range(len(self.parts))]
        whole = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        return _parted(dict(zip(self._names, whole, strict=True)))


def outputs_of_stack(net: MultiHead, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The outputs [S, ..., C, B] of S networks like `net` on inputs [S, B, *input], parameters by name [S, ...]."""
    return _outputs(net, *_parted(parameters), inputs)


def _parted(named: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters by name: those of the trunk, and those of the head."""
    trunk = {name.removeprefix(_TRUNK): value for name, value in named.items() if name.startswith(_TRUNK)}
    return trunk, {name: value for name, value in named.items() if not name.startswith(_TRUNK)}


def _outputs(net: MultiHead, trunk: Mapping[str, Tensor], head: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    features = net.trunk.stacked(trunk, inputs)  # type: ignore[operator]
    # As a trunk may have it, the examples of a batch lie side by side, for outputs as for features: the last axis.
    features = features.transpose(-1, -2)
    if net.kind == "identity":
        return features  # type: ignore[no-any-return]
    weight = head["weight"]
    if features.ndim == 3:
        outputs = torch.bmm(weight, features)
    else:
        outputs = torch.matmul(weight.view(len(weight), *(1,) * (features.ndim - 3), *weight.shape[1:]), features)
    if "bias" in head:
        outputs = outputs + head["bias"].view(len(weight), *(1,) * (features.ndim - 3), -1, 1)
    return outputs
