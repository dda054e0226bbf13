"""Pictures of label maps: exact classes and colours, shares of pixels, transparent where versions agree."""

import io

import numpy as np
import pytest
from PIL import Image

from daemon.looks import pictures
from daemon.looks.pictures import disagreement, disagreement_png, frame_jpeg, labels_of, mask_png, shares

LABELS = np.random.default_rng(0).integers(0, 3, (150, 40), np.uint8)
COLORS = [(1, 2, 3), (4, 5, 6), (70, 80, 90)]


def read(data: bytes, mode: str) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture.convert(mode))


def test_a_mask_has_the_colours_of_its_classes_and_is_the_label_map():
    png = mask_png(LABELS, COLORS)
    assert np.array_equal(read(png, "RGB"), np.array(COLORS, np.uint8)[LABELS])
    assert np.array_equal(labels_of(png), LABELS)


def test_shares_and_disagreement_count_pixels():
    other = LABELS.copy()
    other[:15, :10] = (other[:15, :10] + 1) % 3
    assert shares(LABELS, 5) == pytest.approx([*(np.bincount(LABELS.ravel()) / 6000), 0, 0])
    assert (disagreement(LABELS, LABELS), disagreement(LABELS, other)) == (0.0, 150 / 6000)
    drawn = read(disagreement_png(LABELS, other), "RGBA")
    assert {tuple(color) for color in drawn[:15, :10].reshape(-1, 4)} == {(*pictures.DIFFERS, 255)}
    assert not drawn[15:, :, 3].any() and not drawn[:, 10:, 3].any(), "transparent"


def test_frames_keep_their_size_and_thumbnails_their_aspect():
    pixels = np.zeros((100, 400, 3), np.uint8)[:, :384]
    pixels[...] = (200, 100, 50)
    whole = read(frame_jpeg(pixels), "RGB")
    assert whole.shape == (100, 384, 3) and np.abs(whole.astype(int) - (200, 100, 50)).max() < 4
    assert read(frame_jpeg(pixels, thumbnail=True), "RGB").shape == (50, pictures.THUMBNAIL, 3)
