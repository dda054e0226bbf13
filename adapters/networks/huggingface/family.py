"""A Hugging Face model cut in two: what both halves are, whatever the family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.network import SegmentationNetwork


class Parts(NamedTuple):
    """A model cut in two; both halves share its modules."""

    encoder: "Encoder"
    """Images to maps."""
    decoder: nn.Module
    """Maps to logits."""
    channels: Sequence[int]
    """Channels of each map, deepest last."""
    unused: Sequence[nn.Module | nn.Parameter | None] = ()
    """Weights that the logits do not depend on: kept for the export, never trained."""
    network: type[SegmentationNetwork] = SegmentationNetwork
    """What runs both halves."""


class Encoder(nn.Module, ABC):
    """First half of a model: accepts images normalised by mfmd, returns maps."""

    model: Any

    def __init__(self, multiple: int = 1, **parts: nn.Module) -> None:
        """Scale images whose sides are no multiple of `multiple` (pixels) up to the next one; keep `parts` by name."""
        super().__init__()
        self.pixels: nn.Module = nn.Identity()
        """From mfmd's pixel scaling to the model's own (`adapters.networks.huggingface.pixels`)."""
        self.multiple = multiple
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        return tuple(self._maps(_to_multiple(self.pixels(images), self.multiple)))

    @abstractmethod
    def _maps(self, images: Tensor) -> Sequence[Tensor]:
        """Return maps of images `[B, 3, H, W]` whose pixels and sides are what the model expects."""


class Head(nn.Module):
    """A decode head of transformers, which takes all maps or the last one and returns logits."""

    def __init__(self, head: nn.Module, *, last: bool = False) -> None:
        super().__init__()
        self.head = head
        self.last = last

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, h, w]` of the maps."""
        logits: Tensor = self.head(features[-1] if self.last else list(features))
        return logits


def _to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Scale images `[B, 3, H, W]` up bilinearly so that both sides are multiples of `multiple` (pixels).

    Images are scaled, not padded. So the cells of a map still divide the whole image evenly, and code that resizes
    logits or masks to the image needs no extra information. The distortion stays below one patch.
    """
    height, width = images.shape[-2:]
    size = tuple((side + multiple - 1) // multiple * multiple for side in (height, width))
    if not torch.compiler.is_compiling() and size == (height, width):  # an export must not depend on its example
        return images
    return F.interpolate(images, size=list(size), mode="bilinear", align_corners=False)
