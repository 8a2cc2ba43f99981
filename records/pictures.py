"""Heat maps as PNG files, fast enough (a millisecond) to draw some in every episode."""

import io
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from evaluation.metrics import Matrix

# Viridis at 0, 1/16, ... 1: perceptually uniform, also for the colour-blind.
_VIRIDIS = (
    (68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142),
    (38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115), (94, 201, 98), (132, 212, 75),
    (173, 220, 48), (216, 226, 25), (253, 231, 37),
)  # fmt: skip
# Index 0 stands for no value, 1 to 255 for 0 to 1.
_AT, _ANCHORS = np.linspace(0, 1, 255), np.linspace(0, 1, len(_VIRIDIS))
_COLOURS = [np.interp(_AT, _ANCHORS, channel) for channel in zip(*_VIRIDIS, strict=True)]
_PALETTE = bytes((224, 224, 224)) + np.rint(np.stack(_COLOURS, 1)).astype(np.uint8).tobytes()
_SIDE, _CELL, _MOST = 480, 48, 960  # pixels of a picture with many cells; most pixels of a cell; most cells
_NUMBERED = 20  # least pixels of a cell in which a number can be read


def heat_map(values: Matrix, rows: int, percent: Matrix | None = None) -> tuple[bytes, int, int]:
    """A matrix [so far, columns] as squares from dark violet (0) over green to yellow (1); light grey for NaN.

    The picture has room for `rows`; of more than 960 rows or columns, only every second, third, ... one is drawn.
    Shares in `percent` are written into the cells where there is room. Returns a PNG file, its width and its height.
    """
    columns = values.shape[1]
    step = -(-max(rows, columns) // _MOST)
    cells = np.zeros((-(-rows // step), -(-columns // step)), np.uint8)
    drawn = values[::step, ::step]
    levels = 1 + np.rint(254 * np.clip(np.nan_to_num(drawn), 0, 1)).astype(np.uint8)
    cells[: len(drawn)] = np.where(np.isnan(drawn), 0, levels)
    size = max(1, min(_CELL, _SIDE // max(cells.shape)))
    pixels = cells.repeat(size, 0).repeat(size, 1)
    if percent is not None and size >= _NUMBERED:
        for row, column in zip(*np.nonzero(~np.isnan(percent) & ~np.isnan(values)), strict=True):
            cell = pixels[row * size : (row + 1) * size, column * size : (column + 1) * size]
            cell[_number(round(100 * percent[row, column]), size)] = 1 if cell[0, 0] > 128 else 255
    height, width = pixels.shape
    image = Image.frombytes("P", (width, height), pixels.tobytes())
    image.putpalette(_PALETTE)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue(), width, height


@cache
def _number(number: int, size: int) -> npt.NDArray[np.bool_]:
    """The pixels of a number in the middle of a square."""
    image = Image.new("1", (size, size))
    font = ImageFont.load_default(0.55 * size if number < 100 else 0.42 * size)
    ImageDraw.Draw(image).text((size / 2, size / 2), str(number), 1, font, anchor="mm")
    return np.asarray(image)
