"""Side-by-side pictures: image, before, after, truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from adapters.palette import colour_mask
from configs.class_list import ClassInfo

GAP = 6
MARGIN = 12
HEADER = 30
LEGEND = 34
TEXT = 15
"""Size of captions (pixels)."""
PAPER = (255, 255, 255)
INK = (32, 32, 32)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: an RGB image [H, W, 3] and class maps [H, W]."""

    image: NDArray[np.uint8]
    before: NDArray[np.uint8]
    after: NDArray[np.uint8]
    truth: NDArray[np.uint8]


def side_by_side(
    rows: Sequence[Row], captions: tuple[str, str, str, str], classes: Sequence[ClassInfo], cell_width: int = 288
) -> Image.Image:
    """All rows under `captions`, with a legend of the classes below; each cell is `cell_width` pixels wide."""
    height, width = rows[0].image.shape[:2]
    cell = (cell_width, round(cell_width * height / width))
    sheet_width = 2 * MARGIN + 4 * cell[0] + 3 * GAP
    sheet = Image.new("RGB", (sheet_width, MARGIN + HEADER + len(rows) * (cell[1] + GAP) + LEGEND), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for column, caption in enumerate(captions):
        middle = MARGIN + column * (cell[0] + GAP) + cell[0] / 2
        draw.text((middle, MARGIN + HEADER / 2 - 4), caption, INK, font, anchor="mm")
    for number, row in enumerate(rows):
        top = MARGIN + HEADER + number * (cell[1] + GAP)
        for column, picture in enumerate(_cells(row, classes, cell)):
            sheet.paste(picture, (MARGIN + column * (cell[0] + GAP), top))
    _draw_legend(draw, font, classes, sheet.size)
    return sheet


def _cells(row: Row, classes: Sequence[ClassInfo], size: tuple[int, int]) -> list[Image.Image]:
    picture = Image.fromarray(row.image).resize(size, Image.Resampling.LANCZOS)
    masks = [Image.fromarray(colour_mask(mask, classes)) for mask in (row.before, row.after, row.truth)]
    return [picture, *(mask.resize(size, Image.Resampling.NEAREST) for mask in masks)]


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    classes: Sequence[ClassInfo],
    size: tuple[int, int],
) -> None:
    step = (size[0] - 2 * MARGIN) / len(classes)
    middle = size[1] - LEGEND / 2 - 2
    for number, entry in enumerate(classes):
        left = MARGIN + number * step
        draw.rectangle((left, middle - 7, left + 14, middle + 7), fill=entry.color, outline=INK)
        draw.text((left + 20, middle), entry.name, INK, font, anchor="lm")


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """An image file as RGB [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.uint8)
