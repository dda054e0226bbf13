"""Layer normalisation of feature maps."""

from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of each position: `[B, C, H, W]` -> `[B, C, H, W]`, channels-last."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return `maps` with each position's channels normalised."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
