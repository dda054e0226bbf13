"""Read label files: exact values, never scaled, converted or rounded, then their classes."""

import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from configs.buffer import LabelFormat
from storage.errors import RefusedImage
from storage.media.bmp import with_plain_indices
from storage.media.bounded import DecodeLimits, run_bounded
from storage.media.essentials import check_png_pixels, essentials
from storage.media.images import DAMAGE, ORIENTATION_TAG, UPRIGHT, check_sides, exif_of
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
MANY_16 = "RGB;16B"
"""Raw mode of three channels of 16 bits (PNG), of which Pillow gives the high byte; of those of SYNTHIA one counts."""
LOW_16 = "RGB;16L"
"""Raw mode under which Pillow gives the low byte of the same samples."""
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
    orientation: int | None
    """EXIF orientation of the file (1-8), which is applied; None when it has none."""


class UnknownValue(RefusedImage):
    """A label holds values that mean nothing; `values` has those of the file as `LabelMap.apply` counts them."""

    def __init__(self, message: str, values: dict[int, int]) -> None:
        super().__init__("bad_label", message)
        self.values = values


def read_label(path: Path, label_map: LabelMap, limits: DecodeLimits) -> Label:
    """Read a label file as `label_map` says, within `limits`, turned as its own EXIF orientation says.

    Raises UnknownValue for a value without a meaning, naming its place and the nearest one that has a meaning, and
    RefusedImage for every other reason, mostly `bad_label`; FileNotFoundError passes, and so does what `run_bounded`
    raises.
    """
    decode = partial(_decode, label_map=label_map, max_pixels=limits.max_pixels)
    classes, facts = run_bounded(decode, path, limits)
    values = {int(value): pixels for value, pixels in facts["values"].items()}
    if facts["unknown"] is not None:
        value, row, column = facts["unknown"]
        raise UnknownValue(
            f"{path}: label value {label_map.text(value)} at row {row}, column {column} is no class; "
            f"the nearest that means something is {label_map.nearest(value)}",
            values,
        )
    palette = {int(value): tuple(color) for value, color in facts["palette"].items()}
    return Label(classes, values, palette, facts["orientation"])


def _decode(data: bytes, *, label_map: LabelMap, max_pixels: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return classes [h, w]; as facts `values`, `palette`, `orientation` and `unknown`, its value and place or None."""
    try:
        plain = essentials(data) or data
        with Image.open(io.BytesIO(plain), formats=FORMATS) as image:
            check_sides("image", image.width, image.height, max_pixels)
            if image.format == "PNG":
                check_png_pixels(data)
            values, palette, orientation = _values(with_plain_indices(image, data), label_map, plain)
    except RefusedImage:
        raise
    except UnidentifiedImageError as error:
        lossy = "; JPEG and others with lossy compression change label values"
        wanted = f"not an image in a format of labels ({', '.join(FORMATS)}{lossy})"
        raise RefusedImage("bad_label", wanted) from error
    except DAMAGE as error:
        raise RefusedImage("bad_label", f"the label is damaged or cut off: {error}") from error
    classes, unknown, pixels = label_map.apply(values)
    odd = None
    if unknown.any():
        row, column = map(int, np.unravel_index(int(unknown.argmax()), unknown.shape))
        odd = (int(values[row, column]), row, column)
    held = {value: color for value, color in palette.items() if value in pixels}
    return classes, {"values": pixels, "palette": held, "orientation": orientation, "unknown": odd}


def _values(
    image: ImageFile.ImageFile, label_map: LabelMap, data: bytes
) -> tuple[NDArray[np.integer[Any]], dict[int, tuple[int, ...]], int | None]:
    """Return label values [h, w], upright; the palette; and the EXIF orientation that says how they lie in the file."""
    raw = _raw_mode(image)
    if problem := _problem_of(image, raw, label_map.format):
        raise RefusedImage("bad_label", problem)
    upright, orientation = _upright(image)
    if label_map.format == "rgb":
        return _colors(upright), {}, orientation
    if raw == MANY_16:
        return _first_channel(upright, data), {}, orientation
    values = np.asarray(upright) // PACKED_GREY.get(raw, 1)
    palette = _palette(upright) if upright.mode == "P" else {}
    if image.format == "GIF" and palette:
        greys = np.array([color[0] if len(set(color)) == 1 else -1 for color in palette.values()], np.int16)
        if (greys[values] >= 0).all():  # a GIF holds grey as a palette in any order
            return greys[values], {}, orientation
    return values, palette, orientation


def _problem_of(image: ImageFile.ImageFile, raw: str, label_format: LabelFormat) -> str:
    """Return why the values of an image are not exact or not those of the format; empty when they are."""
    if getattr(image, "is_animated", False):
        return "has several pages"
    if any(tile.codec_name == "raw" and not tile.offset for tile in image.tile):
        return "lacks a strip or tile"  # a sparse TIFF; at 0 its header would be read as values
    if image.info.get("compression") in LOSSY:
        return "has lossy compression, which changes label values"
    if raw == MANY_16 and label_format != "synthia_ids":
        return "has three channels of 16 bits; source.label_format: synthia_ids reads SYNTHIA's ids in the first"
    if label_format != "rgb" and raw != MANY_16 and (raw in COLORS or image.mode in ("RGB", "RGBA")):
        return f"is a {image.mode} image; source.label_format: rgb reads colours"
    if not (raw in EXACT or raw in PACKED_GREY or raw in _wanted_of(label_format)):
        return f"is a {image.mode} image ({raw}), whose values are not exact; save it as a plain 8-bit PNG"
    if raw == "L" and _is_signed(image):
        return "has signed 8-bit values, of which -1 would read as 255; save it unsigned"
    if label_format == "palette" and image.mode != "P":
        return "has no palette; source.label_format: index reads grey labels"
    return ""


def _wanted_of(label_format: LabelFormat) -> frozenset[str]:
    """Return the raw modes that a format reads beside those of one small sample."""
    if label_format == "rgb":
        return COLORS
    return WIDE | {MANY_16} if label_format == "synthia_ids" else WIDE


def _upright(image: ImageFile.ImageFile) -> tuple[Image.Image, int | None]:
    """Decode; return the image as its EXIF orientation turns it, and that (1-8), or None when it has none."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        orientation = image.tag_v2.get(ORIENTATION_TAG)
        image.load()  # which turns it
        return image, orientation
    orientation = exif_of(image).get(ORIENTATION_TAG)
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return (image if turn is None else image.transpose(turn)), orientation


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


def _first_channel(high: Image.Image, data: bytes) -> NDArray[np.integer[Any]]:
    """Return the first channel of a PNG of 16 bits; `high` is the upright picture of its high bytes."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        tile = image.tile[0]
        image.tile = [tile._replace(args=LOW_16)]
        low, _ = _upright(image)
        values: NDArray[np.int32] = np.asarray(high)[..., 0].astype(np.int32) * 256 + np.asarray(low)[..., 0]
        return values


def _colors(image: Image.Image) -> NDArray[np.integer[Any]]:
    """Return the colours of an 8-bit image as numbers."""
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        raise RefusedImage("bad_label", "has transparent pixels; a label of colours is opaque RGB")
    rgb = np.asarray(image.convert("RGB")).astype(np.int32)
    return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
