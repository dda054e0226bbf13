"""Flip consistency: does a mirrored street get the mirrored answer?

A transform whose consistency is not part of the training loss still tells good from bad candidates, unlike jitter,
blur and masking, which teacher and student are trained to agree on (docs/explanation/gate.md: rank correlation .56/.48
against .09/-.05). Training flips whole crops, image and label alike, but never compares the two sides, so flipping
stays a fair question.
"""

import torch
from torch import Tensor

from adapters.class_map import class_map
from adapters.networks.network import SegmentationNetwork


def flip_consistency(network: SegmentationNetwork, image: Tensor, prediction: Tensor) -> float:
    """Share of pixels (0-1) of `prediction` [h, w] that stay when `image` [1, 3, h, w] is flipped horizontally."""
    mirrored = class_map(network(image.flip(-1))[0])  # [h, w]
    return float(torch.eq(mirrored.flip(-1), prediction).double().mean())
