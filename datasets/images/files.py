"""Image files: which files below a folder are images, and how one becomes an array.

Training (image_folder.py) and predict.py share these rules.
"""

import logging
import os
import stat
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from utils.errors import UserError

SUFFIXES = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pbm",
            ".pgm", ".ppm", ".pnm", ".pfm"}  # fmt: skip
DECODER = f"2, Pillow {PIL.__version__}"  # changes when decode_image makes other pixels of a file
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow knows others, some of which start programs
_MOST_PIXELS = 1 << 26
_THIN = 4  # of an image whose sides differ more, only the middle is scaled
logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would print its errors on stderr too


def find_images(folder: Path) -> tuple[list[Path], Counter[str]]:
    """All image files below a folder, sorted, and how many others there are, by reason.

    Links to files and folders are followed. A folder that cannot be read is listed as an image, because there may be
    some in it: decode_image says why it cannot be read.
    """
    images: list[Path] = []
    skipped: Counter[str] = Counter()
    seen: set[str] = set()
    unreadable: list[OSError] = []
    for here, folders, files in os.walk(folder, onerror=unreadable.append, followlinks=True):
        place = os.path.realpath(here)
        shown = [] if place in seen else [name for name in (*folders, *files) if not name.startswith(".")]
        skipped["hidden"] += 0 if place in seen else len(folders) + len(files) - len(shown)
        seen.add(place)  # a link may lead back here
        folders[:] = sorted(set(shown).intersection(folders))
        paths = [Path(here, name) for name in set(shown).difference(folders)]
        images += [path for path in paths if path.suffix.lower() in SUFFIXES]
        skipped["without the suffix of an image"] += sum(path.suffix.lower() not in SUFFIXES for path in paths)
    return sorted([*images, *(Path(error.filename) for error in unreadable)]), skipped


def reasons(skipped: Counter[str]) -> str:
    """Counts by reason, for people: "2 hidden, 1 without the suffix of an image"; "" if there are none."""
    return ", ".join(f"{count:,} {reason}" for reason, count in skipped.items() if count)


def decode_image(path: Path | Image.Image, size: int, grey: bool = False) -> np.ndarray:
    """An image as uint8 [size, size, 3] (grey: [size, size]): the shorter side scaled to `size`, the middle cut out.

    It is as people see it: turned as its metadata say, on white where it is transparent; of several images the first.

    Raises:
        UserError: the file is not an image that can be read; names it.
    """
    try:
        with nullcontext(path.copy()) if isinstance(path, Image.Image) else _opened(path) as file:
            if file.width * file.height > _MOST_PIXELS:  # a damaged size asks for gigabytes
                raise ValueError(f"{file.width}x{file.height} pixels are too many: make it smaller")
            return np.asarray(_square(_as_seen(file).convert("L" if grey else "RGB"), size))
    except Exception as error:  # Pillow raises whatever a damaged file leads it to
        told = getattr(error, "strerror", None) or error
        reason = {UnidentifiedImageError: "not an image", MemoryError: "not enough memory"}.get(type(error), told)
        raise UserError(f"{path} cannot be read as an image ({reason})") from None


def _opened(path: Path) -> Image.Image:
    kind = path.stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # to open a pipe would wait for ever
        raise ValueError("neither a file nor a folder")
    return Image.open(path, formats=_FORMATS)


def _as_seen(file: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(file, in_place=True)
    image = _eight_bits(file) if file.mode.startswith(("I", "F")) else file
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image


def _eight_bits(file: Image.Image) -> Image.Image:
    """Grey of 9 to 16 bits, or floats from 0 to 1, as 8 bits; Pillow would clip them.

    Raises:
        ValueError: nothing says which value is white.
    """
    values, bits, dark_is_high = np.asarray(file), 16, False
    if isinstance(file, TiffImageFile):
        bits, dark_is_high = file.tag_v2[BITSPERSAMPLE][0], file.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    if file.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
            raise ValueError(f"grey from {values.min():g} to {values.max():g}: floats must be from 0 to 1")
        values = np.rint(values * 255)
    elif isinstance(file, TiffImageFile) and file.mode == "I":
        raise ValueError("signed or 32-bit grey, of which nothing says what is white: save it with 8 or 16 bits")
    else:
        values = values >> (bits - 8)
    return Image.fromarray((255 - values if dark_is_high else values).astype(np.uint8))


def _square(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size`, and cut the middle out."""
    width, height = image.size
    x, y = (max(0, side - _THIN * min(image.size)) // 2 for side in image.size)
    image = image.crop((x, y, width - x, height - y)) if x or y else image  # to scale all could take gigabytes
    width, height = image.size
    if (width, height) == (size, size):
        return image
    scale = size / min(width, height)
    width, height = max(size, round(width * scale)), max(size, round(height * scale))
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
