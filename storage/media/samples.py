"""The table of samples that are read, and their way to 8-bit RGB. Readers describe what a file holds; this decides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.errors import RefusedImage
from storage.media.color_profiles import to_srgb

ColorModel = Literal["grey", "white_is_zero", "rgb", "palette", "cmyk", "ycbcr"]
Alpha = Literal["straight", "premultiplied"]
SUPPORTED: dict[ColorModel, tuple[int, Sequence[int]]] = {
    "grey": (1, range(1, 17)),
    "white_is_zero": (1, range(1, 17)),
    "rgb": (3, range(1, 17)),
    "palette": (1, range(1, 17)),
    "cmyk": (4, (8, 16)),
    "ycbcr": (3, (8,)),
}
"""Colour model -> samples of a pixel, and the bits that each may have, all of them unsigned integers."""
MOST_SAMPLES = 8
"""Samples of a pixel that are decoded at most: those behind the colour cost memory too."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What the samples of a file mean, by its header."""

    model: ColorModel
    bits: int
    """Of each sample."""
    samples: int
    """Of each pixel, with alpha and those whose meaning is unknown."""
    alpha: tuple[int, Alpha] | None = None
    """Index of the sample that is alpha, and whether the colours were multiplied by it."""
    palette: NDArray[np.uint8] | None = None
    """[n, 3] RGB."""
    profile: bytes | None = None
    """ICC profile of the colours."""


def check_layout(name: str, layout: Layout) -> None:
    """Raise RefusedImage (unsupported_bits, unsupported_samples) for a layout that the table does not have."""
    colors, bits = SUPPORTED[layout.model]
    if layout.bits not in bits:
        text = f"{name}: {layout.bits} bits for each {layout.model} sample; save it with 8 or 16"
        raise RefusedImage("unsupported_bits", text)
    alone = layout.model in ("grey", "white_is_zero") and layout.samples > 2
    misplaced = layout.alpha is not None and not colors <= layout.alpha[0] < layout.samples
    if not colors <= layout.samples <= MOST_SAMPLES or alone or misplaced:
        text = f"{name}: {layout.samples} samples a pixel for the colour model {layout.model}; save it as RGB"
        raise RefusedImage("unsupported_samples", text)


def to_rgb(values: NDArray[np.uint8] | NDArray[np.uint16], layout: Layout) -> NDArray[np.uint8]:
    """Return samples [h, w, n] of a checked layout as [h, w, 3] sRGB over black; samples of no known meaning are left.

    Raises ValueError for an index beyond the palette.
    """
    most = (1 << layout.bits) - 1
    if layout.profile is not None and layout.alpha is not None and layout.alpha[1] == "premultiplied":
        values = _divided(values, layout.alpha[0], most)  # a profile is about colours that alpha has not darkened
        layout = replace(layout, alpha=(layout.alpha[0], "straight"))
    colors = values[..., : SUPPORTED[layout.model][0]]
    if layout.palette is not None:
        if colors.max(initial=0) >= len(layout.palette):
            raise ValueError("an index beyond the palette")
        colors = layout.palette[colors[..., 0]]
    elif layout.profile is not None and most > 255:
        colors = (colors.astype(np.uint32) * 65535 // most).astype(np.uint16)  # dark linear values need all their bits
    else:
        colors = _to_8_bit(colors, most)
    if layout.model == "white_is_zero":
        colors = np.iinfo(colors.dtype).max - colors
    elif layout.model == "ycbcr":
        size = (colors.shape[1], colors.shape[0])
        colors = np.asarray(Image.frombytes("YCbCr", size, np.ascontiguousarray(colors).tobytes()).convert("RGB"))
    rgb = to_srgb(colors, layout.profile)
    if rgb is None:
        rgb = _to_8_bit(colors, np.iinfo(colors.dtype).max)
        rgb = _product(255 - rgb[..., :3], 255 - rgb[..., 3:]) if layout.model == "cmyk" else rgb
    if layout.alpha is not None and layout.alpha[1] == "straight":
        alpha = _to_8_bit(values[..., layout.alpha[0], None], most)
        if alpha.min(initial=255) < 255:
            rgb = _product(rgb, alpha)
    return np.array(np.broadcast_to(rgb, (*rgb.shape[:2], 3)))


def _to_8_bit(values: NDArray[np.uint8] | NDArray[np.uint16], most: int) -> NDArray[np.uint8]:
    """Scale from 0-`most` to 0-255, rounded down."""
    if most == 255:
        return values.astype(np.uint8, copy=False)
    if most == 65535:
        return (values // 257).astype(np.uint8)
    wide = np.multiply(values, 255, dtype=np.uint16 if most < 255 else np.uint32)
    return (wide // most).astype(np.uint8)


def _product(colors: NDArray[np.uint8], shares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return ((colors.astype(np.uint16) * shares + 127) // 255).astype(np.uint8)


def _divided(
    values: NDArray[np.uint8] | NDArray[np.uint16], alpha: int, most: int
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return premultiplied samples as straight ones."""
    straight = (values.astype(np.int64) * most // np.maximum(values[..., alpha, None], 1)).clip(0, most)
    straight[..., alpha] = values[..., alpha]
    return straight.astype(np.uint8) if most < 256 else straight.astype(np.uint16)
