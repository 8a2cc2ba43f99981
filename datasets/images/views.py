"""Permuted and rotated images as pixel maps: which stored pixel each pixel shows (-1: black).

Label 10x + y of a task is class y seen through view x. No copy of the images is made.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.images.stream import Label


def numbered(count: int) -> list[list[int]]:
    """The classes of `count` tasks: all ten, seen through the views 0, 1, ..."""
    return [[10 * x + y for y in range(10)] for x in range(count)]


def decode_view(entry: int) -> Label:
    """10x + y -> class y, view x."""
    return Label(entry % 10, entry // 10)


def permutation(pixels: int, x: int) -> Tensor | None:
    """View x permutes the pixels with the seed 1000x of numpy's default generator; view 0 is the image itself."""
    if x == 0:
        return None
    return torch.from_numpy(np.random.default_rng(1000 * x).permutation(pixels))


def rotation(side: int, x: int) -> Tensor | None:
    """View x turns a square image counter-clockwise by 10x degrees about its centre; nearest pixel, black outside.

    The same as torchvision's `rotate` with its default settings, which the paper's authors use, without the seconds
    that torchvision takes to load. ValueError from 360 degrees on, which would repeat a view.
    """
    if x == 0:
        return None
    if x >= 36:
        raise ValueError(f"a rotation by {10 * x} degrees repeats an earlier one; 10x + y goes up to 359")
    # Pixel numbers from 1, so that pixels outside are 0; exact in float32 up to 2**24 pixels.
    numbers = torch.arange(1, side * side + 1, dtype=torch.float32).view(1, 1, side, side)
    angle, places = math.radians(-10.0 * x), torch.arange(side) - (side - 1) / 2  # from the centre, in pixels
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    pixels = torch.cartesian_prod(places, places).flip(-1)
    grid = pixels @ (turn / (side / 2))  # where each pixel comes from; -1 and 1 are the borders
    seen = F.grid_sample(numbers, grid.view(1, side, side, 2), mode="nearest", align_corners=False)
    return seen.flatten().long() - 1
