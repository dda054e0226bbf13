"""The contract of every network in mfmd: `encode` to a tuple of feature maps, `decode` them to logits.

That split is all that Masked Feature Modeling needs (papers.md 1.1), so any encoder-decoder fits.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class SegmentationNetwork(nn.Module):
    """An encoder, a decoder and the class count. Its state dict is what a checkpoint holds, and nothing else.

    `encoder(images)` gives a tuple of maps `[B, C_l, H_l, W_l]`, deepest last, only those that the decoder reads;
    `decoder(features)` gives logits `[B, K, h, w]` at a resolution of its own.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, *, num_classes: int, feature_channels: Sequence[int]
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.num_classes = num_classes
        self.feature_channels = tuple(feature_channels)
        """Channels of each map of `encode`, deepest last."""

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        return tuple(self.encoder(images))

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Logits `[B, K, *size]` of feature maps, resized bilinearly."""
        logits: Tensor = self.decoder(features)
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K, H, W]` of normalised images `[B, 3, H, W]`."""
        height, width = images.shape[-2:]
        return self.decode(self.encode(images), (height, width))
