"""Which cells of the feature maps Masked Feature Modeling masks, and how a mask meets maps of any size.

A keep mask is bool `[B, 1, rows, columns]`, true on cells that are kept, as in the published code; the paper's M is its
opposite.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.draws import Draws
from adapters.parallel import mean_count


def grid_of(deepest: Sequence[int], cells: int) -> tuple[int, int]:
    """Rows and columns of the mask grid over a deepest map of `deepest` (height, width), never finer than the map.

    `cells` on the shorter side; the cells are square up to rounding. At the published 512x512 crop both sides have 16.
    """
    side = max(1.0, min(deepest) / cells)  # of a cell, in positions of the map
    return round(deepest[0] / side), round(deepest[1] / side)


def draw_keep(deepest: Tensor, cells: int, ratio: float, draws: Draws) -> Tensor:
    """A fresh keep mask for the deepest map `[B, C, H, W]`: each cell by itself is masked with probability `ratio`.

    Kept from u >= `ratio` on (published: u > 0.4), so that 0 masks nothing. `draws` is asked at any ratio: arms of an
    ablation see the same crops, mixes and augmentations.
    """
    rows, columns = grid_of(deepest.shape[-2:], cells)
    uniform = draws.per_image(deepest.shape[0], 1, rows, columns)
    return (uniform >= ratio).to(deepest.device, non_blocking=True)


def keep_at(keep: Tensor, size: Sequence[int]) -> Tensor:
    """`keep` on a map of `size` (height, width), bool `[B, 1, *size]`: each position belongs to the cell it lies in.

    For whole multiples of the grid, as at the published crop, this is the published nearest resize.
    """
    if tuple(keep.shape[-2:]) == tuple(size):
        return keep
    return F.interpolate(keep.float(), tuple(size), mode="nearest-exact") > 0.5


def paste(level: Tensor, filling: Tensor, keep: Tensor) -> Tensor:
    """`level` `[B, C, H, W]` where its cell is kept, `filling` (same shape, or one that spreads to it) elsewhere.

    `torch.where` and no sum of products: kept values stay bit for bit, and masked ones cannot leak, infinite or not.
    """
    return torch.where(keep_at(keep, level.shape[-2:]), level, filling.to(level.dtype))


def masked_mean(values: Tensor, keep: Tensor) -> Tensor:
    """Mean of `values` `[B, H, W]` over the positions in masked cells of all processes, a scalar; 0 when none is."""
    masked = ~keep_at(keep, values.shape[-2:])[:, 0]  # [B, H, W]
    return values.masked_fill(~masked, 0.0).sum() / mean_count(masked)


def resize_to_grid(deepest: Tensor, keep: Tensor) -> Tensor:
    """The deepest map `[B, C, H, W]` at the size of the grid, bilinear (half-pixel centres), `[B, C, rows, columns]`.

    Bilinear reads the two positions a side around a cell's centre. From two positions a cell on (4 at DeepLab's
    published 64x64 map, 2.3 at a ViT's 37x37) both lie within the cell. Where a cell is smaller, it would read what
    stands in masked neighbours: those positions are left out, and the weights of the others add up to 1 again.
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
