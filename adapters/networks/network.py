"""The contract of every network in mfmd: `encode` to a tuple of feature maps, `decode` them to logits.

Masked Feature Modeling needs only this split (arXiv 2509.13801), so any encoder-decoder fits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.frozen import StoredBase
from adapters.networks.step_rng import StepRng


class Window(NamedTuple):
    """A rectangle of an image (pixels)."""

    top: int
    left: int
    height: int
    width: int

    def of(self, maps: Tensor) -> Tensor:
        """Return the rectangle's part of `maps` [..., H, W]."""
        return maps[..., self.top : self.top + self.height, self.left : self.left + self.width]


class View(NamedTuple):
    """Input of the encoder in one training pass."""

    images: Tensor
    """[B, 3, h, w], normalised."""
    window: Window | None
    """Position in the images; None means everywhere."""


class Output(NamedTuple):
    """One prediction of a training pass, to be compared with the labels."""

    logits: Tensor
    """[B, K, h, w]."""
    window: Window | None
    """Part of the labels that it predicts; None means all."""
    share: float
    """Weight in the loss; the shares of a pass sum to 1."""


class SegmentationNetwork(nn.Module):
    """An encoder, a decoder and the class count. A checkpoint holds its state dict and nothing else.

    `encoder(images)` returns a tuple of maps `[B, C_l, H_l, W_l]`, deepest last, only those that the decoder reads.
    `decoder(features)` returns logits `[B, K, h, w]` at a resolution of its own.
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
        self.source_digest = ""
        """Of an operator's own network: the digest of its source files, if known."""
        self.base: StoredBase | None = None
        """Of a version that shares its frozen tensors with others: the file that has them; copies keep it."""

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return feature maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        return tuple(self.encoder(images))

    def decode(self, features: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits `[B, K, *size]` of feature maps, resized bilinearly.

        They are contiguous: a softmax over classes that lie side by side in memory takes six times as long on a CPU,
        and the small map is the cheap one to copy (docs/explanation/decisions/0010).
        """
        logits: Tensor = self.decoder(features).contiguous()
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def encode_all(self, images: Tensor) -> tuple[tuple[Tensor, ...], ...]:
        """Return all maps that an answer for normalised images `[B, 3, H, W]` needs; a plain network returns theirs."""
        return (self.encode(images),)

    def predict(self, features: Sequence[Sequence[Tensor]], size: tuple[int, int]) -> Tensor:
        """Return logits `[B, K, *size]` from the maps of `encode_all`, for images of `size`."""
        return self.decode(features[0], size)

    def view_size(self, crop: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of each view of a training pass, for images of `crop` (height, width)."""
        return crop

    def views(self, images: Tensor, draws: StepRng) -> tuple[View, ...]:
        """Return what the encoder sees of normalised images `[B, 3, H, W]` in a training pass; here the images."""
        return (View(images, None),)

    def outputs(
        self, features: Sequence[Sequence[Tensor]], views: Sequence[View], size: tuple[int, int]
    ) -> tuple[Output, ...]:
        """Return predictions of a training pass from the maps of each view, at `size`; here one for everything."""
        return (Output(self.decode(features[0], size), None, 1.0),)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, K, H, W]` of normalised images `[B, 3, H, W]`."""
        height, width = images.shape[-2:]
        return self.predict(self.encode_all(images), (height, width))


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_SIDE = 32
"""Smallest side of an input image (pixels): one cell of the deepest map."""


def normalise(frames: Tensor) -> Tensor:
    """Convert RGB bytes `[B, H, W, 3]` to floats `[B, 3, H, W]` with ImageNet mean and deviation, on their device.

    They are contiguous: arithmetic by channel takes six times as long on a CPU when channels lie side by side in
    memory.
    """
    mean = torch.tensor(IMAGENET_MEAN, device=frames.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=frames.device).view(3, 1, 1)
    values = frames.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return values.div_(255.0).sub_(mean).div_(std)
