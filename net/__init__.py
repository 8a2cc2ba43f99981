"""Inputs -> features -> one head a task.

To add a network: one file with a trunk module (shape, dropout -> module), and one line in TRUNKS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from net.images.smallconv import SmallConv
from net.images.timm_trunk import TimmTrunk
from net.images.wideresnet import WideResNet
from net.multihead import MultiHead
from utils.errors import UserError, unknown

TRUNKS: dict[str, Callable[[tuple[int, ...], float], nn.Module]] = {
    "conv": SmallConv,  # type: ignore[dict-item]
    "wrn16_4": WideResNet,  # type: ignore[dict-item]
}
_TIMM = "timm/"


def build_trunk(model: str, shape: tuple[int, ...], dropout: float) -> nn.Module:
    """The trunk of that name: an entry of TRUNKS, or timm/<name of a timm model>.

    Raises:
        UserError: there is no such model, or it cannot take inputs of this shape.
    """
    if model.startswith(_TIMM):
        return TimmTrunk(model.removeprefix(_TIMM), shape, dropout)  # type: ignore[arg-type]
    if model not in TRUNKS:
        raise UserError(f"model: {unknown('model', model, [*TRUNKS, 'timm/<name>'])}")
    return TRUNKS[model](shape, dropout)


def feature_size(trunk: nn.Module, model: str, shape: tuple[int, ...]) -> int:
    """D, found by sending one blank input through the trunk.

    Raises:
        UserError: the trunk cannot take inputs of this shape.
    """
    trunk.eval()
    try:
        with torch.inference_mode():
            features = trunk(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model: {model} cannot take inputs of {'x'.join(map(str, shape))}: {reason}") from None
    finally:
        trunk.train()
    return int(features.shape[-1])


def build_net(model: str, shape: tuple[int, ...], dropout: float, head_sizes: Mapping[int, int]) -> MultiHead:
    """A network with one head a task, on the CPU, initialised from torch's global generator.

    Convolution weights lie in memory with the channels last, like the images: convolutions and pooling are
    faster so, on a CPU and on a GPU.

    Args:
        shape: of one input, as the trunk sees it.
        head_sizes: width of the head of each task, by task id.

    Raises:
        UserError: see build_trunk and feature_size.
    """
    trunk = build_trunk(model, shape, dropout)
    net = MultiHead(trunk, feature_size(trunk, model, shape), head_sizes)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def count_parameters(net: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in net.parameters())
