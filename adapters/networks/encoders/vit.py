"""Plain vision transformers of transformers, block by block: tokens of an image, as one map or as a pyramid from it.

Images of any size work. They are resized bilinearly so that patches divide them evenly. Because images are resized and
not padded, each map still divides the whole image evenly. So logits and masks return to image size as with any other
encoder.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.networks.encoders.layered import LayeredEncoder
from adapters.networks.initialisation import LayerNorm2d


class Density(NamedTuple):
    """How many tokens lie along a side of an image: `tokens` for every `pixels` of it."""

    tokens: int
    pixels: int

    def along(self, side: int) -> int:
        """Return the tokens along `side` pixels, rounded up."""
        # Without negative numbers, whose quotients ONNX rounds in the other direction.
        return (side * self.tokens + self.pixels - 1) // self.pixels

    def nearest(self, side: int) -> int:
        """Return the tokens along `side` pixels, rounded to the nearest number."""
        return (2 * side * self.tokens + self.pixels) // (2 * self.pixels)


class Tokens(NamedTuple):
    """An image's tokens before the first block."""

    hidden: Tensor
    """[B, prefix + rows * columns, C]; class token and registers first."""
    options: dict[str, Any]
    """What each block needs beside them."""


class PlainVit(LayeredEncoder):
    """A plain ViT. `forward` gives its last block's tokens, normalised, as one map, or the levels of `pyramid`."""

    PATCH: ClassVar[int]
    """Side of a patch (pixels that the transformer sees)."""
    DENSE: ClassVar[Density]
    """Tokens of the light head and of the ViT-Adapter."""
    hide: Callable[[Tensor], Tensor] | None = None
    """Replaces some of the patches [B, N, C] before their position code, in passes inside `hiding`."""

    def __init__(self, model: Any, density: Density, *, pyramid: bool) -> None:
        super().__init__()
        self.model = model
        self.density = density
        self.width: int = model.config.hidden_size
        self.pyramid = FeaturePyramid(self.width) if pyramid else None
        self.feature_channels: tuple[int, ...] = self.pyramid.channels if self.pyramid else (self.width,)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return maps of normalised images `[B, 3, H, W]`, finest first: one of `density`, or the pyramid's four."""
        rows, columns = self.density.along(images.shape[-2]), self.density.along(images.shape[-1])
        hidden, options = self.begin(images, rows, columns)
        for block in self.blocks():
            hidden = block(hidden, **options)
        tokens = as_map(self.last_norm()(hidden)[:, self.prefix() :], rows, columns)
        if self.pyramid is None:
            return (tokens,)
        levels: tuple[Tensor, ...] = self.pyramid(tokens)
        return levels

    def begin(self, images: Tensor, rows: int, columns: int) -> Tokens:
        """Return the tokens of normalised `images`, resized to `rows` x `columns` patches."""
        return self.embed(resized(images, rows * self.PATCH, columns * self.PATCH), rows, columns)

    def embed(self, images: Tensor, rows: int, columns: int) -> Tokens:
        """Return the tokens of images of exactly `rows` x `columns` patches."""
        raise AssertionError("each family embeds in its own way")

    @contextmanager
    def hiding(self, hide: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let passes inside the context see the patches [B, N, C] that `hide` returns for theirs."""
        self.hide = hide
        try:
            yield
        finally:
            self.hide = None

    def prefix(self) -> int:
        """Return how many tokens come before the patches: the class token and the registers."""
        return 1

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer's blocks, first one first."""
        return list(self.model.encoder.layer)

    def last_norm(self) -> nn.Module:
        """Return the norm behind the last block."""
        norm: nn.Module = self.model.layernorm
        return norm

    def layers(self) -> Sequence[nn.Module]:
        """Return the embeddings and the blocks."""
        return [self.model.embeddings, *self.blocks()]


def as_map(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Return tokens `[B, rows * columns, C]` as a map `[B, C, rows, columns]`."""
    return torch.unflatten(patches.transpose(1, 2), 2, (rows, columns))


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Return `images` [B, C, H, W] at `height` x `width`, bilinearly."""
    if torch.compiler.is_compiling() or images.shape[-2:] != (height, width):  # an export must not depend on one size
        return F.interpolate(images, size=(height, width), mode="bilinear", align_corners=False)
    return images


class FeaturePyramid(nn.Module):
    """Levels at 4, 2, 1 and 1/2 times the map's resolution, each from the same last map.

    Transposed convolutions scale up and halve the channels each time. Max pooling scales down. A LayerNorm ends each
    level.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half, quarter = width // 2, width // 4
        self.channels = (quarter, half, width, width)
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(width, half, 2, stride=2)
        self.down2 = nn.MaxPool2d(2, ceil_mode=True)
        self.norms = nn.ModuleList(LayerNorm2d(channels) for channels in self.channels)

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return four maps of `tokens` `[B, C, H, W]`.

        They are `[B, C/4, 4H, 4W]`, `[B, C/2, 2H, 2W]`, `[B, C, H, W]` and `[B, C, H/2, W/2]`, the last one rounded up.
        """
        levels = (self.up4(tokens), self.up2(tokens), tokens, self.down2(tokens))
        return tuple(norm(level) for norm, level in zip(self.norms, levels, strict=True))
