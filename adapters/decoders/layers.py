"""The convolution blocks that decoders are made of."""

from torch import nn

from adapters.decoders.depthwise import DepthwiseConv


def conv_norm_relu(inputs: int, outputs: int, kernel: int = 1) -> nn.Sequential:
    """Convolution that keeps the size, BatchNorm, ReLU: `[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def separable_conv(inputs: int, outputs: int, dilation: int = 1) -> nn.Sequential:
    """Depthwise 3x3, then pointwise 1x1, each with BatchNorm and ReLU: `[B, inputs, H, W]` -> `[B, outputs, H, W]`."""
    return nn.Sequential(
        nn.Sequential(DepthwiseConv(inputs, dilation), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)),
        conv_norm_relu(inputs, outputs),
    )
