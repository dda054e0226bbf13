"""Targets that rebuilt cells may have to match instead of pixel classes: features, or the image.

The paper gives the targets and their scores, not the distances; the distances are mfmd's own. Both count masked cells
only. Both compare values normalised position by position, so no level and no bright patch outweighs the others. Both
are 0 for a perfect reconstruction.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.mfm.feature_mask import masked_mean
from adapters.networks.initialisation import LayerNorm2d


def feature_distance(rebuilt: Sequence[Tensor], targets: Sequence[Tensor], keep: Tensor) -> Tensor:
    """Return the mean squared difference of maps `[B, C_l, H_l, W_l]` in masked cells, mean over levels, a scalar.

    Each position's channels are normalised to mean 0 and deviation 1 on both sides: 2 (1 - correlation), 0 to 4.
    """
    distances = [
        masked_mean((_normalised(level) - _normalised(target)).square().mean(dim=1), keep)
        for level, target in zip(rebuilt, targets, strict=True)
    ]
    return torch.stack(distances).mean()


def pixel_distance(pictures: Tensor, images: Tensor, keep: Tensor) -> Tensor:
    """Return the mean squared difference of predicted cells and the cells of `images` `[B, 3, H, W]`.

    `pictures` `[B, 3 p p, rows, columns]` are the predictions. The result is a scalar. Each cell of the images is
    normalised by its own mean and deviation, as in MAE (He et al. 2022).
    """
    targets = _normalised(pictures_of(images, pictures))
    return masked_mean((pictures.float() - targets).square().mean(dim=1), keep)


def pictures_of(images: Tensor, like: Tensor) -> Tensor:
    """Resize each cell of `images` `[B, 3, H, W]` to p x p pixels (area means), in the shape of `like`.

    The result is `[B, 3 p p, rows, columns]`.
    """
    rows, columns = like.shape[-2:]
    side = round((like.shape[1] / 3) ** 0.5)
    fitted = F.interpolate(images, (rows * side, columns * side), mode="area")
    return F.pixel_unshuffle(fitted, side)  # [B, 3, rows * p, columns * p] -> [B, 3 p p, rows, columns]


def _normalised(maps: Tensor) -> Tensor:
    """Return `maps` `[B, C, H, W]` in float32, each position's channels with mean 0 and deviation 1."""
    moved = maps.float().permute(0, 2, 3, 1)
    return F.layer_norm(moved, moved.shape[-1:]).permute(0, 3, 1, 2)


class Projector(nn.Module):
    """Tokens `[B, dim, rows, columns]` -> a level `[B, channels, H, W]`: doublings, 1x1 convolution, LayerNorm2d.

    The up-scaling is the power of two nearest to `ratio` (positions of the level per cell and side), at least 1. 1, 2,
    4 and 8 are published, with widths dim / 2, dim / 4, dim / 4 after the doublings; 16 and more continue with dim / 4.
    The rest of the way to the level's size (strides that are no power of two, odd sizes) is a bilinear resize before
    the 1x1 convolution, so the LayerNorm2d is the last step at any size.
    """

    def __init__(self, dim: int, channels: int, ratio: float) -> None:
        super().__init__()
        doublings = max(0, round(math.log2(ratio)))
        widths = [dim, dim // 2, *[dim // 4] * (doublings - 1)][: doublings + 1]  # before and after each doubling
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            if layers:
                layers += [LayerNorm2d(inputs), nn.GELU()]
            layers.append(nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1))
        self.doublings = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], channels)  # a 1x1 convolution, without its detours on channels-last maps
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """Return the level rebuilt at `size` (height, width)."""
        raised = self.doublings(tokens)
        if raised.shape[-2:] != tuple(size):
            raised = F.interpolate(raised, tuple(size), mode="bilinear", align_corners=False)
        rebuilt: Tensor = self.norm(self.output(raised.permute(0, 2, 3, 1)))  # [B, H, W, channels]
        return rebuilt.permute(0, 3, 1, 2)
