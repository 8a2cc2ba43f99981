"""Arrays and image files -> images as a stream stores them: [N, C, H, W], values from 0 to 255."""

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets.images import files
from utils.errors import UserError

Images = Tensor | npt.NDArray[np.generic]


def as_stored(images: Images, shape: tuple[int, int, int]) -> Tensor:
    """Images as uint8 or float32 [N, C, H, W], values from 0 to 255.

    Args:
        images: [N, C, H, W] or [N, H, W, C]; of one channel also [N, H, W]; one image without N. uint8 from 0 to 255,
            or floating point from 0 to 1.
        shape: C, H, W of the images that the networks were trained on.

    Raises:
        UserError: another shape, another kind of numbers, or values out of range.
    """
    pixels = torch.as_tensor(np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images)
    channels, height, width = shape
    layouts = [shape, (height, width, channels), *([(height, width)] if channels == 1 else [])]
    if tuple(pixels.shape) in layouts:
        pixels = pixels.unsqueeze(0)
    layout = tuple(pixels.shape[1:])
    if layout not in layouts:
        raise UserError(
            f"images of shape {list(images.shape)} do not fit: the zoo was trained on images of {channels} x {height} "
            f"x {width} (channels, height, width), so give [N, {channels}, {height}, {width}]"
        )
    if layout != shape:  # channels last, or none
        pixels = pixels.reshape(len(pixels), height, width, channels).permute(0, 3, 1, 2)
    if pixels.dtype == torch.uint8:
        return pixels.contiguous()
    if not pixels.is_floating_point():
        raise UserError(f"images of {pixels.dtype} do not fit: give uint8 from 0 to 255 or floats from 0 to 1")
    pixels = pixels.to(torch.float32)
    if len(pixels) and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
        raise UserError(
            f"images have values from {pixels.min():g} to {pixels.max():g}: give floats from 0 to 1, or uint8 from 0 "
            "to 255"
        )
    return (pixels * 255).contiguous()


def read_image(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """An image file of any size as uint8 [C, H, W]: the shorter side is scaled and the middle cut out.

    Raises:
        UserError: the file is not an image that can be read.
    """
    channels, height, width = shape
    if height != width or channels not in (1, 3):
        raise UserError(f"images of {channels} x {height} x {width} cannot be read from files; use Zoo.predict")
    pixels = torch.from_numpy(files.decode_image(path, height, grey=channels == 1).copy())
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def find_images(path: Path) -> tuple[list[Path], Counter[str]]:
    """The file at `path`, or all images below the folder `path`; and how many files are not looked at, by reason.

    Raises:
        UserError: there is none.
    """
    try:
        if not path.exists():
            raise UserError(f"{path} does not exist; name image files, or folders of them")
        if not path.is_dir():
            return [path], Counter()
        found, skipped = files.find_images(path)
    except (OSError, ValueError) as error:  # ValueError: a null character is part of no path
        raise UserError(f"{path} cannot be read: {error}") from None
    if not found:
        raise UserError(f"{path} has no images ({', '.join(sorted(files.SUFFIXES))})")
    return found, skipped
