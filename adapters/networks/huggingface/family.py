"""A family of Hugging Face models: how to build the model, and where to cut it in two."""

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
    """Weights that the logits do not depend on: kept for the export, never trained."""


class Family(NamedTuple):
    """Models of one `model_type`."""

    model_type: str
    """`model_type` in config.json."""
    model_of: Callable[[dict[str, Any]], tuple[Any, Any]]
    """Return model class and config object of a config.json; imports only the submodule it needs.

    transformers is slow to import.
    """
    split: Callable[[Any], Parts]
    """Cut a model in two."""


class Encoder(nn.Module, ABC):
    """First half of a model: accepts images normalised by mfmd, returns maps."""

    def __init__(self, multiple: int = 1) -> None:
        """Scale images whose sides are no multiple of `multiple` (pixels) up to the next one."""
        super().__init__()
        self.pixels: nn.Module = nn.Identity()
        """From mfmd's pixel scaling to the model's own (`adapters.networks.huggingface.pixels`)."""
        self.multiple = multiple

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps `[B, C_l, H_l, W_l]` of normalised images `[B, 3, H, W]`, deepest last."""
        return self.maps(to_multiple(self.pixels(images), self.multiple))

    @abstractmethod
    def maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps of images `[B, 3, H, W]` whose pixels and sides are what the model expects."""


class Head(nn.Module):
    """A decode head of transformers that takes all maps and returns logits."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits `[B, K, H_1, W_1]` of the maps."""
        logits: Tensor = self.head(list(features))
        return logits


def to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Scale images `[B, 3, H, W]` up bilinearly so that both sides are multiples of `multiple` (pixels).

    Images are scaled, not padded. So the cells of a map still divide the whole image evenly, and code that resizes
    logits or masks to the image needs no extra information. The distortion stays below one patch.
    """
    height, width = images.shape[-2:]
    size = tuple((side + multiple - 1) // multiple * multiple for side in (height, width))
    if not torch.compiler.is_compiling() and size == (height, width):  # an export must not depend on its example
        return images
    return F.interpolate(images, size=list(size), mode="bilinear", align_corners=False)


def token_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Return patch tokens `[B, 1 + rows * columns, C]`, class token first, as a map `[B, C, rows, columns]`."""
    return torch.unflatten(tokens[:, 1:].transpose(1, 2), 2, (rows, columns))
