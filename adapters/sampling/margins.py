"""Margins where pseudo-labels do not count: the edge of the sky, the border of the lens, the bonnet of the car.

Teachers are wrong there in the same way in every frame. DAFormer cuts 15 rows at the top and 120 at the bottom of each
512 crop. HRDA and MIC cut the same shares of the whole frame, and 30 of 2048 columns on either side, before they crop.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapters.regions import Region
from configs.recipe import RecipeBase


@dataclass(frozen=True, slots=True)
class Margins:
    """Shares of height and width (0-1), rounded to whole pixels; all 0 means no margins."""

    top: float = 0.0
    bottom: float = 0.0
    left: float = 0.0
    right: float = 0.0
    of: Literal["crop", "image"] = "crop"
    """Reference of the shares: each crop, or the whole image; in either case without padding."""

    @classmethod
    def from_settings(cls, recipe: RecipeBase) -> "Margins":
        """Return the margins of a recipe."""
        return cls(recipe.margin_top, recipe.margin_bottom, recipe.margin_left, recipe.margin_right, recipe.margin_of)

    def trusted(self, region: Region, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return where pseudo-labels count in the crop `region` of an image of `size` (height, width): bool [h, w]."""
        whole = Region(0, 0, *size) if self.of == "image" else region
        rows = _inside(whole.top - region.top, whole.height, self.top, self.bottom)
        columns = _inside(whole.left - region.left, whole.width, self.left, self.right)
        trusted = np.zeros((region.height, region.width), np.bool_)
        trusted[rows, columns] = True
        return trusted


NO_MARGINS = Margins()
"""Pseudo-labels count everywhere."""


def _inside(start: int, length: int, before: float, after: float) -> slice:
    """Return the part of `length` pixels from `start` on without the margins, as a slice of a crop that begins at 0."""
    first, last = start + round(before * length), start + length - round(after * length)
    return slice(max(0, first), max(0, last))
