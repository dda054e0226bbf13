"""Attention head that decides, per class and place, how far to trust detail or context (HRDA, arXiv 2204.13132)."""

from collections.abc import Sequence

from torch import Tensor, nn

from adapters.networks.decoders.layers import conv_norm_relu, embed_levels


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
