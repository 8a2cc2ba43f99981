"""Arrays and image files -> images as a stream stores them: [N, C, H, W], values from 0 to 255."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from datasets.images import files
from utils.errors import UserError

Arrays = Tensor | npt.NDArray[np.generic]
Picture = str | Path | Image.Image  # a file, or an image of Pillow
Images = Arrays | Picture | Sequence[Picture]


def as_stored(images: Arrays, shape: tuple[int, ...], of_images: bool = True) -> Tensor:
    """Images, see Zoo.predict, as uint8 or float32 [N, C, H, W], values from 0 to 255; a UserError if they do not fit.

    Inputs that are no images (`of_images` unset) become [N, *shape] of any finite values. One may come without N.
    """
    # The copy: torch warns of arrays that are read-only, as NumPy's views of images are.
    pixels = torch.from_numpy(np.array(images, order="C")) if isinstance(images, np.ndarray) else images
    layouts = [shape]
    if of_images:
        channels, height, width = shape
        layouts += [(height, width, channels), *([(height, width)] if channels == 1 else [])]
    if tuple(pixels.shape) in layouts:
        pixels = pixels.unsqueeze(0)
    layout = tuple(pixels.shape[1:])
    if layout not in layouts:
        raise UserError(
            f"inputs of shape {list(images.shape)} do not fit: the zoo was trained on {' x '.join(map(str, shape))}"
            f"{' (channels, height, width)' * of_images}, so give [N, {', '.join(map(str, shape))}]"
        )
    if not of_images:
        if not pixels.isfinite().all():
            raise UserError("inputs have values that are not finite")
        return pixels
    if layout != shape:  # channels last, or none
        pixels = pixels.reshape(len(pixels), height, width, channels).permute(0, 3, 1, 2)
    if pixels.dtype == torch.uint8:
        return pixels.contiguous()
    advice = "give floats from 0 to 1, or uint8 from 0 to 255"
    if not pixels.is_floating_point():
        raise UserError(f"images of {pixels.dtype} do not fit: {advice}")
    pixels = pixels.to(torch.float32)
    if len(pixels) and not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
        raise UserError(f"images have values from {pixels.min():g} to {pixels.max():g}: {advice}")
    return (pixels * 255).contiguous()


def read_image(image: Picture, shape: tuple[int, ...]) -> Tensor:
    """An image of any size as uint8 [C, H, H], see `decode_image`; a UserError if it cannot be read."""
    channels, side, _ = shape
    source = image if isinstance(image, Image.Image) else Path(image)
    pixels = torch.from_numpy(files.decode_image(source, side, grey=channels == 1).copy())
    return pixels.unsqueeze(0) if channels == 1 else pixels.permute(2, 0, 1)


def read_images(images: Picture | Sequence[Picture], shape: tuple[int, ...]) -> Tensor:
    """Images of any size as uint8 [N, C, H, H], see read_image."""
    read = [read_image(image, shape) for image in ([images] if isinstance(images, Picture) else images)]
    return torch.stack(read) if read else torch.empty(0, *shape, dtype=torch.uint8)


def find_images(path: Path) -> tuple[list[Path], Counter[str]]:
    """The file at `path`, or all images below it (UserError: none); how many files are not looked at, by reason."""
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
