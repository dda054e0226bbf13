"""Image formats beyond Pillow's defaults: HEIF, and grey values wider than a byte."""

from importlib import util
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from storage.errors import RefusedImage

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Major brands of HEIF files (ISO/IEC 23008-12); AVIF files, which Pillow reads, have others."""
WHITE_IS_ZERO, SEPARATE_PLANES = 0, 2
"""Values of the TIFF tags PhotometricInterpretation and PlanarConfiguration (TIFF 6.0)."""


def is_heif(data: bytes) -> bool:
    """Return whether the first bytes are those of a HEIF image."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS


def learn_heif(name: str) -> None:
    """Register HEIF with Pillow. Raises RefusedImage("needs_extra") when the extra `heif` is not installed."""
    if "HEIF" in Image.OPEN:
        return
    if util.find_spec("pillow_heif") is None:
        raise RefusedImage("needs_extra", f"{name}: a HEIF image; install the extra that reads it: mfmd[heif]")
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


def check_samples(name: str, image: Image.Image) -> None:
    """Raise RefusedImage("not_an_image") for pixels without an agreed brightness; reads the header only."""
    if image.mode in ("F", "LAB", "HSV"):
        raise RefusedImage("not_an_image", f"{name}: pixels of type {image.mode} have no agreed brightness; use 8-bit")
    if image.mode == "I" and image.format == "TIFF":
        raise RefusedImage(
            "not_an_image", f"{name}: signed or 32-bit pixels have no agreed brightness; use 8 or 16 bit"
        )


def load_pixels(image: Image.Image, data: bytes) -> Image.Image:
    """Decode `image`, which was opened on `data`; 16-bit grey is scaled by its full range to 8 bit.

    16-bit colour comes from Pillow as the upper byte of each value. Raises what Pillow raises on damage.
    """
    if _is_raw_planar(image):
        return _raw_planes(image, data)
    white_is_zero = _tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
    image.load()
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = (wide // 257).astype(np.uint8)
        return Image.fromarray(255 - grey if white_is_zero else grey)  # Pillow turns 8-bit ones over, not these
    return image


def _tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if isinstance(image, TiffImagePlugin.TiffImageFile) else None


def _is_raw_planar(image: Image.Image) -> bool:
    """Return whether the file is uncompressed 16-bit planar colour, which Pillow silently reads as 8-bit values."""
    bits = _tag(image, TiffImagePlugin.BITSPERSAMPLE)
    planar = _tag(image, TiffImagePlugin.PLANAR_CONFIGURATION) == SEPARATE_PLANES
    return planar and bits is not None and set(bits) == {16} and _tag(image, TiffImagePlugin.COMPRESSION) in (None, 1)


def _raw_planes(image: Image.Image, data: bytes) -> Image.Image:
    """Return the upper bytes of planes that lie one after another in strips; a fourth plane is alpha."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    offsets = image.tag_v2[TiffImagePlugin.STRIPOFFSETS]
    counts = image.tag_v2[TiffImagePlugin.STRIPBYTECOUNTS]
    raw = b"".join(data[start : start + size] for start, size in zip(offsets, counts, strict=True))
    width, height = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    planes = len(image.getbands())
    order = ">u2" if image.tag_v2.prefix == b"MM" else "<u2"
    wide = np.frombuffer(raw, order, planes * width * height)
    upper = (wide >> 8).astype(np.uint8).reshape(planes, height, width)
    return Image.fromarray(np.ascontiguousarray(upper.transpose(1, 2, 0)))
