"""Any timm model as a trunk, without its classifier; its weights may begin as those of a file."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from net.config import DropoutSettings
from net.mlp import Widths
from utils.errors import UserError, expanded, unknown
from utils.files import read_tensors
from utils.settings import PerChannel, Range, setting
from utils.torchvision_ops import declare_missing_operators

_CLASSIFIER = 4  # tensors that a file may have behind those of the trunk: weights and biases of up to two classifiers


class WeightsFile:
    """A file; its path is absolute afterwards, so that it is found from everywhere."""

    kind = str  # see Declaration.kind

    @staticmethod
    def read(where: str, value: object) -> Path:
        """The path; a UserError begins with `where`."""
        if not isinstance(value, str) or not value:
            raise UserError(f"{where} is {value!r}; it must name a file")
        return Path(expanded(value)).absolute()


@dataclass(frozen=True)
class TimmSettings(DropoutSettings):
    """Settings of a timm model. Frozen, it turns the images into features, on which a small network is trained."""

    weights: Path | None = setting(
        WeightsFile, "file of the first weights: safetensors, or a state dict of torch (default: drawn)", default=None
    )
    frozen: bool = setting(bool, "the weights stay, and features are computed once; needs weights", default=False)
    widths: tuple[int, ...] = setting(
        Widths, "units of each hidden layer between frozen features and heads; [] for heads alone", default=()
    )
    mean: tuple[float, ...] | None = setting(
        PerChannel(Range(0, 1, whole=False)), "mean of the pixels, from 0 to 1, that belongs to the weights (default: "
        "as the dataset YAML says)", default=None,
    )  # fmt: skip
    std: tuple[float, ...] | None = setting(
        PerChannel(Range(0.001, 1, whole=False)), "their standard deviation (default: the same)", default=None
    )

    def check(self) -> None:
        """UserError if two settings contradict each other."""
        if self.frozen and self.weights is None:
            raise UserError("frozen: features of random weights are worth little; give weights, or leave frozen out")
        if self.widths and not self.frozen:
            raise UserError("widths: is for the network on frozen features; add frozen: true, or leave widths out")
        if (self.mean is None) != (self.std is None):
            raise UserError("mean and std: give both, or neither")


class TimmTrunk(nn.Module):
    """images [B, C, H, W] -> pooled features [B, D] of the timm model `name`, after dropout.

    UserError if timm has no such model, or it cannot take images of this shape.
    """

    Settings = TimmSettings

    def __init__(self, name: str, shape: tuple[int, int, int], settings: DropoutSettings) -> None:
        super().__init__()
        declare_missing_operators()
        import timm

        if "." in name:
            bare = name.split(".")[0]
            raise UserError(f"model: timm/{name}: no weights are downloaded; name timm/{bare}, and a file in weights")
        if not timm.is_model(name):
            raise UserError(f"model: timm/{name}: {unknown('timm model', name, timm.list_models())}")
        self.name = name
        channels, height, width = shape
        try:
            facts = timm.get_pretrained_cfg(name)
            size = {"img_size": (height, width)} if facts is not None and facts.fixed_input_size else {}
            self.model = timm.create_model(name, pretrained=False, num_classes=0, in_chans=channels, **size)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise UserError(f"model: timm/{name} cannot be built for images of {height}x{width}: {error}") from None
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(self.model(images))

    def load_weights(self, path: Path) -> None:
        """Take the weights of a file; UserError if it has other tensors. Those of a classifier are left out.

        Names must be those of timm, or the tensors must have the shapes of timm's, one after another.
        """
        own, found = _counted(self.model.state_dict()), _counted(read_weights(path))
        if not own.keys() <= found.keys():
            names = list(own)
            for place, (name, value) in enumerate(list(found.items())[: len(own)]):
                if value.shape != own[names[place]].shape:
                    raise self._unlike(path, f"its tensor {name}", value, names[place], own[names[place]])
            if not len(own) <= len(found) <= len(own) + _CLASSIFIER:
                raise UserError(
                    f"weights: {path} does not fit timm/{self.name}: it has {len(found)} tensors, the model {len(own)}"
                )
            found = dict(zip(names, found.values(), strict=False))
        for name, value in own.items():
            if found[name].shape != value.shape:
                raise self._unlike(path, "its tensor", found[name], name, value)
            if found[name].is_floating_point() != value.is_floating_point():
                raise UserError(f"weights: {path} does not fit timm/{self.name}: {name} is of {found[name].dtype}")
            with torch.no_grad():
                value.copy_(found[name])
            if not value.isfinite().all():
                raise UserError(f"weights: {path}: {name} has values that are not finite")

    def _unlike(self, path: Path, what: str, value: Tensor, name: str, own: Tensor) -> UserError:
        shapes = f"{what} has shape {list(value.shape)}, {name} of the model {list(own.shape)}"
        return UserError(f"weights: {path} does not fit timm/{self.name}: {shapes}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict that torch has saved, by name; UserError if it is neither.

    No code of the file is run.
    """
    content: Any = None
    try:
        content = read_tensors(path)
    except OSError as error:
        raise UserError(f"weights: {path} cannot be read: {error.strerror or error}") from None
    except SafetensorError:
        with contextlib.suppress(Exception):  # damaged bytes may lead torch to any
            content = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if isinstance(content, Mapping) and content and all(_is_named(*item) for item in content.items()):
        return dict(content)
    raise UserError(f"weights: {path} is no safetensors file, and no state dict of torch that can be read weights-only")


def _is_named(name: object, value: object) -> bool:
    """Whether an item of a state dict is a name and a dense tensor."""
    return isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided


def _counted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the counters of batches, which change nothing and which older files lack."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
