"""Choose the cells of the feature maps that Masked Feature Modeling masks, and map a mask to maps of any size.

A keep mask is bool `[B, 1, rows, columns]`, true on cells that are kept, as in the published code. The paper's M is its
opposite.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.networks.parallel import mean_count
from adapters.networks.step_rng import StepRng


def grid_of(deepest: Sequence[int], cells: int) -> tuple[int, int]:
    """Return rows and columns of the mask grid over a deepest map of `deepest` (height, width).

    The grid is never finer than the map. The shorter side has `cells` cells. Cells are square up to rounding. At the
    published 512x512 crop both sides have 16.
    """
    side = max(1.0, min(deepest) / cells)  # of a cell, in positions of the map
    return round(deepest[0] / side), round(deepest[1] / side)


def draw_keep(deepest: Tensor, cells: int, ratio: float, draws: StepRng) -> Tensor:
    """Draw a keep mask for the deepest map `[B, C, H, W]`: each cell is masked independently with probability `ratio`.

    A cell is kept when u >= `ratio` (published: u > 0.4), so 0 masks nothing. `draws` advances at any ratio, so all
    arms of an ablation see the same crops, mixes and augmentations.
    """
    rows, columns = grid_of(deepest.shape[-2:], cells)
    uniform = draws.per_image(deepest.shape[0], 1, rows, columns)
    return (uniform >= ratio).to(deepest.device, non_blocking=True)


def keep_at(keep: Tensor, size: Sequence[int]) -> Tensor:
    """Return `keep` on a map of `size` (height, width), bool `[B, 1, *size]`: the cell of each position decides.

    For whole multiples of the grid, as at the published crop, this is the published nearest resize.
    """
    if tuple(keep.shape[-2:]) == tuple(size):
        return keep
    return F.interpolate(keep.float(), tuple(size), mode="nearest-exact") > 0.5


def paste(level: Tensor, filling: Tensor, keep: Tensor) -> Tensor:
    """Return `level` `[B, C, H, W]` where its cell is kept, `filling` (same shape, or broadcastable) elsewhere.

    `torch.where` instead of a sum of products keeps kept values bit for bit, and masked values cannot leak even when
    they are infinite.
    """
    return torch.where(keep_at(keep, level.shape[-2:]), level, filling.to(level.dtype))


def masked_mean(values: Tensor, keep: Tensor) -> Tensor:
    """Return the mean of `values` `[B, H, W]` over masked positions of all processes, a scalar; 0 without any."""
    masked = ~keep_at(keep, values.shape[-2:])[:, 0]  # [B, H, W]
    return values.masked_fill(~masked, 0.0).sum() / mean_count(masked)


def resize_to_grid(deepest: Tensor, keep: Tensor) -> Tensor:
    """Resize the deepest map `[B, C, H, W]` to the grid, bilinear (half-pixel centres), `[B, C, rows, columns]`.

    Bilinear reads the two positions a side around a cell's centre. With two or more positions a cell (4 at DeepLab's
    published 64x64 map, 2.3 at a ViT's 37x37) both lie within the cell. With smaller cells it would read positions of
    masked neighbours. Those positions are omitted, and the other weights are rescaled to a sum of 1.
    """
    size = (keep.shape[-2], keep.shape[-1])
    sides = list(zip(deepest.shape[-2:], size, strict=True))
    if all(positions == cells for positions, cells in sides):
        return deepest
    if all(positions == cells or positions >= 2 * cells for positions, cells in sides):
        return F.interpolate(deepest, size, mode="bilinear", align_corners=False)
    kept = keep_at(keep, deepest.shape[-2:])  # [B, 1, H, W]
    share = F.interpolate(kept.to(deepest.dtype), size, mode="bilinear", align_corners=False)
    visible = F.interpolate(deepest.masked_fill(~kept, 0.0), size, mode="bilinear", align_corners=False)
    return visible / share.clamp(min=0.25)  # a kept cell's own nearest position has at least half of the weight a side
