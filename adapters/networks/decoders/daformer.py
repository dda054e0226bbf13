"""DAFormer head (Hoyer et al., arXiv 2111.14887): fuse four levels at stride 4, then depthwise-separable ASPP."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adapters.networks.decoders.layers import conv_norm_relu, embed_levels, separable_conv

DILATIONS = (1, 6, 12, 18)
"""Published, for 512 crops: maps of 128x128 cells."""
TINY_DILATIONS = (1, 3, 6, 9)
"""For crops of 128-256 pixels: a larger reach would mostly see padding on maps of 32-64 cells."""


class DaformerHead(nn.Module):
    """Each level linearly to `channels`, resized to the first level, concatenated, ASPP, 3x3 bottleneck, classifier."""

    def __init__(
        self, feature_channels: Sequence[int], channels: int, num_classes: int, dropout: float, dilations: Sequence[int]
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in feature_channels)
        fused = channels * len(feature_channels)
        self.branches = nn.ModuleList(
            conv_norm_relu(fused, channels) if dilation == 1 else separable_conv(fused, channels, dilation)
            for dilation in dilations
        )
        self.bottleneck = conv_norm_relu(channels * len(dilations), channels, kernel=3)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, H_1, W_1]` at the size of the first (finest) level."""
        fused = embed_levels(self.embeddings, features)  # [B, levels * channels, H_1, W_1]
        context = torch.cat([branch(fused) for branch in self.branches], dim=1)
        logits: Tensor = self.classifier(self.dropout(self.bottleneck(context)))
        return logits


class ScaleAttention(nn.Module):
    """The DAFormer head without its ASPP: each level linearly to `channels`, resized to the first level, fused 1x1.

    It accepts any number of levels, so it works beside every decoder: four of a MiT, two of DeepLabV3+, the deepest one
    of DeepLabV2.
    """

    def __init__(self, feature_channels: Sequence[int], channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in feature_channels)
        self.fuse = conv_norm_relu(channels * len(feature_channels), channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the share of the detail, `[B, K, H_1, W_1]` in (0, 1), from the maps of the half-size image."""
        fused = self.fuse(embed_levels(self.embeddings, features))  # [B, channels, H_1, W_1]
        logits: Tensor = self.classifier(self.dropout(fused))
        return logits.sigmoid()
