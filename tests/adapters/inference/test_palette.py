"""Colours of label maps."""

import tracemalloc

import numpy as np
import pytest

from adapters.inference.palette import AT_ONCE, bands, colour_mask, overlay, palette
from configs.class_list import ClassInfo

CLASSES = (ClassInfo(name="road", color=(128, 64, 128)), ClassInfo(name="sky", color=(70, 130, 180)))


def test_each_class_has_its_colour_and_ignored_is_black() -> None:
    labels = np.array([[0, 1], [255, 0]], dtype=np.uint8)
    assert colour_mask(labels, CLASSES).tolist() == [[[128, 64, 128], [70, 130, 180]], [[0, 0, 0], [128, 64, 128]]]
    assert palette(CLASSES).shape == (256, 3)


def test_overlay_runs_from_image_to_mask() -> None:
    pixels = np.full((1, 2, 3), 200, dtype=np.uint8)
    labels = np.array([[0, 1]], dtype=np.uint8)
    assert np.array_equal(overlay(pixels, labels, CLASSES, alpha=0.0), pixels)
    assert np.array_equal(overlay(pixels, labels, CLASSES, alpha=1.0), colour_mask(labels, CLASSES))
    assert overlay(pixels, labels, CLASSES)[0, 0].tolist() == [164, 132, 164]


@pytest.mark.parametrize("shape", [(900, 1000), (7, 5), (1, 65_535), (2, AT_ONCE + 9)], ids=str)
def test_a_large_image_is_blended_in_parts(shape: tuple[int, int]) -> None:
    numbers = np.random.default_rng(0)
    labels, pixels = numbers.integers(0, 3, shape, np.uint8), numbers.integers(0, 256, (*shape, 3), np.uint8)
    tracemalloc.start()
    try:
        mixed, coloured = overlay(pixels, labels, CLASSES), colour_mask(labels, CLASSES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * pixels.nbytes + 110 * max(AT_ONCE, shape[1]), "both results, and wide numbers of one part"
    assert np.array_equal(coloured, palette(CLASSES)[labels])
    assert np.array_equal(mixed, np.rint(pixels * 0.5 + coloured * 0.5))
    assert np.concatenate([labels[rows] for rows in bands(labels)]).shape == shape
