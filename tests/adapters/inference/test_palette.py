"""Colours of label maps."""

import numpy as np

from adapters.inference.palette import colour_mask, overlay, palette
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
