"""The convolution blocks that decoders are made of."""

from torch import nn


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU: `[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def separable_conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """Depthwise 3x3, then pointwise 1x1, each with BatchNorm and ReLU: `[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
    return nn.Sequential(
        conv_norm_relu(inputs, inputs, kernel=3, dilation=dilation, groups=inputs),
        conv_norm_relu(inputs, outputs),
    )
