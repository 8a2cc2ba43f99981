"""Networks: inputs -> features -> heads.

To add a network: one file with a trunk, a module built from (shape of one input, settings) with a frozen dataclass
`Settings` (see utils/settings.py), and one line in TRUNKS. A trunk with the attribute `can_be_asked` = True is built
from (shape, settings, outputs, asked), see StreamSpec, and returns outputs in place of features.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from net.autoencoder import Autoencoder
from net.conv1d import Conv1d
from net.images.resnet import ResNet18
from net.images.smallconv import SmallConv
from net.images.timm_trunk import TimmTrunk
from net.images.wideresnet import WideResNet
from net.mlp import MLP
from net.multihead import MultiHead
from net.random_features import with_random_features
from net.sequences.attention_only import AttentionOnly
from net.sequences.model import SequenceModel
from net.sequences.rnn import RNN
from net.token_mlp import TokenMLP
from utils.errors import UserError, unknown

TRUNKS: dict[str, Any] = {
    "conv": SmallConv,
    "wrn16_4": WideResNet,
    "resnet18_nf20": ResNet18,
    "mlp": MLP,
    "conv1d": Conv1d,
    "rnn": RNN,
    "attention_only": AttentionOnly,
    "sequence": SequenceModel,
    "token_mlp": TokenMLP,
    "autoencoder": Autoencoder,
}
_TIMM = "timm/"
# What trunks take, with the number of its axes; other trunks take anything.
_IMAGES, _SEQUENCES, _VECTORS = ("images, channels x height x width", 3), ("sequences", 1), ("vectors", 1)
_TAKEN = {
    **dict.fromkeys((SmallConv, WideResNet, ResNet18, TimmTrunk), _IMAGES),
    **dict.fromkeys((RNN, AttentionOnly), _SEQUENCES),
    Autoencoder: _VECTORS,
}
Module = TypeVar("Module", bound=nn.Module)
BatchNorm = nn.modules.batchnorm._BatchNorm


def settings_class(model: str) -> Any:
    """The settings class of a model, an entry of TRUNKS or timm/<name>; UserError if there is no such model."""
    if not model.startswith(_TIMM) and model not in TRUNKS:
        raise UserError(f"model: {unknown('model', model, [*TRUNKS, 'timm/<name>'])}")
    return TRUNKS.get(model, TimmTrunk).Settings


def build_trunk(model: str, shape: tuple[int, ...], settings: Any, outputs: int = 0, asked: int = 0) -> nn.Module:
    """The trunk of a model for inputs of that shape, with settings of its class; UserError if it cannot take them.

    `asked`: positions of an input that are asked about (see StreamSpec); a trunk that can be has `outputs` at each.
    """
    if getattr(TRUNKS.get(model), "can_be_asked", False):
        return TRUNKS[model](shape, settings, outputs, asked)  # type: ignore[no-any-return]
    if asked:
        raise UserError(f"model: {model} cannot be asked about positions, as this task does: try sequence")
    if model.startswith(_TIMM) and settings.frozen:  # the inputs are its features
        return MLP(shape, MLP.Settings(dropout=settings.dropout, widths=settings.widths))
    what, axes = _TAKEN.get(TRUNKS.get(model, TimmTrunk), ("", len(shape)))
    if len(shape) != axes:
        raise UserError(f"model: {model} takes {what}; the inputs are {'x'.join(map(str, shape))}: try mlp")
    if model.startswith(_TIMM):
        return TimmTrunk(model.removeprefix(_TIMM), shape, settings)  # type: ignore[arg-type]
    return TRUNKS[model](shape, settings)  # type: ignore[no-any-return]


def feature_size(trunk: nn.Module, model: str, shape: tuple[int, ...]) -> int:
    """The number of features D, found with one blank input; UserError if the trunk cannot take it."""
    trunk.eval()
    try:
        with torch.inference_mode():
            features = trunk(torch.zeros(1, *shape, dtype=input_dtype(trunk)))
    except (RuntimeError, AssertionError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"model: {model} cannot take inputs of {'x'.join(map(str, shape))}: {reason}") from None
    finally:
        trunk.train()
    return int(features.shape[-1])


def input_dtype(trunk: nn.Module) -> torch.dtype:
    """The kind of numbers that a trunk takes, by default float32."""
    return getattr(trunk, "input_dtype", torch.float32)


def build_net(
    model: str, shape: tuple[int, ...], settings: Any, head_sizes: Mapping[int, int], heads: str = "task",
    asked: int = 0, method: Any = None,
) -> MultiHead:  # fmt: skip
    """A network with heads (see MultiHead), on the CPU, initialised from torch's global generator.

    `shape` is that of one input as the trunk receives it, `settings` are of `settings_class(model)`; for `asked` see
    StreamSpec, `method` are the settings of the method, which may ask for random features. UserError if the parts do
    not fit. Convolution weights have the channels last in memory, like the
    images: this is faster.
    """
    trunk = build_trunk(model, shape, settings, max(head_sizes.values()), asked)
    trunk, features = with_random_features(trunk, feature_size(trunk, model, shape), method)
    return channels_last(MultiHead(trunk, features, head_sizes, heads))


def channels_last(net: Module) -> Module:
    """The same network with convolution weights whose channels are the last in memory."""
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for layer in (module for module in net.modules() if isinstance(module, nn.Conv2d)):
        if layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.in_channels <= 4:
            # The CPU library reads and writes beyond the memory of such a layer with the channels last.
            layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)
            layer.register_forward_pre_hook(lambda _, arguments: (arguments[0].contiguous(),))
    return net


def count_parameters(net: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in net.parameters())


def has_batch_norm(net: nn.Module) -> bool:
    """Whether a network has batch normalisation, which cannot normalise a batch of one example."""
    return any(isinstance(module, BatchNorm) for module in net.modules())
