"""Flip consistency: whether a mirrored street gets the mirrored answer.

A transform whose consistency is not part of the training loss still separates good from bad candidates. Jitter, blur
and masking do not, because teacher and student are trained to agree on them (docs/explanation/sources.md: rank
correlation .56/.48 against .09/-.05). Training flips whole crops, image and label alike, but never compares the two
sides, so flipping remains a fair test.
"""

import torch
from torch import Tensor

from adapters.class_map import class_map
from adapters.networks.network import SegmentationNetwork


def flip_consistency(network: SegmentationNetwork, image: Tensor, prediction: Tensor) -> float:
    """Return the share of pixels (0-1) of `prediction` [h, w] that stay when `image` [1, 3, h, w] is mirrored."""
    mirrored = class_map(network(image.flip(-1))[0])  # [h, w]
    return float(torch.eq(mirrored.flip(-1), prediction).double().mean())
