"""The normalisation of a network for images: batch, group or none."""

from dataclasses import dataclass

from torch import nn

from utils.settings import setting

_MOST_GROUPS, _LEAST_CHANNELS = 32, 4


@dataclass(frozen=True)
class NormSettings:
    """The setting of a trunk whose normalisation can be chosen."""

    norm: str = setting(
        ("batch", "group", "none"), "normalisation; without it convolutions have biases", default="batch"
    )


def norm_layer(norm: str, channels: int) -> nn.Module:
    """A layer that normalises images of so many channels; none: the identity, which returns its very input.

    Group normalisation looks at each image by itself: results depend neither on the batch nor on earlier tasks.
    """
    if norm == "group":
        return nn.GroupNorm(groups_of(channels), channels)
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def groups_of(channels: int) -> int:
    """Groups of channels: 32 (Wu & He 2018), or as many as divide the channels and leave four or more in each."""
    fitting = (n for n in range(_MOST_GROUPS, 0, -1) if channels % n == 0 and channels >= n * _LEAST_CHANNELS)
    return next(fitting, 1)
