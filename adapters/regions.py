"""Rectangles of images on the CPU: where a crop is taken."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Region:
    """A rectangle of an image (pixels)."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: Pixels) -> Pixels:
        """Return the rectangle's part of `pixels` [H, W, ...]."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


def random_region(
    size: tuple[int, int], crop: tuple[int, int], factor: float, generator: np.random.Generator
) -> Region:
    """Draw a rectangle of an image of `size` that gives `crop` when scaled by `factor`.

    It is smaller when the image is.
    """
    height, width = (min(full, max(1, round(side / factor))) for full, side in zip(size, crop, strict=True))
    top, left = generator.integers(size[0] - height + 1), generator.integers(size[1] - width + 1)
    return Region(int(top), int(left), height, width)


def scaled_size(region: Region, factor: float, crop: tuple[int, int]) -> tuple[int, int]:
    """Return the size of `region` scaled by `factor`, at most `crop`: height, width (pixels)."""
    return (
        min(crop[0], max(1, round(region.height * factor))),
        min(crop[1], max(1, round(region.width * factor))),
    )
