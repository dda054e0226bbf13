"""Build four levels from the one map of a plain ViT, like ViTDet's simple feature pyramid (Li et al. 2022)."""

from torch import Tensor, nn

from adapters.networks.layer_norm import LayerNorm2d


class FeaturePyramid(nn.Module):
    """Levels at 4, 2, 1 and 1/2 times the map's resolution, each from the same last map.

    Transposed convolutions scale up and halve the channels each time. Max pooling scales down. A LayerNorm ends each
    level.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.channels = (quarter, half, width, width)
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(width, half, 2, stride=2)
        self.down2 = nn.MaxPool2d(2, ceil_mode=True)
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in self.channels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return four maps of `tokens` `[B, C, H, W]`.

        They are `[B, C/4, 4H, 4W]`, `[B, C/2, 2H, 2W]`, `[B, C, H, W]` and `[B, C, H/2, W/2]`, the last one rounded up.
        """
        levels = (self.up4(tokens), self.up2(tokens), tokens, self.down2(tokens))
        return tuple(norm(level) for norm, level in zip(self.norms, levels, strict=True))
