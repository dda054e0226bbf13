"""What a family of Hugging Face models is to mfmd: how to make the model, and where to cut it in two."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Parts(NamedTuple):
    """A model cut in two; both halves share its modules."""

    encoder: "Encoder"
    """Images to maps."""
    decoder: nn.Module
    """Maps to logits."""
    channels: Sequence[int]
    """Channels of each map, deepest last."""
    unused: Sequence[nn.Module | nn.Parameter | None] = ()
    """Weights of the model that the logits do not depend on: kept for the way back, never trained."""


class Family(NamedTuple):
    """Models of one `model_type`."""

    model_type: str
    """As config.json has it."""
    model_of: Callable[[dict[str, Any]], tuple[Any, Any]]
    """Model class and config object of a config.json; imports only the submodule needed (transformers is slow)."""
    split: Callable[[Any], Parts]
    """Cuts a model."""


class Encoder(nn.Module, ABC):
    """First half of a model: takes images as mfmd normalises them, gives maps."""

    def __init__(self, multiple: int = 1) -> None:
        """Images whose sides are no multiple of `multiple` (pixels) are scaled up to the next one."""
        super().__init__()
        self.pixels: nn.Module = nn.Identity()
        """From mfmd's pixel scaling to the model's own (`adapters.networks.huggingface.pixels`)."""
        self.multiple = multiple

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        return self.maps(to_multiple(self.pixels(images), self.multiple))

    @abstractmethod
    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of images `[B, 3, H, W]` whose pixels and sides are as the model wants them."""


class Head(nn.Module):
    """A decode head of transformers that takes all maps and gives logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Logits `[B, K, H_1, W_1]` of the maps."""
        logits: Tensor = self.head(list(features))
        return logits


def to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Images `[B, 3, H, W]` scaled up bilinearly so that both sides are multiples of `multiple` (pixels).

    Scaling, not padding: a map's cells then still divide the whole image evenly, so whoever resizes logits or masks to
    the image needs to know nothing of it. The distortion stays below one patch.
    """
    height, width = images.shape[-2:]
    size = tuple((side + multiple - 1) // multiple * multiple for side in (height, width))
    if not torch.compiler.is_compiling() and size == (height, width):  # an export must not depend on its example
        return images
    return F.interpolate(images, size=list(size), mode="bilinear", align_corners=False)


def token_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Patch tokens `[B, 1 + rows * columns, C]`, class token first, as a map `[B, C, rows, columns]`."""
    return torch.unflatten(tokens[:, 1:].transpose(1, 2), 2, (rows, columns))
