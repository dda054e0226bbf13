"""TIFF files: the page that holds the picture, and its pixels as RGB.

tifffile reads the tags and imagecodecs the data, so every value arrives as it stands in the file; what the tags say is
checked against the table of `samples` before anything is decoded.
"""

import io
import logging
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tifffile import TiffFile, TiffFileError, TiffPage, TiffPages

from storage.errors import RefusedImage
from storage.media.samples import Alpha, ColorModel, Layout, check_layout, to_rgb

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes: both byte orders, with offsets of 4 and of 8 bytes."""
MODELS: dict[int, ColorModel] = {0: "white_is_zero", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "ycbcr"}
"""PhotometricInterpretation -> colour model."""
RAW_MODELS = (32803, 34892)
"""PhotometricInterpretation of what a sensor saw: a colour filter array, and linear raw."""
PLAIN = frozenset([1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000])
"""Compressions of bytes: none, CCITT, LZW, Deflate, PackBits, LZMA, Zstandard."""
PREDICTED = frozenset([5, 8, 32946, 34925, 34926, 50000])
"""Those of them that a predictor goes with; libtiff passes it over elsewhere."""
PICTURES = {6: "JPEG", 7: "JPEG", 33003: "JPEG2000", 33005: "JPEG2000", 34712: "JPEG2000", 50001: "WEBP"}
"""Compressions whose strips and tiles are pictures of their own, and Pillow's name for those."""
JPEGS = (6, 7)
INTEGERS = (1, 4)
"""SampleFormat: unsigned, and undefined, which readers take as unsigned."""
PHOTOMETRIC, ORIENTATION, COLORS_OF_INK, ICC_PROFILE, DNG_VERSION = 262, 274, 332, 34675, 50706
STRUCTURE = frozenset(
    [256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347,
     529, 530, 532]
)  # fmt: skip
"""Tags that say how the pixels lie and what they mean."""
TABLES = frozenset([347])
"""Those of them that hold bytes; tifffile takes a number of type BYTE as bytes too, and guesses on."""
FULL_RANGE = (0, 255, 128, 255, 128, 255)
"""ReferenceBlackWhite of YCbCr as JPEG has it."""
MOST_PAGES = 64
"""Pages, and pages below a page, that are looked at."""
ALPHAS: dict[int, Alpha] = {1: "premultiplied", 2: "straight"}
"""ExtraSamples -> alpha."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it complains about is refused or does not matter


def is_tiff(data: bytes) -> bool:
    """Return whether the first bytes are those of a TIFF file."""
    return data.startswith(MAGICS)


def read_tiff(name: str, data: bytes, check_sides: Callable[[str, int, int], None]) -> tuple[NDArray[np.uint8], int]:
    """Return the picture [h, w, 3] RGB as it lies in the file, and its orientation (1-8).

    `check_sides` is called with name, width and height (pixels) before anything is decoded. Raises RefusedImage
    (camera_raw, thumbnail_only, not_an_image, unsupported_...) and what the libraries raise on damage.
    """
    with TiffFile(io.BytesIO(data), is_lsm=False, is_scanimage=False, is_ndpi=False) as file:
        page = _picture(name, file)
        _check_tags(page, data)
        check_sides(name, page.imagewidth, page.imagelength)
        if page.is_tiled:  # one tile is decoded whole, however small the picture
            check_sides(name, page.tilewidth, page.tilelength)
        layout = _layout(name, page)
        check_layout(name, layout)
        orientation = page.tags.valueof(ORIENTATION, 1)
        return to_rgb(_values(page, layout, data), layout), orientation


def _picture(name: str, file: TiffFile) -> TiffPage:
    """Return the first page of full size; a page below a page that is larger than it counts instead."""
    tops = list(_pages(file.pages))
    nested = [_below(page) for page in tops]
    everything = [*tops, *(page for pages in nested for page in pages)]
    raw = any(page.photometric in RAW_MODELS or DNG_VERSION in page.tags for page in everything)
    if raw:
        raise RefusedImage("camera_raw", f"{name}: a camera's raw file; develop it, or let the camera save JPEG")
    for page, below in zip(tops, nested, strict=True):
        whole = [item for item in (page, *below) if not _is_part(item)]
        if whole:
            return max(whole, key=lambda item: item.imagewidth * item.imagelength)
    if not tops:
        raise ValueError("no page")
    raise RefusedImage("thumbnail_only", f"{name}: holds only a reduced copy of the picture; save the picture itself")


def _pages(pages: TiffPages) -> Iterator[TiffPage]:
    for index in range(MOST_PAGES):
        try:
            page = pages[index]
        except (IndexError, TiffFileError):  # a link that leads nowhere ends them, as it does for libtiff
            return
        assert isinstance(page, TiffPage)
        yield page


def _below(page: TiffPage) -> list[TiffPage]:
    try:
        return [] if page.pages is None else list(_pages(page.pages))
    except TiffFileError:
        return []


def _is_part(page: TiffPage) -> bool:
    """Return whether a page is a reduced copy (NewSubfileType bit 0, SubfileType 2) or a mask (bit 2)."""
    return bool(page.subfiletype & 5) or page.tags.valueof(255, 1) == 2


def _check_tags(page: TiffPage, data: bytes) -> None:
    """Raise ValueError if a tag that says how the pixels lie stands there and cannot be read; tifffile guesses then."""
    tiff = page.parent.tiff
    [count] = struct.unpack_from(tiff.tagnoformat, data, page.offset)
    start, end = page.offset + tiff.tagnosize, page.offset + tiff.tagnosize + count * tiff.tagsize
    codes = {struct.unpack_from(f"{tiff.byteorder}H", data, at)[0] for at in range(start, end, tiff.tagsize)}
    lost = codes & STRUCTURE - {tag.code for tag in page.tags if tag.code in TABLES or not isinstance(tag.value, bytes)}
    if lost:
        raise ValueError(f"tags that cannot be read: {sorted(lost)}")


def _layout(name: str, page: TiffPage) -> Layout:
    """Return what the tags say. Raises RefusedImage for what no layout can say."""
    formats, bits = page.tags.valueof(339, 1), page.bitspersample
    formats = formats if isinstance(formats, tuple) else (formats,)
    if not set(formats) <= set(INTEGERS) or (isinstance(bits, int) and bits > 16):
        text = f"{name}: samples that are signed, float or of more than 16 bits have no agreed brightness"
        raise RefusedImage("not_an_image", f"{text}; save it with 8 or 16 bits, unsigned")
    if not isinstance(bits, int) or (page.compression in JPEGS and bits != 8):
        raise RefusedImage("unsupported_bits", f"{name}: samples of {bits} bits; save them with 8 or 16 bits each")
    model = MODELS.get(page.photometric) if PHOTOMETRIC in page.tags else None
    if model is None or (model == "cmyk" and page.tags.valueof(COLORS_OF_INK, 1) != 1):
        known = f"PhotometricInterpretation {int(page.photometric)}" if PHOTOMETRIC in page.tags else "none"
        raise RefusedImage("unsupported_colors", f"{name}: a colour model that is not read ({known}); save it as RGB")
    predicted = page.compression in PREDICTED and page.predictor in (1, 2) and (bits in (8, 16) or page.predictor == 1)
    readable = predicted or page.compression in PICTURES or (page.compression in PLAIN and page.predictor == 1)
    if not readable:
        text = f"{name}: compression {int(page.compression)} with predictor {int(page.predictor)} is not read"
        text += "; save it with LZW or Deflate"
        raise RefusedImage("unsupported_compression", text)
    if page.imagedepth != 1 or (page.is_subsampled and (page.compression not in JPEGS or page.planarconfig != 1)):
        text = f"{name}: a volume, or subsampled colours that JPEG did not compress, are not read; save it as RGB"
        raise RefusedImage("unsupported_layout", text)
    samples, extra = page.samplesperpixel, page.extrasamples
    if model == "grey" and samples == 3 and not set(extra) & set(ALPHAS):
        model = "rgb"  # three bands without a colour model: how GDAL writes RGB, and what viewers show
    if model == "ycbcr" and page.compression in JPEGS:
        model = "rgb"  # libjpeg converts
    elif model == "ycbcr" and not (_near(page, 529, (0.299, 0.587, 0.114)) and _near(page, 532, FULL_RANGE)):
        raise RefusedImage("unsupported_colors", f"{name}: YCbCr of an unusual range is not read; save it as RGB")
    first = samples - len(extra)
    alpha = next(((first + i, ALPHAS[kind]) for i, kind in enumerate(extra) if kind in ALPHAS), None)
    palette = _palette(page) if model == "palette" else None
    return Layout(model, bits, samples, alpha, palette, page.tags.valueof(ICC_PROFILE))


def _near(page: TiffPage, tag: int, usual: tuple[float, ...]) -> bool:
    """Return whether a tag of fractions is absent or has its usual values."""
    flat = page.tags.valueof(tag)
    return flat is None or np.allclose(np.divide(flat[::2], flat[1::2]), usual, atol=0.01)


def _palette(page: TiffPage) -> NDArray[np.uint8]:
    colors = page.colormap
    if colors is None:
        raise ValueError("no ColorMap")
    wide = colors.max(initial=0) > 255  # some writers give 8-bit colours
    return np.ascontiguousarray((colors >> 8 if wide else colors).T.astype(np.uint8))


def _check_pictures(page: TiffPage, data: bytes) -> None:
    """Raise ValueError unless each compressed strip or tile has the sides of its place, which no decoder checks."""
    width, height = page.imagewidth, page.imagelength
    wide = page.tilewidth if page.is_tiled else width
    high = page.tilelength if page.is_tiled else min(page.rowsperstrip, height)
    sides = ({wide, width % wide or wide}, {high, height % high or high})
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if page.compression in JPEGS and b"\xff\xd9" not in data[start : start + size]:
            raise ValueError("a strip or tile without an end")
        with Image.open(io.BytesIO(data[start : start + size]), formats=[PICTURES[page.compression]]) as part:
            if part.width not in sides[0] or part.height not in sides[1]:
                raise ValueError(f"a strip or tile of {part.width}x{part.height} pixels, expected {wide}x{high}")


def _values(page: TiffPage, layout: Layout, data: bytes) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode to [h, w, samples]."""
    if not all(page.databytecounts) or not all(page.dataoffsets):
        raise ValueError("a strip or tile is missing")
    if any(start + size > len(data) for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise ValueError("a strip or tile is cut off")
    if page.compression in PICTURES:
        _check_pictures(page, data)
    values: NDArray[Any] = page.asarray(squeeze=False, maxworkers=1)[:, 0]  # [planes, h, w, samples of a plane]
    values = values[0] if page.planarconfig == 1 else values[..., 0].transpose(1, 2, 0)
    return values.astype(np.uint8, copy=False) if layout.bits <= 8 else values.astype(np.uint16, copy=False)
