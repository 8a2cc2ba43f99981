"""Permuted and rotated images as pixel maps: which stored pixel each pixel shows (-1: black).

Label 10x + y of a task is class y seen through view x. No copy of the images is made. With `views: seed` in the
dataset YAML the views are drawn from the seed of the run, else every run has the same.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datasets.config import SEED, DataConfig
from datasets.images.settings import FIXED, SPAN
from datasets.images.stream import Label
from utils.errors import UserError
from utils.seeding import generator


class Views(NamedTuple):
    """The pixel map and the name of each view."""

    pixel_map: Callable[[int], Tensor | None]
    name: Callable[[int], str]


def permutations(config: DataConfig, seed: int, pixels: int) -> Views:
    """The views of a stream of permutations; drawn ones are all permuted, also the first (Lopez-Paz & Ranzato 2017)."""

    def drawn(x: int) -> Tensor:
        return torch.randperm(pixels, generator=generator(seed, "permutation", x))

    fixed = getattr(config.settings, "views", FIXED) == FIXED
    return Views(partial(permutation, pixels) if fixed else drawn, lambda x: f"permutation {x}")


def rotations(config: DataConfig, seed: int, side: int) -> Views:
    """The views of a stream of rotations of square images; drawn angles as in Lopez-Paz & Ranzato 2017.

    Of T tasks, view x is turned by an angle drawn uniformly from the x-th T-th of `span` degrees, counted from 0.
    """
    span, tasks = getattr(config.settings, "span", None), len(config.tasks)
    if getattr(config.settings, "views", FIXED) == FIXED:
        if span is not None:
            raise UserError(f"{config.path}: span is for drawn rotations; add views: {SEED}, or leave it out")
        return Views(partial(rotation, side), lambda x: f"rotated by {10 * x}°")

    def degrees(x: int) -> float:
        if x >= tasks:
            raise ValueError(f"of {tasks} tasks 10x + y goes up to {10 * tasks - 1} with views: {SEED}")
        share = torch.rand((), dtype=torch.float64, generator=generator(seed, "rotation", x)).item()
        return (x + share) / tasks * (span or SPAN)

    return Views(lambda x: turned(side, degrees(x)), lambda x: f"rotated by {degrees(x):.1f}°")


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


def turned(side: int, degrees: float) -> Tensor:
    """The map that turns a square image counter-clockwise as Pillow does: nearest pixel, black outside."""
    numbers = np.arange(1, side * side + 1, dtype=np.int32).reshape(side, side)  # from 1, so that pixels outside are 0
    return torch.from_numpy(np.array(Image.fromarray(numbers).rotate(degrees))).flatten().long() - 1


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
