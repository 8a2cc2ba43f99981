"""The wide residual network (Zagoruyko & Komodakis 2016): pre-activation, dropout inside the blocks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.config import DropoutSettings
from net.images.norms import NormSettings, norm_layer
from net.images.relu_dropout import ReluDropout
from utils.errors import UserError
from utils.settings import Range, setting


class ResidualBlock(nn.Module):
    """norm, ReLU, 3x3 convolution, norm, ReLU, dropout, 3x3 convolution, plus the input.

    The input passes a 1x1 convolution only where the number of channels or the resolution changes.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, dropout: float, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.norm1 = norm_layer(norm, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, channels_out)
        self.dropout = ReluDropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=bias)
        changes = stride != 1 or channels_in != channels_out
        # Without a bias also where there is no norm: that of conv2 is in the same sum.
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        active = F.relu(normed, inplace=normed is not x)  # without a norm the input is still needed
        inner = self.conv2(self.dropout(self.norm2(self.conv1(active))))
        return inner.add_(x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """images [B, C, H, W] -> features [B, 64 * widen]; UserError if there is no network of that depth."""

    @dataclass(frozen=True)
    class Settings(NormSettings, DropoutSettings):
        """Settings of the wide residual network; dropout acts between the two convolutions of a block."""

        depth: int = setting(Range(10, 1000), "layers: 6n + 4, n blocks in each of three groups", default=16)
        widen: int = setting(Range(1, 1000), "factor on the 16, 32, 64 channels of the groups", default=4)

    def __init__(self, shape: tuple[int, int, int], settings: Settings) -> None:
        super().__init__()
        blocks, rest = divmod(settings.depth - 4, 6)
        if rest:
            raise UserError(f"depth is {settings.depth}; a wide residual network has 6n + 4 layers, such as 10, 16, 22")
        channels = 16
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1, bias=settings.norm == "none")
        layers = []
        for group, stride in enumerate((1, 2, 2)):
            for block in range(blocks):
                width = (16 << group) * settings.widen
                stride = stride if block == 0 else 1
                layers.append(ResidualBlock(channels, width, stride, settings.dropout, settings.norm))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.norm = norm_layer(settings.norm, channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(images))), inplace=True)
        return torch.mean(x, dim=(2, 3))
