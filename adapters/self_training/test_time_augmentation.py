"""Average class probabilities over scales and mirror images, and measure a network's confidence in each image."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_SIDE = 32
"""Smallest side of a scaled image (pixels): below it the deepest map of an encoder of stride 32 has no cell."""


@torch.no_grad()
def average_over(network: Callable[[Tensor], Tensor], images: Tensor, scales: Sequence[float], plain: Tensor) -> Tensor:
    """Return the mean softmax of `network` over `images` [B, 3, H, W] at every scale, plain and mirrored: [B, K, H, W].

    `plain` [B, K, H, W] is the softmax at scale 1, which is not computed again.
    """
    total = torch.zeros_like(plain)
    for scale in scales:
        for flipped in (False, True):
            total += plain if scale == 1.0 and not flipped else _probabilities(network, images, scale, flipped)
    return total / (2 * len(scales))


@torch.no_grad()
def mean_confidence(logits: Tensor, valid: Tensor) -> Tensor:
    """Return the mean largest probability over each image's `valid` pixels [B, H, W]: [B]; 0 without any."""
    confidence = logits.float().softmax(dim=1).amax(dim=1)
    return (confidence * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)


def _probabilities(network: Callable[[Tensor], Tensor], images: Tensor, scale: float, flipped: bool) -> Tensor:
    """Return the softmax [B, K, H, W] of `images` at `scale`, mapped back to where their pixels are."""
    height, width = images.shape[-2:]
    size = [max(min(side, SMALLEST_SIDE), round(scale * side)) for side in (height, width)]
    seen = images if scale == 1.0 else F.interpolate(images, size, mode="bilinear", align_corners=False)
    logits = network(seen.flip(-1) if flipped else seen)
    probabilities = logits.float().softmax(dim=1)
    if scale != 1.0:
        probabilities = F.interpolate(probabilities, (height, width), mode="bilinear", align_corners=False)
    return probabilities.flip(-1) if flipped else probabilities
