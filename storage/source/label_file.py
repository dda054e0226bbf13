"""Read label files: exact values, never scaled, converted or rounded, then their classes."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from storage.errors import RefusedImage
from storage.media.essentials import essentials
from storage.media.images import DAMAGE, check_sides, read_file
from storage.source.label_map import LabelMap

FORMATS = ("BMP", "GIF", "PNG", "PPM", "TIFF")
"""Pillow formats of labels: lossless ones."""
EXACT = frozenset({"1", "1;I", "1;R", "1;IR", "L", "L;R", "P", "P;1", "P;2", "P;2L", "P;4", "P;4L", "P;R"})
"""Raw modes of one sample per pixel whose values Pillow gives as they stand in the file."""
PACKED_GREY = {"L;2": 85, "L;4": 17}
"""Raw modes whose small grey values Pillow multiplies up to 0-255, and by how much."""
WIDE = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "I;32", "I;32B", "I;32S", "I;32BS", "I;16S", "I;16BS"})
"""Raw modes of one wide sample per pixel."""
COLORS = frozenset({"RGB", "RGB;R", "RGBA", "RGBX", "BGR", "BGRX", "BGRA"})
"""Raw modes of 8-bit colour."""
LOSSY = ("jpeg", "tiff_jpeg", "webp", "jpeg2000")
"""Compressions of TIFF that change values."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label file that was read."""

    classes: NDArray[np.uint8]
    """Class indices or `ignore_index`, [h, w]."""
    values: dict[int, int]
    """Label value -> its pixels."""
    palette: dict[int, tuple[int, ...]]
    """Colours of the palette (RGB) by label value; empty without a palette."""


class UnknownValue(RefusedImage):
    """A label holds values that mean nothing; `values` has all of the file, with their pixels."""

    def __init__(self, message: str, values: dict[int, int]) -> None:
        super().__init__("bad_label", message)
        self.values = values


def read_label(path: Path, label_map: LabelMap, *, max_bytes: int, max_pixels: int) -> Label:
    """Read a label file as `label_map` says, of up to `max_bytes` and width x height up to `max_pixels`.

    Raises UnknownValue for a value without a meaning, naming its place and the nearest one that has a meaning, and
    RefusedImage for every other reason, mostly `bad_label`; FileNotFoundError passes.
    """
    values, palette = _read(path, read_file(path, max_bytes), label_map, max_pixels)
    classes, unknown, pixels = label_map.apply(values)
    if unknown.any():
        row, column = np.unravel_index(int(unknown.argmax()), unknown.shape)
        value = int(values[row, column])
        raise UnknownValue(
            f"{path}: label value {label_map.text(value)} at row {row}, column {column} is no class; "
            f"the nearest that means something is {label_map.nearest(value)}",
            pixels,
        )
    return Label(classes, pixels, {value: color for value, color in palette.items() if value in pixels})


def _read(
    path: Path, data: bytes, label_map: LabelMap, max_pixels: int
) -> tuple[NDArray[np.int64], dict[int, tuple[int, ...]]]:
    """Return label values [h, w] and the palette."""
    try:
        with Image.open(io.BytesIO(essentials(data) or data), formats=FORMATS) as image:
            check_sides(str(path), image.width, image.height, max_pixels)
            return _values(path, image, label_map)
    except RefusedImage:
        raise
    except UnidentifiedImageError as error:
        lossy = "; JPEG and others with lossy compression change label values"
        wanted = f"not an image in a format of labels ({', '.join(FORMATS)}{lossy})"
        raise RefusedImage("bad_label", f"{path}: {wanted}") from error
    except DAMAGE as error:
        raise RefusedImage("bad_label", f"{path}: the label is damaged or cut off: {error}") from error


def _values(
    path: Path, image: ImageFile.ImageFile, label_map: LabelMap
) -> tuple[NDArray[np.int64], dict[int, tuple[int, ...]]]:
    raw, problem = _raw_mode(image), ""
    if getattr(image, "n_frames", 1) > 1:
        problem = "has several pages"
    elif image.info.get("compression") in LOSSY:
        problem = "has lossy compression, which changes label values"
    elif label_map.format != "rgb" and (raw in COLORS or image.mode in ("RGB", "RGBA")):
        problem = f"is a {image.mode} image; source.label_format: rgb reads colours"
    elif not (raw in EXACT or raw in PACKED_GREY or (raw in COLORS if label_map.format == "rgb" else raw in WIDE)):
        problem = f"is a {image.mode} image ({raw}), whose values are not exact; save it as a plain 8-bit PNG"
    elif raw == "L" and _is_signed(image):
        problem = "has signed 8-bit values, of which -1 would read as 255; save it unsigned"
    elif label_map.format == "palette" and image.mode != "P":
        problem = "has no palette; source.label_format: index reads grey labels"
    if problem:
        raise RefusedImage("bad_label", f"{path}: {problem}")
    image.load()
    if label_map.format == "rgb":
        return _colors(path, image), {}
    values = np.asarray(image).astype(np.int64) // PACKED_GREY.get(raw, 1)
    palette = _palette(image) if image.mode == "P" else {}
    if image.format == "GIF" and palette:
        greys = np.array([color[0] if len(set(color)) == 1 else -1 for color in palette.values()], np.int64)
        if (greys[values] >= 0).all():  # a GIF holds grey as a palette in any order
            return greys[values], {}
    return values, palette


def _is_signed(image: ImageFile.ImageFile) -> bool:
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    return 2 in image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, ())


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """Return Pillow's name of the samples as the file holds them."""
    tile = image.tile[0]
    arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if tile.codec_name == "gif":
        return image.mode
    if tile.codec_name.startswith("ppm") and isinstance(arguments[-1], int) and arguments[-1] != 255:
        return f"grey of 0 to {arguments[-1]}"  # Pillow scales it to 0-255
    return str(arguments[0])


def _palette(image: Image.Image) -> dict[int, tuple[int, ...]]:
    flat = image.getpalette("RGB") or []
    return {place // 3: tuple(flat[place : place + 3]) for place in range(0, len(flat), 3)}


def _colors(path: Path, image: Image.Image) -> NDArray[np.int64]:
    """Return the colours of an 8-bit image as numbers."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        raise RefusedImage("bad_label", f"{path}: has transparent pixels; a label of colours is opaque RGB")
    rgb = np.asarray(image.convert("RGB")).astype(np.int64)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
