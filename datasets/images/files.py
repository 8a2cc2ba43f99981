"""Image files, for training and predict.py: which files below a folder are images, and how one becomes an array."""

import logging
import os
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from utils.errors import UserError, shortage

SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm",
            ".pgm", ".ppm", ".pnm", ".pfm"}  # fmt: skip
DECODER = f"3, Pillow {PIL.__version__}"  # count up when decode_image makes other pixels of a file
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow knows others, some of which start programs
_MOST_PIXELS = 1 << 26
_THIN = 4  # only the middle of an image is scaled if the ratio of its sides is larger
logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would print its errors on stderr too


def find_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All image files below a folder, links followed, sorted, and how many others there are, by reason.

    A folder that cannot be read is listed as an image, because there may be some in it: decode_image says why.
    """
    images: list[Path] = []
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    for here, *entries in os.walk(folder, onerror=lambda error: images.append(Path(error.filename)), followlinks=True):
        if (place := os.path.realpath(here)) in seen:  # reached before, through a link
            entries[0].clear()
            continue
        seen.add(place)
        for names in entries:  # of folders, of files
            shown = sorted(name for name in names if not name.startswith("."))
            skipped["hidden"] += len(names) - len(shown)
            names[:] = shown
        found = [path for name in entries[1] if (path := Path(here, name)).suffix.lower() in SUFFIXES]
        images.extend(found)
        skipped["without the suffix of an image"] += len(entries[1]) - len(found)
    return sorted(images), skipped


def reasons(skipped: Counter[str]) -> str:
    """Counts by reason, for people: "2 hidden, 1 without the suffix of an image"; "" if there are none."""
    return ", ".join(f"{count:,} {reason}" for reason, count in skipped.items() if count)


def decode_image(source: Path | Image.Image, size: int, grey: bool = False) -> np.ndarray:
    """An image as uint8 [size, size, 3] (grey: [size, size]): the shorter side scaled to `size`, the middle cut out.

    It is as people see it: turned as its metadata say, on white where it is transparent; of several images the first.
    UserError if it cannot be read.
    """
    try:
        if isinstance(source, Path) and source.is_fifo():  # to open it would wait for ever
            raise ValueError("neither a file nor a folder")
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(source, formats=_FORMATS) as file:
            if file.width * file.height > _MOST_PIXELS:  # a damaged size asks for gigabytes
                raise ValueError(f"{file.width}x{file.height} pixels are too many: make it smaller")
            image = file.copy() if file is source else file
            _turn(image)
            image = _eight_bits(image, file) if image.mode.startswith(("I", "F")) else image
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.asarray(_square(image.convert("L" if grey else "RGB"), size))
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        told = shortage(error) or getattr(error, "strerror", None) or error
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else told
        raise UserError(f"{source} cannot be read as an image ({reason})") from None


def _turn(image: Image.Image) -> None:
    """Turn an image as its metadata say; damaged ones say nothing."""
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # Pillow raises whatever damaged metadata lead it to
        if shortage(error):
            raise


def _eight_bits(image: Image.Image, file: Image.Image) -> Image.Image:
    """Grey of 9 to 16 bits, or floats from 0 to 1, as 8 bits; Pillow would clip them. `file` has the tags of a TIFF."""
    tags = getattr(file, "tag_v2", {})  # of a TIFF file
    values = stored = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
            raise ValueError(f"grey from {values.min():g} to {values.max():g}: floats must be from 0 to 1")
        values = np.rint(values * 255)
    elif image.mode == "I" and file.format not in ("PNG", "PPM"):  # whose white is 65535
        raise ValueError("signed or 32-bit grey, of which nothing says what is white: save it with 8 or 16 bits")
    else:
        values = values >> (tags[BITSPERSAMPLE][0] - 8 if tags else 8)
    dark_is_high = tags.get(PHOTOMETRIC_INTERPRETATION) == 0
    shown = Image.fromarray((255 - values if dark_is_high else values).astype(np.uint8))
    if "transparency" in image.info:  # the value of a PNG file that is not seen
        shown.putalpha(Image.fromarray(np.uint8(255) * (stored != image.info["transparency"])))
    return shown


def _square(image: Image.Image, size: int) -> Image.Image:
    x, y = (max(0, side - _THIN * min(image.size)) // 2 for side in image.size)
    image = image.crop((x, y, image.width - x, image.height - y))  # to scale all could take gigabytes
    width, height = (round(side * size / min(image.size)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
