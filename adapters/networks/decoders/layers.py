"""Convolution blocks of the decoders."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.decoders.depthwise import DepthwiseConv
from adapters.networks.decoders.winograd import WinogradConv


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    """Build a convolution that keeps the size, BatchNorm, ReLU: `[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
    if kernel == 3:
        convolution: nn.Conv2d = WinogradConv(inputs, outputs)
    else:
        convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def separable_conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """Build depthwise 3x3, pointwise 1x1, each with BatchNorm and ReLU: `[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
    return nn.Sequential(
        nn.Sequential(DepthwiseConv(inputs, dilation), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)),
        conv_norm_relu(inputs, outputs),
    )


def embed_levels(embeddings: Iterable[nn.Module], features: Sequence[Tensor]) -> Tensor:
    """Embed each level `[B, C_l, H_l, W_l]`, resize to the first, concatenate: `[B, sum of widths, H_1, W_1]`."""
    height, width = features[0].shape[-2:]
    embedded = [embed(level) for embed, level in zip(embeddings, features, strict=True)]
    resized = [F.interpolate(level, (height, width), mode="bilinear", align_corners=False) for level in embedded]
    return torch.cat(resized, dim=1)
