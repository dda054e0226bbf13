"""Near copies have near hashes, other pictures far ones."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from storage.media.perceptual_hash import distance, perceptual_hash


def picture(seed: int, height: int = 240, width: int = 400) -> NDArray[np.uint8]:
    """Blurred noise: large shapes, as in a photograph."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 20, 3), np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(3)))


def jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def test_it_is_64_bits_in_16_hex_digits_and_does_not_change_between_versions():
    ramp = np.stack([np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 48, 0)] * 3, -1)
    assert perceptual_hash(ramp) == "8000000000000000"
    assert perceptual_hash(ramp[:, ::-1]) == "d500000000000000"  # the odd frequencies of the first row
    assert perceptual_hash(ramp[:, ::-1].transpose(1, 0, 2)) == "8080008000800080"


@pytest.mark.parametrize("seed", range(5))
def test_re_encoded_scaled_and_brightened_copies_are_near(seed: int):
    original = picture(seed)
    mine = perceptual_hash(original)
    assert distance(mine, perceptual_hash(jpeg(original, 40))) <= 4
    assert distance(mine, perceptual_hash(picture(seed, 120, 200))) <= 4
    assert distance(mine, perceptual_hash((original * 0.8 + 20).astype(np.uint8))) <= 4


def test_other_pictures_are_far():
    hashes = [perceptual_hash(picture(seed)) for seed in range(12)]
    pairs = [distance(a, b) for index, a in enumerate(hashes) for b in hashes[:index]]
    assert min(pairs) > 12 and 24 < np.mean(pairs) < 40


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 900), (900, 1), (33, 31), (2000, 3000)])
def test_every_size_has_a_hash(height: int, width: int):
    assert len(perceptual_hash(np.full((height, width, 3), 90, np.uint8))) == 16


def test_flat_images_are_alike_and_a_view_is_hashed_as_its_copy():
    assert (
        distance(perceptual_hash(np.zeros((9, 9, 3), np.uint8)), perceptual_hash(np.full((50, 60, 3), 200, np.uint8)))
        <= 1
    )
    view = picture(3)[10:200, 20:300]
    assert perceptual_hash(view) == perceptual_hash(view.copy())


def test_distance_counts_bits():
    assert distance("0" * 16, "f" * 16) == 64
    assert distance("0000000000000001", "0000000000000006") == 3
    with pytest.raises(ValueError):
        distance("", "0" * 16)
