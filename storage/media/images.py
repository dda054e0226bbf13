"""From image files to fixed-size frames; limits are checked before decoding."""

import functools
import io
import math
import stat
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from storage.errors import RefusedImage
from storage.media.essentials import MOST_PROFILE, essentials
from storage.media.image_formats import check_camera_raw, is_avif, is_heif, learn_heif, load_pixels, with_avif_brand
from storage.media.jpeg import check_jpeg_kind, jpeg_that_ends
from storage.media.jpeg2000 import is_jpeg2000, read_jpeg2000
from storage.media.tiff import is_tiff, read_tiff

if TYPE_CHECKING:  # a process that decodes one image starts in half the time without pydantic
    from configs.buffer import BufferSettings, FitMode, Resample

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read (HEIF with the extra `heif`). Formats that start other programs (EPS) or hold no camera images
are excluded."""
WITHOUT_PILLOW = ("JPEG2000", "TIFF")
"""Those that Pillow does not decode here."""
DAMAGE = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    AttributeError, ArithmeticError, RuntimeError, AssertionError, MemoryError,
)  # fmt: skip
"""Exceptions of Pillow's decoders on damaged data."""
Decode = Callable[[bytes], tuple[NDArray[np.uint8], dict[str, Any]]]
"""Returns pixels of a file's content, and facts that JSON can hold. Raises RefusedImage."""
ORIENTATION_TAG = 0x0112
PngImagePlugin.MAX_TEXT_CHUNK = MOST_PROFILE
Image.MAX_IMAGE_PIXELS = None  # `check_sides` has the limit of the settings
_FILTERS: "dict[Resample, Image.Resampling]" = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the image upright (EXIF 2.3, tag 274)."""


class Fit(NamedTuple):
    """How an image is scaled into a frame (`buffer.advanced`)."""

    mode: "FitMode" = "aspect"
    """aspect: one scale, as large as fits; squash: each side by itself, so that the image fills the frame."""
    resample: "Resample" = "bilinear"
    """Filter."""

    @classmethod
    def of(cls, settings: "BufferSettings") -> "Fit":
        """Return what the settings say."""
        return cls(settings.advanced.fit, settings.advanced.resample)


ASPECT = Fit()


@dataclass(frozen=True, slots=True)
class FittedFrame:
    """An image scaled into a frame, placed top-left, zero elsewhere."""

    pixels: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    valid_height: int
    """Rows that hold image (pixels)."""
    valid_width: int
    """Columns that hold image (pixels)."""
    resample: str = ""
    """Filter that scaled the image; empty for an image that was not scaled."""

    def cropped(self) -> NDArray[np.uint8]:
        """Return the image without its padding, [valid_height, valid_width, 3]; a view."""
        return self.pixels[: self.valid_height, : self.valid_width]


@dataclass(frozen=True, slots=True)
class Photo:
    """A decoded image file."""

    pixels: NDArray[np.uint8]
    """[h, w, 3] RGB, upright."""
    exif: dict[int, Any]
    """EXIF tags of the file, including those about the exposure; empty when it has none or they are broken."""
    orientation: int = 1
    """EXIF orientation that was applied (1-8); 1: the pixels lie as in the file."""


def decode_image(
    source: Path | bytes, *, max_bytes: int, max_pixels: int, max_aspect: float = math.inf
) -> NDArray[np.uint8]:
    """Return the pixels of `decode_photo`."""
    return decode_photo(source, max_bytes=max_bytes, max_pixels=max_pixels, max_aspect=max_aspect).pixels


def decode_photo(source: Path | bytes, *, max_bytes: int, max_pixels: int, max_aspect: float = math.inf) -> Photo:
    """Decode an image file to [h, w, 3] RGB, upright, and read its EXIF tags.

    EXIF orientation is applied; grey, palette and CMYK are converted; alpha is composed over black; 16-bit values are
    scaled by full range; of an animation the first frame is read. Limits: file size (bytes), width x height (pixels)
    and longest over shortest side, all checked before any pixel is decoded.

    Raises RefusedImage with the reason for a file that can never be read. FileNotFoundError and other I/O errors pass
    through, because the same file may be readable the next time.
    """
    name = str(source) if isinstance(source, Path) else "image"
    data = read_file(source, max_bytes) if isinstance(source, Path) else source
    _check_size(name, len(data), max_bytes)
    check = functools.partial(check_sides, max_pixels=max_pixels, max_aspect=max_aspect)
    try:
        return _decode(name, data, check)
    except RefusedImage as refusal:
        kept = essentials(data) if refusal.reason in ("not_an_image", "truncated") else None
        if kept is None:
            raise
        return _decode(name, kept, check)


def photo_parts(data: bytes, **limits: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return the pixels of `decode_photo`, and what JSON can hold of the rest: EXIF tags that are text, orientation."""
    photo = decode_photo(data, **limits)
    texts = {tag: value for tag, value in photo.exif.items() if isinstance(value, str)}
    return photo.pixels, {"exif": texts, "orientation": photo.orientation}


def _decode(name: str, data: bytes, check: Callable[[str, int, int], None]) -> Photo:
    check_camera_raw(name, data)
    try:
        if is_tiff(data):
            pixels, orientation = read_tiff(name, data, check)
            return _upright(pixels, _exif(lambda: _exif_of_tiff(data)), orientation)
        if is_jpeg2000(data):
            return Photo(read_jpeg2000(name, data, check), {})
        with _open(name, data) as image:
            check(name, image.width, image.height)
            pixels, exif = load_pixels(name, image, data), _exif(lambda: exif_of(image))
            return _upright(pixels, exif, exif.get(ORIENTATION_TAG))
    except RefusedImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RefusedImage("too_many_pixels", f"{name}: far too many pixels: {error}") from error
    except DAMAGE as error:
        raise RefusedImage("truncated", f"{name}: the image data is damaged or cut off: {error}") from error


def check_sides(name: str, width: int, height: int, max_pixels: int, max_aspect: float = math.inf) -> None:
    """Raise RefusedImage (too_many_pixels, aspect) for an image with forbidden sides (pixels)."""
    if min(width, height) < 1:
        raise RefusedImage("truncated", f"{name}: the header is damaged: it says {width}x{height} pixels")
    if width * height > max_pixels:
        raise RefusedImage("too_many_pixels", f"{name}: {width}x{height} pixels; the limit is {max_pixels}")
    if max(width, height) > max_aspect * min(width, height):
        raise RefusedImage("aspect", f"{name}: {width}x{height} pixels; the limit is {max_aspect:g} to 1")


def crc32_of(pixels: NDArray[np.uint8]) -> int:
    """Return the CRC-32 of the pixels in C order."""
    return int(isal_zlib.crc32(np.ascontiguousarray(pixels).data))


def fitted_size(height: int, width: int, frame_height: int, frame_width: int) -> tuple[int, int]:
    """Return the size (pixels) of an image of height x width scaled to fit the frame, its aspect kept."""
    scale = min(frame_height / height, frame_width / width)
    return (
        max(1, min(frame_height, round(height * scale))),
        max(1, min(frame_width, round(width * scale))),
    )


def fit_frame(pixels: NDArray[np.uint8], height: int, width: int, fit: Fit = ASPECT) -> FittedFrame:
    """Scale pixels [h, w, 3] into a frame [height, width, 3], antialiased when shrinking."""
    frame, rows, columns = _fit(pixels, height, width, 0, fit)
    return FittedFrame(frame, rows, columns, "" if pixels.shape[:2] == (rows, columns) else fit.resample)


def fit_label(labels: NDArray[np.uint8], height: int, width: int, fill: int, fit: Fit = ASPECT) -> NDArray[np.uint8]:
    """Scale labels [h, w] as `fit_frame` scales their image, nearest neighbour; `fill` outside. [height, width]."""
    return _fit(labels, height, width, fill, Fit(fit.mode, "nearest"))[0]


def read_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file. Raises RefusedImage: empty, too_many_bytes, unreadable; other OSErrors pass."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RefusedImage("unreadable", f"{path}: not a regular file")
        _check_size(str(path), status.st_size, max_bytes)
        with path.open("rb") as file:
            return file.read(max_bytes + 1)  # one more than allowed shows a file that grew meanwhile
    except PermissionError as error:
        raise RefusedImage("unreadable", f"{path}: no permission to read it; chmod it or run as its owner") from error


def _check_size(name: str, size: int, max_bytes: int) -> None:
    if size == 0:
        raise RefusedImage("empty", f"{name}: empty (0 bytes)")
    if size > max_bytes:
        raise RefusedImage("too_many_bytes", f"{name}: {size} bytes; the limit is {max_bytes}")


def _open(name: str, data: bytes) -> ImageFile.ImageFile:
    """Read the header only."""
    Image.init()
    reason = "not_an_image"
    if is_avif(data):
        data = with_avif_brand(data)
    elif is_heif(data):
        learn_heif(name)
        reason = "truncated"  # it is one, by its first bytes
    elif data.startswith(b"\xff\xd8"):
        check_jpeg_kind(name, data)
        data = jpeg_that_ends(data)
    formats = [item for item in FORMATS if item in Image.OPEN]
    try:
        return Image.open(io.BytesIO(data), formats=[item for item in formats if item not in WITHOUT_PILLOW])
    except UnidentifiedImageError as error:
        raise RefusedImage(reason, f"{name}: not an image in a format that is read ({', '.join(formats)})") from error
    except DAMAGE as error:
        if data.startswith(b"BM") and "nsupported" in str(error):
            raise RefusedImage("unsupported_layout", f"{name}: {error}; save it with 24 bits a pixel") from error
        raise RefusedImage("truncated", f"{name}: the image header is damaged: {error}") from error


def _upright(pixels: NDArray[np.uint8], exif: dict[int, Any], orientation: Any) -> Photo:
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    if turn is None:
        return Photo(pixels, exif)
    return Photo(np.array(Image.fromarray(pixels).transpose(turn), np.uint8), exif, orientation)


def _exif(read: Callable[[], Image.Exif]) -> dict[int, Any]:
    try:
        exif = read()
        return dict(exif) | dict(exif.get_ifd(ExifTags.IFD.Exif))
    except DAMAGE:
        return {}  # broken EXIF says nothing about the pixels, which are judged on their own


def exif_of(image: Image.Image) -> Image.Exif:
    """Decode an image; return its EXIF tags."""
    image.load()  # a PNG may have it behind the pixels
    for text in ("xmp", "XML:com.adobe.xmp"):  # viewers turn nothing by it: it often outlives the turn that it names
        image.info.pop(text, None)
    exif = image.getexif()
    if image.format == "PNG" and not image.info.get("exif", b"").startswith((b"Exif\0\0II", b"Exif\0\0MM")):
        exif.pop(ORIENTATION_TAG, None)  # of a text; viewers turn a picture by a chunk of that kind alone
    return exif


def _exif_of_tiff(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    if not data.startswith(b"MM\0+"):  # Pillow does not know this header
        exif.load(data)
    return exif


def _fit(pixels: NDArray[np.uint8], height: int, width: int, fill: int, fit: Fit) -> tuple[NDArray[np.uint8], int, int]:
    """Return pixels scaled to fit, `fill` outside; and the rows and columns that hold image (pixels)."""
    if pixels.shape[:2] == (height, width):
        return pixels, height, width
    whole = fit.mode == "squash"
    valid_height, valid_width = (
        (height, width) if whole else fitted_size(pixels.shape[0], pixels.shape[1], height, width)
    )
    fitted = np.full((height, width, *pixels.shape[2:]), fill, np.uint8)
    fitted[:valid_height, :valid_width] = Image.fromarray(pixels).resize(
        (valid_width, valid_height), _FILTERS[fit.resample]
    )
    return fitted, valid_height, valid_width
