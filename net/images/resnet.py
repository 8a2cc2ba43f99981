"""The reduced ResNet-18 of GEM (Lopez-Paz & Ranzato 2017): a third of the usual channels, made for small images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from net.images.norms import NormSettings, norm_layer
from utils.settings import Range, setting


class BasicBlock(nn.Module):
    """3x3 convolution, norm, ReLU, 3x3 convolution, norm, plus the input, ReLU.

    The input passes a 1x1 convolution and a norm only where the number of channels or the resolution changes.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=bias)
        self.norm1 = norm_layer(norm, channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, channels_out)
        changes = stride != 1 or channels_in != channels_out
        # Without a bias also where there is no norm: that of conv2 is in the same sum.
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if changes else nn.Identity()
        self.shortcut_norm = norm_layer(norm, channels_out) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)), inplace=True)
        inner = self.norm2(self.conv2(inner)).add_(self.shortcut_norm(self.shortcut(x)))
        return F.relu(inner, inplace=True)


class ResNet18(nn.Module):
    """images [B, C, H, W] -> features [B, 8 * channels], the mean over all places.

    On images of 32x32 pixels this mean is the 4x4 average pooling of GEM. Weights begin as torch has it, as there.
    """

    @dataclass(frozen=True)
    class Settings(NormSettings):
        """Settings of the reduced ResNet-18."""

        channels: int = setting(
            Range(1, 8192), "channels of the first of four stages; each has twice as many", default=20
        )

    def __init__(self, shape: tuple[int, int, int], settings: Settings) -> None:
        super().__init__()
        channels, norm = settings.channels, settings.norm
        self.stem = nn.Conv2d(shape[0], channels, 3, padding=1, bias=norm == "none")
        self.norm = norm_layer(norm, channels)
        layers = []
        for stage, stride in enumerate((1, 2, 2, 2)):
            width = settings.channels << stage
            layers += [BasicBlock(channels, width, stride, norm), BasicBlock(width, width, 1, norm)]
            channels = width
        self.blocks = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(images)), inplace=True)
        return torch.mean(self.blocks(x), dim=(2, 3))
