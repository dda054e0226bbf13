"""Heads of VFM-UDA (Englert et al., arXiv 2406.09896) and VFM-UDA++ (arXiv 2503.10685), for foundation models.

Widths follow the encoder's, and neither has dropout: `network.channels` and `network.dropout` do not matter.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from adapters.networks.initialisation import LayerNorm2d

MOMENTUM = 0.01
"""Of the running statistics of BatchNorm; as published."""
CLASSIFIER_STD = 0.1
"""Of the classifier's first weights; as published."""


class LightHead(nn.Module):
    """VFM-UDA: a ViT's one map, twice doubled in size and halved in width, a 3x3 convolution, a classifier."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        self.upscale = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2, bias=False),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2, bias=False),
            LayerNorm2d(quarter),
            nn.Conv2d(quarter, quarter, 3, padding=1, bias=False),
            LayerNorm2d(quarter),
        )
        self.classifier = _classifier(quarter, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, 4H, 4W]` of the one map `[B, C, H, W]`."""
        logits: Tensor = self.classifier(self.upscale(features[-1]))
        return logits


class PyramidHead(nn.Module):
    """VFM-UDA++ (BasicPyramid): from the deepest level up, each doubled and added to the next finer one.

    The width halves with each step. The levels' sides must double from one to the next.
    """

    def __init__(self, feature_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        *finer, deepest = feature_channels
        widths = [deepest // 2**step for step in range(len(feature_channels))]  # C, C/2, C/4, C/8
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, wide // 2, 2, stride=2) for wide in widths[:-1])
        self.skip = nn.ModuleList(
            nn.Conv2d(level, width, 1) for level, width in zip(reversed(finer), widths[1:], strict=True)
        )
        self.smooth = nn.ModuleList(_smooth(width) for width in widths[1:])
        self.last = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.classifier = _classifier(widths[-1], num_classes)
        _initialise(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, H_1, W_1]` at the size of the first (finest) level."""
        *finer, maps = features
        for level, up, skip, smooth in zip(reversed(finer), self.up, self.skip, self.smooth, strict=True):
            maps = smooth(up(maps) + skip(level))
        logits: Tensor = self.classifier(self.last(maps))
        return logits


def _smooth(width: int) -> nn.Sequential:
    """Build a 3x3 convolution, BatchNorm and ReLU. The published bias is left out: BatchNorm takes it away again."""
    convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width, momentum=MOMENTUM), nn.ReLU(inplace=True))


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    classifier = nn.Conv2d(channels, num_classes, 1, bias=False)
    nn.init.normal_(classifier.weight, 0.0, CLASSIFIER_STD)
    return classifier


def _initialise(head: PyramidHead) -> None:
    """Set Kaiming-uniform weights and zero biases as published; not the classifier's."""
    for layer in head.modules():
        if layer is head.classifier or not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        # A transposed convolution's weights lie as [inputs, outputs, ...]: its inputs are the fan-out in torch's count.
        transposed = isinstance(layer, nn.ConvTranspose2d)
        nn.init.kaiming_uniform_(layer.weight, mode="fan_out" if transposed else "fan_in", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
