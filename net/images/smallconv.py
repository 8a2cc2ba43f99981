"""The small convolutional network of the paper: three 3x3 convolutions, by default of 80 channels."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from net.config import DropoutSettings
from net.images.norms import NormSettings, norm_layer
from utils.settings import Range, setting

_GRID = 2  # features are at most a 2x2 grid, 4 x width, whatever the image size


class SmallConv(nn.Module):
    """images [B, C, H, W] -> features [B, width] (28x28 and 8x8) or [B, 4 width] (32x32, 84x84 and larger).

    The second and third convolution have a bias only where `norm` is none: a normalisation has its own. Images of 64
    pixels and more are pooled by 3 instead of 2, images too small for three unpadded convolutions are padded, grids
    larger than 2x2 are pooled to 2x2.
    """

    @dataclass(frozen=True)
    class Settings(NormSettings, DropoutSettings):
        """Settings of the small convolutional network; its dropout acts on the features."""

        width: int = setting(Range(1, 65536), "channels of each convolution", default=80)

    def __init__(self, shape: tuple[int, int, int], settings: Settings) -> None:
        super().__init__()
        channels, side, width = shape[0], min(shape[1:]), settings.width
        bias = settings.norm == "none"
        padding = int(side < 22)
        self.pool = 3 if side >= 64 else 2
        self.conv1 = nn.Conv2d(channels, width, 3, padding=padding, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=padding, bias=bias)
        self.norm2 = norm_layer(settings.norm, width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=padding, bias=bias)
        self.norm3 = norm_layer(settings.norm, width)
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        # ReLU after the pooling: the same numbers, as ReLU is monotone, for a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(images), self.pool))
        x = F.relu(F.max_pool2d(self.norm2(self.conv2(x)), self.pool))
        x = F.relu(F.max_pool2d(self.norm3(self.conv3(x)), self.pool))
        if max(x.shape[-2:]) > _GRID:
            x = pooled_to_grid(x)
        return self.dropout(x.flatten(1))


def pooled_to_grid(x: Tensor) -> Tensor:
    """F.adaptive_max_pool2d(x, 2), which ONNX does not have: two windows of ceil(n / 2), floor(n / 2) apart."""
    height, width = (max(side, 2) for side in x.shape[-2:])
    x = x.expand(-1, -1, height, width)  # a side of 1 is both rows of the grid
    return F.max_pool2d(x, ((height + 1) // 2, (width + 1) // 2), (height // 2, width // 2))
