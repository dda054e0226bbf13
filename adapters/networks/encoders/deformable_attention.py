"""Multi-scale deformable attention (Zhu et al., arXiv 2010.04159), in plain torch.

Each query looks at a few places near its own, on maps of several resolutions. It says itself where they are and how
much each counts. Reading between cells is `grid_sample`, so it runs wherever torch runs.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POINTS = 4
"""Places that a head reads on each map; as published."""


def places(sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the centres of all cells of maps of `sizes` (height, width) as (x, y) shares of the image, `[N, 2]`."""
    centres = []
    for height, width in sizes:
        rows = (torch.arange(height, device=device) + 0.5) / height
        columns = (torch.arange(width, device=device) + 0.5) / width
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        centres.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(centres)


def read_between_cells(levels: Sequence[Tensor], where: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return each query's weighted sum of what it reads, `[B, D, Q]` of `levels` `[B, D, H_l, W_l]`.

    `where` has (x, y) shares of the image for each level, `[B, Q, P, 2]`; cells outside count as zero. `weights` are
    `[B, Q, levels * P]`, level by level. Reading is in float32: bfloat16 has too few places for positions.
    """
    read = [
        F.grid_sample(level.float(), 2.0 * place.float() - 1.0, mode="bilinear", align_corners=False)  # [B, D, Q, P]
        for level, place in zip(levels, where, strict=True)
    ]
    return (torch.cat(read, dim=-1) * weights.float().unsqueeze(1)).sum(dim=-1)


class DeformableAttention(nn.Module):
    """Attention of queries to a few places of maps, `heads` times side by side.

    `ratio` is the width that is read, as a share of `width`. At first each head reads in a direction of its own, one to
    `POINTS` cells away, and weighs all places alike; as published.
    """

    def __init__(self, width: int, heads: int, levels: int, ratio: float) -> None:
        super().__init__()
        self.heads, self.levels = heads, levels
        inner = int(width * ratio)
        self.offsets = nn.Linear(width, heads * levels * POINTS * 2)
        self.weights = nn.Linear(width, heads * levels * POINTS)
        self.value = nn.Linear(width, inner)
        self.output = nn.Linear(inner, width)

    def initialise(self) -> None:
        """Set the first weights."""
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads) * (2.0 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # onto the square around the query
        steps = torch.arange(1, POINTS + 1).view(1, 1, POINTS, 1)
        with torch.no_grad():
            self.offsets.bias.copy_((directions.view(-1, 1, 1, 2) * steps).expand(-1, self.levels, -1, -1).flatten())

    def forward(self, queries: Tensor, own: Tensor, tokens: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Return what `queries` `[B, Q, C]` read, of their shape.

        `own` are their places `[Q, 2]` (see `places`); `tokens` `[B, N, C]` are the cells of maps of `sizes`, joined.
        """
        batch, count, _ = queries.shape
        per_head = (batch, count, self.heads, self.levels, POINTS)
        offsets = self.offsets(queries).float().view(*per_head, 2)
        weights = self.weights(queries).float().view(*per_head[:3], -1).softmax(dim=-1)
        values = self.value(tokens).split([height * width for height, width in sizes], dim=1)
        levels, where = [], []
        for index, (height, width) in enumerate(sizes):
            maps = values[index].transpose(1, 2).unflatten(1, (self.heads, -1)).flatten(0, 1)
            levels.append(maps.unflatten(2, (height, width)))  # [B * heads, inner / heads, H, W]
            x, y = offsets[:, :, :, index].unbind(dim=-1)  # of cells, [B, Q, heads, POINTS]
            place = torch.stack([own[:, 0, None, None] + x / width, own[:, 1, None, None] + y / height], dim=-1)
            where.append(place.transpose(1, 2).flatten(0, 1))  # [B * heads, Q, POINTS, 2]
        read = read_between_cells(levels, where, weights.transpose(1, 2).flatten(0, 1))
        joined = read.unflatten(0, (batch, self.heads)).flatten(1, 2).transpose(1, 2)  # [B, Q, inner]
        # Contiguous, or torch.export writes down that there are several images.
        result: Tensor = self.output(joined.to(queries.dtype).contiguous())
        return result
