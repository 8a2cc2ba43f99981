"""A small convolutional network for time series."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from net.config import DropoutSettings
from net.images.norms import NormSettings, norm_layer
from utils.errors import UserError
from utils.settings import Range, setting

_KERNELS = (7, 5, 3)


class Conv1d(nn.Module):
    """series [B, C, L], or [B, L] of one channel -> features [B, width], of any length L.

    Three convolutions along the series with kernels of 7, 5 and 3 places, padded with zeros, each with a norm and
    ReLU; then the mean over all places. UserError if inputs are no series.

    Source: the fully convolutional network of Wang, Yan & Oates, "Time series classification from scratch with deep
    neural networks" (2017), which has kernels of 8, 5 and 3 places and 128, 256 and 128 channels.
    """

    @dataclass(frozen=True)
    class Settings(NormSettings, DropoutSettings):
        """Settings of the convolutional network for series; its dropout acts on the features."""

        width: int = setting(Range(1, 65536), "channels of each convolution", default=64)

    def __init__(self, shape: tuple[int, ...], settings: Settings) -> None:
        super().__init__()
        if len(shape) > 2:
            size = "x".join(map(str, shape))
            raise UserError(f"model: conv1d takes series, channels x length or length; the inputs are {size}")
        width = settings.width
        sizes = ((1, *shape)[-2], width, width)
        # As images of height 1: methods know what to do with the weights of their convolutions.
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, width, (1, kernel), padding=(0, kernel // 2), bias=settings.norm == "none")
            for channels, kernel in zip(sizes, _KERNELS, strict=True)
        )
        self.norms = nn.ModuleList(norm_layer(settings.norm, width) for _ in _KERNELS)
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()

    def forward(self, series: Tensor) -> Tensor:
        x = series.view(len(series), -1, 1, series.shape[-1])
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.dropout(x.mean((2, 3)))
