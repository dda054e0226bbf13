"""Turn the Rebuilder's tokens into one level of the feature pyramid."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.layer_norm import LayerNorm2d


class Projector(nn.Module):
    """Tokens `[B, dim, rows, columns]` -> a level `[B, channels, H, W]`: doublings, 1x1 convolution, LayerNorm2d.

    The up-scaling is the power of two nearest to `ratio` (positions of the level per cell and side), at least 1. 1, 2,
    4 and 8 are published, with widths dim / 2, dim / 4, dim / 4 after the doublings; 16 and more continue with dim / 4.
    The rest of the way to the level's size (strides that are no power of two, odd sizes) is a bilinear resize before
    the 1x1 convolution, so the LayerNorm2d is the last step at any size.
    """

    def __init__(self, dim: int, channels: int, ratio: float) -> None:
        super().__init__()
        widths = _widths(dim, max(0, round(math.log2(ratio))))
        self.doublings = nn.Sequential(*_doublings(widths))
        self.output = nn.Linear(widths[-1], channels)  # a 1x1 convolution, without its detours on channels-last maps
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Return the level rebuilt at `size` (height, width)."""
        raised = self.doublings(tokens)
        if raised.shape[-2:] != tuple(size):
            raised = F.interpolate(raised, tuple(size), mode="bilinear", align_corners=False)
        rebuilt: Tensor = self.norm(self.output(raised.permute(0, 2, 3, 1)))  # [B, H, W, channels]
        return rebuilt.permute(0, 3, 1, 2)


def _widths(dim: int, doublings: int) -> list[int]:
    """Return channels before and after each doubling."""
    return [dim, dim // 2, *[dim // 4] * (doublings - 1)][: doublings + 1]


def _doublings(widths: Sequence[int]) -> list[nn.Module]:
    """Build transposed convolutions, with LayerNorm2d and GELU between two of them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        if layers:
            layers += [LayerNorm2d(inputs), nn.GELU()]
        layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1))
    return layers
