"""What the first bytes of an image say, and the pixels of every format but TIFF and JPEG 2000 through Pillow."""

import struct
from importlib import util

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile

from storage.errors import RefusedImage
from storage.media.bmp import with_plain_indices
from storage.media.color_profiles import profile_of
from storage.media.essentials import check_png_pixels
from storage.media.jpeg import check_scans
from storage.media.samples import Alpha, ColorModel, Layout, check_layout, to_rgb

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of HEIF files (ISO/IEC 23008-12). AVIF files, which Pillow reads, may have the last two as well."""
AVIF_BRANDS = (b"avif", b"avis")
"""Brands of AVIF files: a still picture, and a sequence."""
CAMERA_RAWS = (
    b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR",
)  # fmt: skip
"""First bytes of raw files of cameras that are no TIFF: Panasonic, Olympus, Fujifilm, Sigma, Minolta, early Canon."""
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "I", "I;16", "I;16B", "I;16L"})
"""Modes of Pillow whose brightness is known; "I" has the range of 16 bits in the formats that are read."""
COLOR_MODELS: dict[str, ColorModel] = {"L": "grey", "LA": "grey", "CMYK": "cmyk"}
"""Modes of Pillow -> colour model, where it is not RGB."""
PNG_MODES_WITH_KEY = ("1", "L", "I;16", "RGB", "P")
"""Modes of PNGs that may have a list of transparent colours; Pillow compares them after it has scaled the pixels."""


def check_camera_raw(name: str, data: bytes) -> None:
    """Raise RefusedImage("camera_raw") for the raw file of a camera; those that are TIFF files are found there."""
    if data.startswith(CAMERA_RAWS) or data[4:12] == b"ftypcrx " or (data[:2] == b"II" and data[8:11] == b"CR\2"):
        raise RefusedImage("camera_raw", f"{name}: a camera's raw file; develop it, or let the camera save JPEG")


def brands(data: bytes) -> list[bytes]:
    """Return the major brand and the compatible brands of a file of the MP4 family; empty for others."""
    if data[4:8] != b"ftyp":
        return []
    [size] = struct.unpack(">I", data[:4])
    return [data[8:12], *(data[at : at + 4] for at in range(16, min(size, len(data), 1024), 4))]


def is_avif(data: bytes) -> bool:
    """Return whether a file is an AVIF image, whatever its major brand is."""
    return any(brand in AVIF_BRANDS for brand in brands(data))


def is_heif(data: bytes) -> bool:
    """Return whether the first bytes are those of a HEIF image that is not AVIF."""
    return data[8:12] in HEIF_BRANDS and bool(brands(data)) and not is_avif(data)


def with_avif_brand(data: bytes) -> bytes:
    """Return an AVIF file with AVIF as its major brand, which Pillow asks for."""
    known = [brand for brand in brands(data) if brand in AVIF_BRANDS]
    return data if known[0] == data[8:12] else data[:8] + min(known) + data[12:]


def learn_heif(name: str) -> None:
    """Register HEIF with Pillow. Raises RefusedImage("needs_extra") when the extra `heif` is not installed."""
    if "HEIF" in Image.OPEN:
        return
    if util.find_spec("pillow_heif") is None:
        raise RefusedImage("needs_extra", f"{name}: a HEIF image; install the extra that reads it: mfmd[heif]")
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


def load_pixels(name: str, image: ImageFile.ImageFile, data: bytes) -> NDArray[np.uint8]:
    """Decode `image`, which was opened on `data`, to [h, w, 3] sRGB over black; 16-bit values by their full range.

    Raises RefusedImage (not_an_image, unsupported_colors) for pixels without an agreed brightness, and what Pillow
    raises on damage.
    """
    if image.mode not in MODES:
        raise RefusedImage("not_an_image", f"{name}: pixels of type {image.mode} have no agreed brightness; use 8-bit")
    if image.format == "PNG":
        check_png_pixels(data)
    profile = profile_of(name, image, data)
    image = with_plain_indices(image, data)
    with_key = "transparency" in image.info and image.mode in PNG_MODES_WITH_KEY
    if image.format == "PNG" and (with_key or (profile and data[24] == 16)):
        return _png_of_libpng(name, data, profile)
    frame = image.tile[0].extents if isinstance(image, GifImageFile) and image.tile else None
    image.load()
    if image.format in ("JPEG", "MPO"):
        check_scans(image, data)
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535).astype(np.uint16)
        return to_rgb(grey[..., None], Layout("grey", 16, 1, profile=profile))
    unused = image.format == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    alpha = not unused and ("transparency" in image.info or image.mode in ("RGBA", "LA", "PA"))  # as in browsers
    mode = {"1": "L", "L": "L", "LA": "LA", "CMYK": "CMYK"}.get(image.mode, "RGB")
    mode = "RGBA" if alpha and mode != "LA" else mode
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    values = values.reshape(*values.shape[:2], -1)
    samples, model = values.shape[2], COLOR_MODELS.get(mode, "rgb")
    layout = Layout(model, 8, samples, (samples - 1, "straight") if alpha else None, profile=profile)
    return _within(to_rgb(values, layout), frame)


def _within(pixels: NDArray[np.uint8], frame: tuple[int, int, int, int] | None) -> NDArray[np.uint8]:
    """Return `pixels` black outside of `frame` (left, upper, right, lower), where a GIF is transparent in viewers."""
    if frame is None or frame == (0, 0, pixels.shape[1], pixels.shape[0]):
        return pixels
    left, upper, right, lower = frame
    framed = np.zeros_like(pixels)
    framed[upper:lower, left:right] = pixels[upper:lower, left:right]
    return framed


def _png_of_libpng(name: str, data: bytes, profile: bytes | None) -> NDArray[np.uint8]:
    """Decode with libpng, which keeps 16 bits, compares the transparent colour exactly and gives it as alpha."""
    values = imagecodecs.png_decode(data)
    values = values.reshape(*values.shape[:2], -1)
    samples, bits = values.shape[2], 8 * values.dtype.itemsize
    alpha: tuple[int, Alpha] | None = None if samples % 2 else (samples - 1, "straight")
    layout = Layout("grey" if samples < 3 else "rgb", bits, samples, alpha, profile=profile)
    check_layout(name, layout)
    return to_rgb(values, layout)
