"""Drawn photographs for benchmarks/crops.py: files of the size, a pixel, that photographs of streets have.

Clouds of light and dark over nine octaves, texture that is strong in some places and weak in others, colour that
changes slowly, and the grain of a sensor. `bytes_per_pixel` compares them with any folder of photographs.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 93
"""Of the JPEG files."""
OCTAVES = (4, 8, 16, 32, 64, 128, 256, 512)
TEXTURE = (700, 1024, 1400)
"""Grains of the texture across 2048 pixels of width."""


def draw_photo(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return one image, [height, width, 3] RGB."""
    rng = np.random.default_rng(seed)

    def clouds(across: int) -> NDArray[np.float32]:
        return _clouds(rng, across, height, width)

    light = sum(60 / np.sqrt(across / 4) * clouds(across) for across in OCTAVES)
    busy = np.clip(0.6 + 0.5 * clouds(8), 0.05, None)
    light = light + 6 * busy * sum(clouds(across * width // 2048) for across in TEXTURE)
    colour = 20 * np.stack([clouds(16) for _ in range(3)], -1)
    grain = rng.normal(0, 0.5, (height, width, 1))
    return np.clip(128 + light[..., None] + colour + grain, 0, 255).astype(np.uint8)


def _clouds(rng: np.random.Generator, across: int, height: int, width: int) -> NDArray[np.float32]:
    """Return smooth noise, about `across` grains from left to right."""
    coarse = rng.normal(0, 1, (max(2, across * height // width), max(2, across))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def write_photos(folder: Path, photos: Sequence[NDArray[np.uint8]]) -> tuple[Path, Path]:
    """Write each as PNG (Pillow's default effort) and as JPEG; return the two folders."""
    png, jpeg = folder / "png", folder / "jpeg"
    png.mkdir()
    jpeg.mkdir()
    for number, pixels in enumerate(photos):
        image = Image.fromarray(pixels)
        image.save(png / f"{number:05d}.png")
        image.save(jpeg / f"{number:05d}.jpg", quality=QUALITY)
    return png, jpeg


def bytes_per_pixel(folder: Path, most: int = 20) -> tuple[float, float]:
    """Return the bytes a pixel of at most `most` photographs below `folder`, as JPEG and as PNG.

    Raises ValueError if there is no JPEG file.
    """
    paths = sorted(folder.rglob("*.jpg"))
    if not paths:
        raise ValueError(f"{folder}: no .jpg file below it; give a folder of photographs")
    pixels, jpeg, png = 0, 0, 0
    for path in paths[:: max(1, len(paths) // most)]:
        with Image.open(path) as image:
            packed = io.BytesIO()
            image.convert("RGB").save(packed, "PNG")
            pixels += image.width * image.height
        jpeg, png = jpeg + path.stat().st_size, png + len(packed.getvalue())
    return jpeg / pixels, png / pixels
