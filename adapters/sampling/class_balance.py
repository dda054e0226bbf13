"""Class weights from class frequencies: small networks from scratch never learn rare classes without them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LABEL_VALUES = 256
"""Labels are bytes."""


def balanced_weights(class_pixels: NDArray[np.int64], exponent: float) -> Tensor:
    """Return the weight of each label value, [256] float32: (median frequency / frequency) ** `exponent`.

    `class_pixels` [N, K]: labelled pixels per image and class. The frequency of a class is its share of the pixels of
    the images that hold it (SegNet, Badrinarayanan 2015). Classes that never occur, and values that are no class, weigh
    0.
    """
    held = class_pixels > 0
    pixels = class_pixels.sum(axis=1, keepdims=True)
    frequency = class_pixels.sum(axis=0) / np.maximum((held * pixels).sum(axis=0), 1)  # [K]
    seen = frequency > 0
    weights = torch.zeros(LABEL_VALUES)
    if seen.any():
        ratio = np.median(frequency[seen]) / np.where(seen, frequency, 1.0)
        weights[: len(frequency)] = torch.from_numpy(np.where(seen, ratio**exponent, 0.0)).float()
    return weights
