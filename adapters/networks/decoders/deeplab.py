"""DeepLab heads: V3+ (Chen et al. 2018), a separable ASPP refined with a stride-4 map, and V2, a sum of classifiers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.decoders.layers import conv_norm_relu, separable_conv
from adapters.networks.initialisation import initialise_classifier

DILATIONS = {32: (3, 6, 9), 16: (6, 12, 18), 8: (12, 24, 36)}
"""Of the ASPP of V3+, by output stride; published, for crops of 512."""
V2_DILATIONS = {"resnet": (6, 12), "dinov2": (3, 6), "dinov3": (3, 6)}
"""Of V2, published for output stride 8; on the map of a ViT, of stride 14 or 16, (nearly) the same reach: 84 and 96
pixels, not 96."""


def for_small_crops(dilations: Sequence[int]) -> tuple[int, ...]:
    """Return a third of published `dilations`: for crops of 128-256 pixels."""
    return tuple(dilation // 3 for dilation in dilations)


class AtrousPyramid(nn.Module):
    """ASPP: a 1x1 convolution, dilated separable convolutions and the image's mean, side by side, then fused."""

    def __init__(self, inputs: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_norm_relu(inputs, channels), *(separable_conv(inputs, channels, dilation) for dilation in dilations)]
        )
        # No BatchNorm on the pooled branch: it has one value per image and channel, too few to normalise a batch of 1.
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, channels, 1), nn.ReLU(inplace=True))
        self.project = conv_norm_relu(channels * (len(dilations) + 2), channels)

    def forward(self, deepest: Tensor) -> Tensor:
        """Return the context `[B, channels, H, W]` of the deepest map `[B, inputs, H, W]`."""
        pooled = self.pooled(deepest).expand(-1, -1, *deepest.shape[-2:])  # [B, channels, 1, 1] -> [B, channels, H, W]
        context: Tensor = self.project(torch.cat([*(branch(deepest) for branch in self.branches), pooled], dim=1))
        return context


class DeepLabV3PlusHead(nn.Module):
    """ASPP on the deepest map, resized to the stride-4 map, concatenated with it, two separable 3x3, classifier."""

    def __init__(
        self,
        feature_channels: Sequence[int],
        channels: int,
        num_classes: int,
        dropout: float,
        dilations: Sequence[int],
    ) -> None:
        super().__init__()
        fine, deepest = feature_channels
        skip = max(16, channels * 3 // 16)  # 48 of 256 in the paper
        self.context = AtrousPyramid(deepest, channels, dilations)
        self.skip = conv_norm_relu(fine, skip)
        self.refine = nn.Sequential(separable_conv(channels + skip, channels), separable_conv(channels, channels))
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, H_1, W_1]` at the size of the first (stride-4) map."""
        fine, deepest = features
        height, width = fine.shape[-2:]
        context = F.interpolate(self.context(deepest), (height, width), mode="bilinear", align_corners=False)
        refined = self.refine(torch.cat([context, self.skip(fine)], dim=1))
        logits: Tensor = self.classifier(self.dropout(refined))
        return logits


class DeepLabV2Head(nn.Module):
    """Sum of 3x3 convolutions with different dilations from the deepest map straight to logits; no norm, no dropout."""

    def __init__(self, channels: int, num_classes: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(
            nn.Conv2d(channels, num_classes, 3, padding=dilation, dilation=dilation) for dilation in dilations
        )
        for classifier in self.classifiers:
            assert isinstance(classifier, nn.Conv2d)
            initialise_classifier(classifier)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, H, W]` at the size of the deepest map."""
        deepest = features[-1]
        logits: Tensor = self.classifiers[0](deepest)
        for classifier in self.classifiers[1:]:
            logits = logits + classifier(deepest)
        return logits
