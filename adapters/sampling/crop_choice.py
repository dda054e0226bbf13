"""Choose a random crop of a labelled image: one of several classes, with enough of the class it is drawn for."""

from collections.abc import Callable

import numpy as np

from adapters.regions import Pixels, Region

DOMINANT_SHARE = 0.75
"""A source crop in which one class covers more than this share of the labelled pixels is drawn again ..."""
REDRAWS = 10
"""... at most this often (the published code says `cat_max_ratio`). So is one without enough of a rare class."""

Crop = tuple[Region, Pixels]
"""A region of an image, and its labels [h, w]."""


def choose_crop(draw: Callable[[], Crop], ignore_index: int, enough: Callable[[Pixels], bool] | None = None) -> Crop:
    """Return a crop from `draw` that no class dominates and that, if asked for, has `enough` in its labels.

    When none of the draws qualifies, return the last one.
    """

    def varied() -> Crop:
        return _redrawn(draw, lambda labels: not dominated(labels, ignore_index))

    return varied() if enough is None else _redrawn(varied, enough)


def dominated(labels: Pixels, ignore_index: int) -> bool:
    """Return whether one class covers `DOMINANT_SHARE` of the labelled pixels of `labels` [H, W].

    It is also true when nothing is labelled.
    """
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
