"""A small head on the maps of any encoder, for terms that learn something beside classes; it exists in training only.

Published heads read the last features of the decoder, which an imported decoder does not show.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 64
"""Channels between the levels and the output; ours."""


class LevelsHead(nn.Module):
    """Each level linearly to `WIDTH` channels, resized to the finest and summed, GELU, linearly to the outputs."""

    def __init__(self, feature_channels: Sequence[int], outputs: int) -> None:
        """Build it for maps of `feature_channels`."""
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in feature_channels)
        self.output = nn.Conv2d(WIDTH, outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return outputs [B, outputs, h, w] at the size of the finest of `maps`."""
        finest = max((tuple(level.shape[-2:]) for level in maps), key=lambda size: size[0] * size[1])
        embedded = [
            F.interpolate(level(found), finest, mode="bilinear", align_corners=False)
            for level, found in zip(self.levels, maps, strict=True)
        ]
        outputs: Tensor = self.output(F.gelu(torch.stack(embedded).sum(0)))
        return outputs

    def resized(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """Return outputs [B, outputs, *size], resized bilinearly."""
        return F.interpolate(self(maps), tuple(size), mode="bilinear", align_corners=False)
