"""U-Net decoder (Ronneberger et al., arXiv 1505.04597): each map, doubled in size, beside the one above it."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.decoders.layers import conv_norm_relu, double_conv


class UnetHead(nn.Module):
    """Expanding path: resize, concatenate with the finer map, two convolutions; then a 1x1 classifier at stride 1.

    Resizing is bilinear, where the paper has transposed convolutions: it fits sides that do not divide, and draws no
    checkerboard.
    """

    def __init__(self, feature_channels: Sequence[int], num_classes: int, dropout: float) -> None:
        super().__init__()
        finer = itertools.pairwise(feature_channels)
        self.blocks = nn.ModuleList(double_conv(fine + coarse, fine) for fine, coarse in finer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(feature_channels[0], num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, H_1, W_1]` at the size of the first (stride-1) map."""
        maps = features[-1]
        for skip, block in zip(reversed(features[:-1]), reversed(self.blocks), strict=True):
            size = (skip.shape[-2], skip.shape[-1])
            maps = block(torch.cat([skip, F.interpolate(maps, size, mode="bilinear", align_corners=False)], dim=1))
        logits: Tensor = self.classifier(self.dropout(maps))
        return logits


class NarrowedUnetHead(nn.Module):
    """The U-shaped head of MFM-DA (Jiang et al., arXiv 2503.00802) on levels of one width: narrowed, then a U-Net's.

    The paper has 64, 128, 256 and 512 channels. A 1x1 convolution narrows each level; ours, as the paper is silent.
    """

    def __init__(self, feature_channels: Sequence[int], width: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(len(feature_channels))]
        sizes = zip(feature_channels, widths, strict=True)
        self.narrow = nn.ModuleList(conv_norm_relu(channels, narrow) for channels, narrow in sizes)
        self.unet = UnetHead(widths, num_classes, dropout)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, H_1, W_1]` at the size of the first (finest) level."""
        logits: Tensor = self.unet([narrow(level) for narrow, level in zip(self.narrow, features, strict=True)])
        return logits
