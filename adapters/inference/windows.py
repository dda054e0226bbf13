"""Sliding windows: an image larger than the network's input is segmented piece by piece, at its finer scale.

The image is scaled until it covers the input (one side as long as the input's, the other at least as long) and cut into
overlapping windows of the input's size. The logits of overlapping windows are averaged.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from adapters.inference.segment import logits_of
from storage.media.images import FittedFrame, fit_frame

LONGEST = 8
"""Longest scaled image, in input sides; a longer image is scaled to this length, and its windows are flatter.

Otherwise a strip of 1 x 60,000 pixels would be scaled up to gigabytes.
"""
ROUNDING = 1e-6
"""Error of a product that should be a whole number of pixels."""


@dataclass(frozen=True, slots=True)
class Window:
    """Size of a window (pixels) and the share of it that the next one overlaps (0 to below 1)."""

    height: int
    width: int
    overlap: float

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width (pixels) of an image of `height` x `width` scaled to cover the window."""
        by_height, by_width = self.height / height, self.width / width
        scale = min(max(by_height, by_width), LONGEST * by_height, LONGEST * by_width)
        return max(1, math.ceil(height * scale - ROUNDING)), max(1, math.ceil(width * scale - ROUNDING))

    def fit(self, pixels: NDArray[np.uint8]) -> FittedFrame:
        """Return the image uint8 `[h, w, 3]` scaled to cover the window, its aspect kept."""
        return fit_frame(pixels, *self.scaled_size(*pixels.shape[:2]))

    def logits(self, network: nn.Module, images: Tensor) -> Tensor:
        """Return mean logits, float32 `[B, K, h, w]`, of normalised images `[B, 3, h, w]`, in one place each."""
        height, width = images.shape[-2:]
        total = torch.zeros(())
        counts = images.new_zeros(height, width)
        for top in starts(height, self.height, self.overlap):
            for left in starts(width, self.width, self.overlap):
                place = (..., slice(top, top + self.height), slice(left, left + self.width))
                part = logits_of(network, images[place])
                if not total.ndim:
                    total = images.new_zeros(*part.shape[:2], height, width)
                total[place] += part
                counts[place] += 1
        return total / counts


def starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows begin along a side of `length` pixels; the last one ends with the image."""
    if length <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    return [*range(0, length - window, step), length - window]
