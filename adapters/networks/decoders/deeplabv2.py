"""DeepLabV2 head in its reduced form `dlv2red` (Chen et al., arXiv 1606.00915): two dilated classifiers, summed."""

from collections.abc import Sequence

from torch import Tensor, nn

from adapters.networks.initialisation import initialise_classifier

DILATIONS = (6, 12)
"""Published, for 512 crops at output stride 8: maps of 64x64 cells."""
TINY_DILATIONS = (2, 4)
"""For crops of 128-256 pixels: maps of 16-32 cells."""
VIT_DILATIONS = (3, 6)
"""For the stride-14 map of a ViT: nearly the published reach in pixels (84 instead of 96)."""
TINY_VIT_DILATIONS = (1, 2)
"""The same for crops of 128-256 pixels: maps of 9-18 cells."""


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
