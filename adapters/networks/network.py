"""The contract of every network in mfmd: `encode` to a tuple of feature maps, `decode` them to logits.

That split is all that Masked Feature Modeling needs (arXiv 2509.13801), so any encoder-decoder fits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from adapters.draws import Draws


class Window(NamedTuple):
    """A rectangle of an image (pixels)."""

    top: int
    left: int
    height: int
    width: int

    def of(self, maps: Tensor) -> Tensor:
        """The rectangle's part of `maps` [..., H, W]."""
        return maps[..., self.top : self.top + self.height, self.left : self.left + self.width]


class View(NamedTuple):
    """What one training pass through the encoder sees of the images."""

    images: Tensor
    """[B, 3, h, w], normalised."""
    window: Window | None
    """Where in the images it lies; none: everywhere."""


class Output(NamedTuple):
    """One prediction of a training pass, to be compared with the labels."""

    logits: Tensor
    """[B, K, h, w]."""
    window: Window | None
    """The part of the labels that it predicts; none: all."""
    share: float
    """Its weight in the loss; the shares of a pass add up to 1."""


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
        """Logits `[B, K, *size]` of feature maps, resized bilinearly.

        Contiguous: a softmax over classes that lie side by side in memory takes six times as long on a CPU, and the
        small map is the cheap one to copy (docs/explanation/decisions/0010).
        """
        logits: Tensor = self.decoder(features).contiguous()
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def encode_all(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Maps of everything that an answer for normalised images `[B, 3, H, W]` needs; a plain network: of them."""
        return (self.encode(images),)

    def predict(self, features: Sequence[Sequence[Tensor]], size: tuple[int, int]) -> Tensor:
        """Logits `[B, K, *size]` from the maps of `encode_all`, for images of `size`."""
        return self.decode(features[0], size)

    def view_size(self, crop: tuple[int, int]) -> tuple[int, int]:
        """Height and width of each view of a training pass, for images of `crop` (height, width)."""
        return crop

    def views(self, images: Tensor, draws: Draws) -> tuple[View, ...]:
        """What the encoder sees of normalised images `[B, 3, H, W]` in a training pass: a plain network, the images."""
        return (View(images, None),)

    def outputs(
        self, features: Sequence[Sequence[Tensor]], views: Sequence[View], size: tuple[int, int]
    ) -> tuple[Output, ...]:
        """Predictions of a training pass from the maps of each view, at the images' `size`: here one for everything."""
        return (Output(self.decode(features[0], size), None, 1.0),)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, K, H, W]` of normalised images `[B, 3, H, W]`."""
        height, width = images.shape[-2:]
        return self.predict(self.encode_all(images), (height, width))
