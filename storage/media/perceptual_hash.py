"""Perceptual hash: near copies get near hashes, whatever their size and encoding.

The 64 lowest frequencies of the cosine transform of the image at 32x32 grey, each as one bit: above their median or not
(pHash; Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010).
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""Side of the grey image that is transformed (pixels)."""
KEPT = 8
"""Frequencies kept on each axis; KEPT * KEPT bits."""
LARGE = 256
"""Above this side (pixels) whole pixels are averaged first: exact enough for 32x32 and several times faster."""
COSINES = np.sqrt(2 / SIDE) * np.cos(np.pi * np.arange(KEPT)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
COSINES[0] /= np.sqrt(2)
"""First rows of the orthonormal DCT-II, [KEPT, SIDE]."""


def perceptual_hash(pixels: NDArray[np.uint8]) -> str:
    """Return the hash of an image [h, w, 3] RGB: 64 bits as 16 hex digits. Pass the image without padding."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    factor = (max(1, image.width // LARGE), max(1, image.height // LARGE))
    grey = image.reduce(factor).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    low = COSINES @ np.asarray(grey, np.float64) @ COSINES.T
    bits = (np.round(low, 6) > np.round(np.median(low.flat[1:]), 6)).flatten()  # rounded: noise of the sums is no bit
    return np.packbits(bits).tobytes().hex()


def distance(a: str, b: str) -> int:
    """Return the number of bits in which two hashes differ, 0-64. Raises ValueError for an invalid hash."""
    return (int(a, 16) ^ int(b, 16)).bit_count()
