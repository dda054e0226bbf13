"""Targets that rebuilt cells may have to match instead of pixel classes: features, or the image.

The paper gives the targets and their scores, not the distances; the distances are mfmd's own. Both count masked cells
only. Both compare values normalised position by position, so no level and no bright patch outweighs the others. Both
are 0 for a perfect reconstruction.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.mfm.feature_mask import masked_mean


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
