"""Any timm model as a trunk, without its classifier and without pretrained weights."""

from torch import Tensor, nn

from net.config import DropoutSettings
from utils.errors import UserError, unknown
from utils.torchvision_ops import declare_missing_operators


class TimmTrunk(nn.Module):
    """images [B, C, H, W] -> pooled features [B, D] of the timm model `name`, after dropout.

    UserError if timm has no such model, or it cannot take images of this shape.
    """

    Settings = DropoutSettings

    def __init__(self, name: str, shape: tuple[int, int, int], settings: DropoutSettings) -> None:
        super().__init__()
        declare_missing_operators()
        import timm

        if "." in name:
            raise UserError(f"model: timm/{name}: pretrained weights cannot be given; name timm/{name.split('.')[0]}")
        if not timm.is_model(name):
            raise UserError(f"model: timm/{name}: {unknown('timm model', name, timm.list_models())}")
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
