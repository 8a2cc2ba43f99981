"""Inputs -> features -> one head a task.

To add a network: one file with a trunk module (shape, its Settings -> module), and one line in TRUNKS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from net.config import NetConfig
from net.images.smallconv import SmallConv
from net.images.timm_trunk import TimmTrunk
from net.images.wideresnet import WideResNet
from net.multihead import MultiHead
from utils.errors import UserError, unknown
from utils.settings import read

TRUNKS: dict[str, type[nn.Module]] = {"conv": SmallConv, "wrn16_4": WideResNet}
_TIMM = "timm/"


def trunk_class(model: str) -> type[nn.Module]:
    """The class of the trunk of that name: an entry of TRUNKS, or that of timm/<name of a timm model>.

    Raises:
        UserError: there is no such model.
    """
    if model.startswith(_TIMM):
        return TimmTrunk
    if model not in TRUNKS:
        raise UserError(f"model: {unknown('model', model, [*TRUNKS, 'timm/<name>'])}")
    return TRUNKS[model]


def settings_of_trunk(model: str) -> type:
    """The settings that a trunk declares.

    Raises:
        UserError: there is no such model.
    """
    return trunk_class(model).Settings  # type: ignore[attr-defined,no-any-return]


def configured(model: str, **settings: Any) -> NetConfig:
    """The network of that name with some settings and the defaults of the others.

    Raises:
        UserError: there is no such model, or it has no such setting.
    """
    return NetConfig(model, settings=read(settings_of_trunk(model), model, settings))


def build_trunk(net: NetConfig, shape: tuple[int, ...]) -> nn.Module:
    """The trunk of that name.

    Raises:
        UserError: there is no such model, or it cannot take inputs of this shape.
    """
    kind = trunk_class(net.model)
    named = (net.model.removeprefix(_TIMM),) if kind is TimmTrunk else ()
    return kind(*named, shape, net.settings)


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


def build_net(net: NetConfig, shape: tuple[int, ...], head_sizes: Mapping[int, int]) -> MultiHead:
    """A network with one head a task, on the CPU, initialised from torch's global generator.

    Convolution weights lie in memory with the channels last, like the images: convolutions and pooling are
    faster so, on a CPU and on a GPU.

    Args:
        shape: of one input, as the trunk sees it.
        head_sizes: width of the head of each task, by task id.

    Raises:
        UserError: see build_trunk and feature_size.
    """
    trunk = build_trunk(net, shape)
    built = MultiHead(trunk, feature_size(trunk, net.model, shape), head_sizes)
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def count_parameters(net: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in net.parameters())
