"""Where a crop lies, which crops are drawn again, and the margins where pseudo-labels do not count.

Margins are the edge of the sky, the border of the lens, the bonnet of the car: teachers are wrong there in the same way
in every frame. DAFormer cuts 15 rows at the top and 120 at the bottom of each 512 crop. HRDA and MIC cut the same
shares of the whole frame, and 30 of 2048 columns on either side, before they crop.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.recipe import RecipeBase

Pixels = NDArray[np.uint8]


class Region(NamedTuple):
    """A rectangle of an image (pixels)."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: Pixels) -> Pixels:
        """Return the rectangle's part of `pixels` [H, W, ...]."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


Crop = tuple[Region, Pixels]
"""A region of an image, and its labels [h, w]."""


def random_region(
    size: tuple[int, int], crop: tuple[int, int], factor: float, generator: np.random.Generator
) -> Region:
    """Draw a rectangle of an image of `size` that gives `crop` when scaled by `factor`; a smaller image gives less."""
    height, width = (min(full, max(1, round(side / factor))) for full, side in zip(size, crop, strict=True))
    top, left = generator.integers(size[0] - height + 1), generator.integers(size[1] - width + 1)
    return Region(int(top), int(left), height, width)


def scaled_size(region: Region, factor: float, crop: tuple[int, int]) -> tuple[int, int]:
    """Return the size of `region` scaled by `factor`, at most `crop`: height, width (pixels)."""
    return (
        min(crop[0], max(1, round(region.height * factor))),
        min(crop[1], max(1, round(region.width * factor))),
    )


def trusted_part(region: Region, size: tuple[int, int], recipe: RecipeBase) -> NDArray[np.bool_]:
    """Return where pseudo-labels count in the crop `region` of an image of `size` (height, width): bool [h, w].

    The margins of `recipe` are shares of the crop or of the image, in either case without padding.
    """
    whole = Region(0, 0, *size) if recipe.margin_of == "image" else region
    rows = _inside(whole.top - region.top, whole.height, recipe.margin_top, recipe.margin_bottom)
    columns = _inside(whole.left - region.left, whole.width, recipe.margin_left, recipe.margin_right)
    trusted = np.zeros((region.height, region.width), np.bool_)
    trusted[rows, columns] = True
    return trusted


def _inside(start: int, length: int, before: float, after: float) -> slice:
    """Return the part of `length` pixels from `start` on without the margins, as a slice of a crop that begins at 0."""
    first, last = start + round(before * length), start + length - round(after * length)
    return slice(max(0, first), max(0, last))


DOMINANT_SHARE = 0.75
"""A source crop in which one class covers more than this share of the labelled pixels is drawn again ..."""
REDRAWS = 10
"""... at most this often (the published code says `cat_max_ratio`). So is one without enough of a rare class."""


def choose_crop(draw: Callable[[], Crop], ignore_index: int, enough: Callable[[Pixels], bool] | None = None) -> Crop:
    """Return a crop from `draw` that no class dominates and that, if asked for, has `enough` in its labels.

    When none of the draws qualifies, return the last one.
    """

    def varied() -> Crop:
        return _redrawn(draw, lambda labels: not dominated(labels, ignore_index))

    return varied() if enough is None else _redrawn(varied, enough)


def dominated(labels: Pixels, ignore_index: int) -> bool:
    """Return whether one class covers `DOMINANT_SHARE` of the labelled pixels of `labels` [H, W], or there are none."""
    counts = np.bincount(labels.ravel(), minlength=256)
    counts[ignore_index] = 0
    return bool(counts.max() >= DOMINANT_SHARE * counts.sum())


def _redrawn(draw: Callable[[], Crop], good: Callable[[Pixels], bool]) -> Crop:
    crop = draw()
    for _ in range(REDRAWS):
        if good(crop[1]):
            break
        crop = draw()
    return crop
