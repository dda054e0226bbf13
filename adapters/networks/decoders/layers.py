"""Convolution blocks of the decoders."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    """Build a convolution that keeps the size, BatchNorm, ReLU: `[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Build two 3x3 convolutions with BatchNorm and ReLU: `[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
    return nn.Sequential(conv_norm_relu(inputs, outputs, 3), conv_norm_relu(outputs, outputs, 3))


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


WIDE = 8
"""Padding above which oneDNN's forward pass leaves its fast path (pixels)."""


class DepthwiseConv(nn.Conv2d):
    """A 3x3 convolution of each channel by itself: `[B, C, H, W]` -> `[B, C, H, W]`; same weights, same answer.

    oneDNN (torch 2.13) has no fast gradient of a dilated depthwise convolution in channels-last memory, and no fast
    forward pass when the padding is wide. On a CPU half of a DAFormer step was spent there
    (docs/explanation/decisions/0010). So on a CPU the maps are first sorted by phase: positions `dilation` apart become
    neighbours in a small map of their own, on which the same weights act undilated. On other devices, and undilated, it
    is a plain convolution.
    """

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)
        self.reach = dilation
        """Distance between neighbouring taps (pixels)."""

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve `maps`; their sides stay the same."""
        if self.reach == 1 or maps.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(maps)
        if torch.is_grad_enabled():
            return self._by_phase(maps)
        if self.reach <= WIDE:
            return super().forward(maps)
        padded = F.pad(maps, (self.reach,) * 4)
        return F.conv2d(padded, self.weight, self.bias, dilation=self.reach, groups=self.in_channels)

    def _by_phase(self, maps: Tensor) -> Tensor:
        batch, channels, height, width = maps.shape
        reach = self.reach
        rows, columns = -(-height // reach), -(-width // reach)  # of a phase's map
        pixels = maps.permute(0, 2, 3, 1)  # [B, H, W, C]
        pixels = F.pad(pixels, (0, 0, 0, columns * reach - width, 0, rows * reach - height))
        phases = pixels.reshape(batch, rows, reach, columns, reach, channels).permute(0, 2, 4, 1, 3, 5)
        phases = phases.reshape(-1, rows, columns, channels)  # [B * reach * reach, rows, columns, C]
        done = F.conv2d(phases.permute(0, 3, 1, 2), self.weight, self.bias, padding=1, groups=channels)
        done = done.permute(0, 2, 3, 1).reshape(batch, reach, reach, rows, columns, channels)
        done = done.permute(0, 3, 1, 4, 2, 5).reshape(batch, rows * reach, columns * reach, channels)
        cropped = done[:, :height, :width].permute(0, 3, 1, 2)  # [B, C, H, W]
        return cropped.contiguous(memory_format=torch.channels_last)
