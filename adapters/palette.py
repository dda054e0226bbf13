"""Colours for label maps (numpy only)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from configs.class_list import ClassInfo


def palette(classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    """Return the RGB of every label value `[256, 3]`; values without a class (255: ignored) are black."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(classes)] = [entry.color for entry in classes]
    return table


def colour_mask(labels: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    """Return the RGB image `[h, w, 3]` of a label map `[h, w]` in the colours of `classes`."""
    return palette(classes)[labels]


def overlay(
    pixels: NDArray[np.uint8], labels: NDArray[np.uint8], classes: Sequence[ClassInfo], alpha: float = 0.5
) -> NDArray[np.uint8]:
    """Blend the colours of `labels` `[h, w]` over `pixels` `[h, w, 3]`; alpha 0 is the image, 1 the mask."""
    mixed = pixels * (1.0 - alpha) + colour_mask(labels, classes) * alpha
    return np.rint(mixed).astype(np.uint8)
