"""Pictures of frames and label maps for the page: numpy and Pillow, nothing of it kept in memory."""

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Colors = list[tuple[int, int, int]]
"""RGB (0-255) of each class, in index order."""
JPEG_QUALITY = 90
THUMBNAIL = 192
"""Longest side of a thumbnail (pixels)."""
DIFFERS = (255, 0, 255)
"""Where two versions disagree: magenta, which no street and few class lists have."""
ROWS = 64
"""Rows that are counted at a time: counting takes eight bytes a pixel."""


def frame_jpeg(pixels: NDArray[np.uint8], *, thumbnail: bool = False) -> bytes:
    """Return pixels [h, w, 3] as JPEG, or a small version of them."""
    from PIL import Image

    picture, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    if thumbnail:
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()


def labels_of(png: bytes) -> NDArray[np.uint8]:
    """Return the class indices [h, w] of a look."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture:
        return np.array(picture, np.uint8)


def mask_png(labels: NDArray[np.uint8], colors: Colors) -> bytes:
    """Return class indices [h, w] as a palette PNG in these colours."""
    return _png(_with_palette(labels, colors))


def disagreement_png(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bytes:
    """Return a palette PNG [h, w]: `DIFFERS` where the labels differ, transparent elsewhere."""
    picture = _with_palette((first != second).astype(np.uint8), [(0, 0, 0), DIFFERS])
    return _png(picture, transparency=0)


def disagreement(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the share of pixels on which two label maps [h, w] differ (0-1)."""
    return float(np.mean(first != second))


def shares(labels: NDArray[np.uint8], classes: int) -> list[float]:
    """Return the share of the pixels of each class (0-1)."""
    bands = (labels[start : start + ROWS] for start in range(0, len(labels), ROWS))
    counted = sum(np.bincount(band.ravel(), minlength=256) for band in bands)
    return [float(count) / labels.size for count in np.atleast_1d(counted)[:classes]]


def _with_palette(labels: NDArray[np.uint8], colors: Colors) -> "Image.Image":
    from PIL import Image

    picture = Image.fromarray(labels).convert("L")
    picture.putpalette([channel for color in colors for channel in color])
    return picture


def _png(picture: "Image.Image", **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1, **options)
    return file.getvalue()
