"""What lies around the pixels: pages, brands, boxes, metadata. It neither changes a picture nor refuses it."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from storage.errors import RefusedImage
from storage.media.images import decode_image, decode_photo

LIMITS = {"max_bytes": 10_000_000, "max_pixels": 1_000_000}
ROWS, COLUMNS = np.mgrid[:48, :64]
DRAWN = np.stack([COLUMNS * 4, ROWS * 5, (COLUMNS * 3 + ROWS * 2) % 256], -1).astype(np.uint8)
COLORS = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(DRAWN).save(file, kind, **options)
    return file.getvalue()


def error_of(data: bytes, wanted: NDArray[Any] = DRAWN) -> float:
    found = decode_image(data, **LIMITS).astype(np.int64)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).mean())


def refusal(data: bytes) -> str:
    with pytest.raises(RefusedImage) as caught:
        decode_image(data, **LIMITS)
    return caught.value.reason


# Pages of TIFF


def pages(*parts: tuple[NDArray[Any], dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for pixels, options in parts:
            writer.write(pixels, **{"photometric": "rgb", **options})
    return file.getvalue()


SMALL = np.ascontiguousarray(DRAWN[::4, ::4])
REDUCED = {"subfiletype": 1}
SENSOR = (np.zeros((96, 128), np.uint16), {"photometric": 32803, "extratags": [(33421, "H", 2, (2, 2), True)]})
DNG = [(50706, "B", 4, b"\1\4\0\0", True)]


def test_the_picture_is_the_page_of_full_size():
    assert error_of(pages((SMALL, REDUCED), (DRAWN, {}))) == 0
    assert error_of(pages((SMALL, {**REDUCED, "subifds": 1}), (DRAWN, {}))) == 0, "the thumbnail holds the picture"
    assert error_of(pages((SMALL, {"subifds": 1}), (DRAWN, {}))) == 0, "as Nikon does it, without a mark"
    assert error_of(pages((DRAWN, {"subifds": 1, "tile": (16, 16)}), (SMALL, REDUCED))) == 0, "a pyramid"
    assert error_of(pages((DRAWN, {}), (SMALL, {}))) == 0, "of several the first"


def test_what_holds_a_preview_only_is_refused_by_name():
    assert refusal(pages((SMALL, REDUCED))) == "thumbnail_only"
    assert refusal(pages((SMALL, {**REDUCED, "subifds": 1}), SENSOR)) == "camera_raw"
    assert refusal(pages((SMALL, REDUCED), SENSOR)) == "camera_raw"
    assert refusal(pages((DRAWN, {"extratags": DNG}))) == "camera_raw"
    canon = bytearray(pages((DRAWN, {})))
    canon[8:12] = b"CR\2\0"
    assert refusal(bytes(canon)) == "camera_raw"


@pytest.mark.parametrize("head", [b"IIU\0", b"IIRO", b"MMOR", b"FUJIFILMCCD-RAW 0201", b"\0\0\0\x18ftypcrx \0\0\0\1"])
def test_raw_files_that_are_no_tiff_are_named(head: bytes):
    assert refusal(head + bytes(500)) == "camera_raw"


def with_tag(tag: int, value: int, **options: Any) -> bytes:
    """A TIFF with a tag that tifffile alone does not write so."""
    data = pages((DRAWN, {**options, "extratags": [(65000, "I", 1, value, True)]}))
    entry = struct.pack("<HHI", 65000, 4, 1)
    assert data.count(entry) == 1
    return data.replace(entry, struct.pack("<HHI", tag, 4, 1))


@pytest.mark.parametrize("tag", [None, 330])
@pytest.mark.parametrize("link", [9, 100, 2**32 - 16])
def test_a_link_that_leads_nowhere_refuses_no_picture(link: int, tag: int | None):
    """What stands after the first page, or below it, may be cut off; libtiff shows the picture."""
    data = bytearray(with_tag(330, link) if tag else pages((DRAWN, {})))
    if tag is None:
        page = tifffile.TiffFile(io.BytesIO(data)).pages[0]
        end = page.offset + 2 + 12 * len(page.tags)
        data[end : end + 4] = struct.pack("<I", link)
    assert error_of(bytes(data)) == 0


def test_a_number_in_a_tag_of_bytes_is_refused():
    """Taken as another value than 1, PlanarConfiguration mixed rows and colours in silence."""
    data = pages((DRAWN, {"planarconfig": 1}))
    for tag in (274, 284):
        whole = with_tag(274, 6) if tag == 274 else data
        place = next(at for kind in (3, 4) if (at := whole.find(struct.pack("<HHI", tag, kind, 1))) > 0)
        assert refusal(whole[: place + 2] + b"\1\0" + whole[place + 4 :]) == "truncated", tag


def test_a_predictor_that_viewers_pass_over_is_refused():
    for options in ({}, {"compression": "packbits"}):
        assert refusal(with_tag(317, 2, **options)) == "unsupported_compression"


def test_exif_of_a_tiff_is_kept():
    exif = Image.Exif()
    exif[0x0112], exif[271] = 3, "maker"
    photo = decode_photo(encoded("TIFF", exif=exif), **LIMITS)
    assert np.array_equal(photo.pixels, DRAWN[::-1, ::-1]) and photo.exif[271] == "maker"


# Metadata of PNG and JPEG


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    extra: bytes = b"", pixels: NDArray[Any] = DRAWN, bits: int = 8, color_type: int = 2, after: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", DRAWN.shape[1], DRAWN.shape[0], bits, color_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), extra, chunk(b"IDAT", body), after, chunk(b"IEND", b"")]
    )


LONG = zlib.compress(b"a" * 5_000_000)
BROKEN = chunk(b"tEXt", b"a\0b")[:-1] + b"?"
METADATA = {
    "text": chunk(b"zTXt", b"k\0\0" + LONG),
    "workflow": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LONG),
    "texts": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 1_000_000)) * 70,
    "profile": chunk(b"iCCP", b"p\0\0" + LONG),
    "crc": BROKEN,
    "gamma": chunk(b"gAMA", b"\0"),
    "time": chunk(b"tIME", b""),
    "key with a bad crc": chunk(b"tRNS", bytes(6))[:-1] + b"?",
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_a_png_refuses_no_picture(kind: str):
    assert error_of(png(METADATA[kind])) == 0
    assert error_of(png(after=METADATA[kind])) == 0


def test_a_png_with_damaged_text_still_stands_upright_and_can_still_be_damaged():
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = png(BROKEN + chunk(b"eXIf", exif.tobytes()[6:]))
    assert error_of(turned, DRAWN[::-1, ::-1]) == 0
    assert refusal(png(BROKEN)[:-400]) == "truncated"


def test_the_transparent_colour_of_a_png_is_compared_exactly():
    wide = DRAWN.astype(np.uint16) * 257
    wide[:4], wide[4:8] = [0x1234, 0x2345, 0x3456], [0x1200, 0x2300, 0x3400]
    wanted = (wide >> 8).astype(np.int64)
    wanted[:4] = 0
    key = chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x2345, 0x3456))
    assert error_of(png(key, wide.astype(">u2").reshape(48, -1), 16, 2), wanted) < 1
    for bits in (1, 2, 4, 8, 16):
        values = DRAWN[..., 0].astype(np.uint32) * (2**bits - 1) // 255
        rows = values[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint32) & 1
        grey = np.where(values == 1, 0, values * 255 // (2**bits - 1))
        data = png(chunk(b"tRNS", b"\0\1"), np.packbits(rows.reshape(48, -1).astype(np.uint8), axis=1), bits, 0)
        assert error_of(data, np.stack([grey] * 3, -1)) == 0, bits


@pytest.mark.parametrize("entries", [3, 4, 5, 256, 300])
def test_transparencies_beyond_the_palette_of_a_png_count_as_none(entries: int):
    """libpng passes over a list that is too long, and viewers show its colours."""
    indices, colors = (COLUMNS % 4).astype(np.uint8), COLORS[:4]
    tables = chunk(b"PLTE", colors.tobytes()) + chunk(b"tRNS", b"\0" + b"\xff" * (entries - 1))
    wanted = colors[indices]
    if entries <= 4:
        wanted[indices == 0] = 0
    assert error_of(png(tables, indices, 8, 3), wanted) == 0


def test_a_text_of_a_png_does_not_turn_it():
    """Browsers, libvips and OpenCV turn a picture by the chunk eXIf alone, when its content starts as TIFF."""
    exif = Image.Exif()
    exif[0x0112], exif[271] = 6, "maker"
    body = exif.tobytes()
    text = b"\nexif\n%8d\n" % len(body) + body.hex().encode() + b"\n"
    for extra in (
        chunk(b"tEXt", b"Raw profile type exif\0" + text),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
        chunk(b"eXIf", body),
    ):
        photo = decode_photo(png(extra), **LIMITS)
        assert np.array_equal(photo.pixels, DRAWN) and photo.orientation == 1
        assert photo.exif[271] == "maker", "other facts stay"
    assert decode_photo(png(chunk(b"eXIf", body[6:])), **LIMITS).orientation == 6


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


JUNK = {
    "JFIF cut": lambda rest: segment(0xE0, b"JFIF\0\1") + rest,
    "JFIF of no length": lambda rest: b"\xff\xe0\0\0JFIF" + rest,
    "profile cut": lambda rest: segment(0xE2, b"ICC_PROFILE\0\1") + rest,
    "profile of noise": lambda rest: segment(0xE2, b"ICC_PROFILE\0\2\1" + bytes(range(1, 200))) + rest,
    "Adobe cut": lambda rest: segment(0xEE, b"Adobe") + rest,
    "pictures cut": lambda rest: segment(0xE2, b"MPF\0II*\0\x08") + rest,
    "Photoshop cut": lambda rest: segment(0xED, b"Photoshop 3.0\x008BIM\4\4\1") + rest,
    "bytes between": lambda rest: b"\0\0\0" + rest,
    "fill bytes": lambda rest: b"\xff\xff" + rest,
    "a second start": lambda rest: b"\xff\xd8" + rest,
}


@pytest.mark.filterwarnings("ignore:.*malformed MPO:UserWarning")
@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.parametrize("progressive", [False, True])
def test_damaged_segments_of_a_jpeg_refuse_no_picture(kind: str, progressive: bool):
    data = encoded("JPEG", quality=95, subsampling=0, progressive=progressive)
    change: Callable[[bytes], bytes] = JUNK[kind]
    assert error_of(data[:2] + change(data[2:])) < 2
    assert error_of(data[:2] + change(data[20:])) < 2, "without the JFIF segment of its own"


def test_jpegs_that_no_viewer_shows_are_named():
    deep = imagecodecs.jpeg_encode(DRAWN.astype(np.uint16) * 16, level=97, bitspersample=12)
    assert refusal(deep) == "unsupported_bits"
    lossless = imagecodecs.ljpeg_encode(DRAWN[..., 0].astype(np.uint16), bitspersample=12)
    assert refusal(lossless) == "unsupported_compression"


def test_a_bmp_whose_alpha_is_zero_everywhere_is_opaque():
    file = io.BytesIO()
    Image.fromarray(np.dstack([DRAWN, np.zeros((48, 64), np.uint8)])).save(file, "BMP")
    data = bytearray(file.getvalue())
    assert error_of(bytes(data)) == 0
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 56, 64, -48, 1, 32, 3, 64 * 48 * 4, 0, 0, 0, 0) + masks
    body = np.dstack([DRAWN[..., ::-1], np.zeros((48, 64), np.uint8)]).tobytes()
    assert error_of(b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body) == 0
    assert refusal(bytes(data[:28] + b"\2" + data[29:])) == "unsupported_layout", "two bits a pixel"


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_only_exif_turns_a_picture(kind: str):
    """XMP often stays behind in a picture that a program has turned."""
    if kind == "PNG":
        data = png(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP))
    elif kind == "TIFF":
        data = pages((DRAWN, {"extratags": [(700, "B", len(XMP), XMP, True)]}))
    else:
        options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": "4:4:4"}
        data = encoded(kind, xmp=XMP, **options)
    assert XMP in data
    assert error_of(data) < 2


@pytest.mark.parametrize("transparent", [False, True])
def test_around_the_first_frame_of_a_gif_nothing_is_shown(transparent: bool):
    file, small = io.BytesIO(), Image.fromarray(DRAWN[:20, :30]).quantize(16)
    small.save(file, "GIF", **({"transparency": 3} if transparent else {}))
    data = bytearray(file.getvalue())
    data[6:10], data[11] = struct.pack("<2H", 64, 48), 7
    place = data.index(b",\0\0\0\0" + struct.pack("<2H", 30, 20))
    data[place + 1 : place + 5] = struct.pack("<2H", 10, 5)
    wanted = np.zeros_like(DRAWN)
    wanted[5:25, 10:40] = np.asarray(small.convert("RGB"))
    if transparent:
        wanted[5:25, 10:40][np.asarray(small) == 3] = 0
    assert error_of(bytes(data), wanted) == 0


# Brands and boxes


@pytest.mark.parametrize("brand", [b"mif1", b"miaf", b"MA1B", b"isom"])
def test_avif_of_any_major_brand(brand: bytes):
    data = encoded("AVIF", quality=100, subsampling="4:4:4")
    assert data[8:12] == b"avif"
    assert error_of(data[:8] + brand + data[12:]) < 2


def box(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + name + data


def jp2(values: NDArray[Any], space: int, extra: bytes = b"") -> bytes:
    values = np.ascontiguousarray(values)
    stream = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k", mct=False)
    samples = 1 if values.ndim == 2 else values.shape[2]
    header = box(b"ihdr", struct.pack(">IIHBBBB", 48, 64, samples, 7, 7, 0, 0))
    header += box(b"colr", b"\1\0\0" + struct.pack(">I", space)) + extra
    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    return start + box(b"jp2h", header) + box(b"jp2c", stream)


def channels(*kinds: tuple[int, int, int]) -> bytes:
    return box(b"cdef", struct.pack(">H", len(kinds)) + b"".join(struct.pack(">3H", *kind) for kind in kinds))


def test_boxes_of_jpeg_2000_say_what_samples_mean():
    half, near = np.full((48, 64), 128, np.uint8), np.full((48, 64), 64, np.uint8)
    ordered = [(i, 0, i + 1) for i in range(3)]
    assert error_of(jp2(np.dstack([DRAWN, near]), 16)) == 0, "a fourth band is no alpha"
    assert error_of(jp2(np.dstack([DRAWN, half]), 16, channels(*ordered, (3, 1, 0))), DRAWN * (128 / 255)) < 1
    assert error_of(jp2(np.dstack([DRAWN // 2, half]), 16, channels(*ordered, (3, 2, 0))), DRAWN // 2) == 0
    first = channels((0, 1, 0), (1, 0, 1), (2, 0, 2), (3, 0, 3))
    assert error_of(jp2(np.dstack([half, DRAWN]), 16, first), DRAWN * (128 / 255)) < 1, "alpha first"
    assert error_of(jp2(DRAWN[..., ::-1], 16, channels((0, 0, 3), (1, 0, 2), (2, 0, 1)))) == 0, "blue first"
    ycc = np.asarray(Image.fromarray(DRAWN).convert("YCbCr"))
    assert error_of(jp2(ycc, 18)) < 1.5
    palette = box(b"pclr", struct.pack(">HB", 256, 3) + b"\7\7\7" + COLORS.tobytes())
    mapping = box(b"cmap", b"".join(struct.pack(">HBB", 0, 1, i) for i in range(3)))
    assert error_of(jp2(DRAWN[..., 0], 16, palette + mapping), COLORS[DRAWN[..., 0]]) == 0
    assert refusal(jp2(DRAWN, 14)) == "unsupported_colors"
    assert refusal(jp2(DRAWN, 16)[:-300]) == "truncated"
