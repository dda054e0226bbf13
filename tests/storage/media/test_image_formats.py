"""Every format and pixel type that the documentation names, and headers that promise too much."""

import io
import itertools
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from storage.errors import RefusedImage
from storage.media import image_formats
from storage.media.images import decode_image

LIMITS = {"max_bytes": 10_000_000, "max_pixels": 1_000_000}
RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 65536, (6, 9, 3), np.uint16)
SMOOTH = np.stack(np.meshgrid(np.linspace(0, 255, 64), np.linspace(0, 255, 48)) * 2, -1)[..., :3].astype(np.uint8)
HEADER, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, SAMPLES, ROWS, COUNTS, PLANAR, SAMPLE_FORMAT = (
    range(256, 258), 258, 259, 262, 273, 277, 278, 279, 284, 339,
)  # fmt: skip


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(
    pixels: NDArray[np.generic], photometric: int, *, planar: bool = False, deflate: bool = False, big: bool = False,
    sample_format: int = 1, strips: int = 1, orientation: int = 1, extra: tuple[int, ...] = (),
) -> bytes:  # fmt: skip
    """A TIFF of [h, w, samples], written by hand: Pillow writes no 16-bit colour."""
    order, (height, width, samples) = "<>"[big], pixels.shape
    layers = [pixels[..., i] for i in range(samples)] if planar else [pixels]
    rows = -(-height // strips)
    parts = [layer[top : top + rows] for layer in layers for top in range(0, height, rows)]
    blocks = [part.astype(part.dtype.newbyteorder(order)).tobytes() for part in parts]
    blocks = [zlib.compress(block) for block in blocks] if deflate else blocks
    starts = list(itertools.accumulate(map(len, blocks), initial=8))
    data = b"".join(blocks)
    tags: dict[int, list[int]] = {
        256: [width], 257: [height], BITS: [pixels.dtype.itemsize * 8] * samples, COMPRESSION: [8 if deflate else 1],
        PHOTOMETRIC: [photometric], OFFSETS: starts[:-1], SAMPLES: [samples], ROWS: [rows],
        COUNTS: [len(block) for block in blocks], PLANAR: [2 if planar else 1],
        SAMPLE_FORMAT: [sample_format] * samples, 274: [orientation], **({338: list(extra)} if extra else {}),
    }  # fmt: skip
    where = 8 + len(data)
    table, more, after = b"", b"", where + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        body = struct.pack(f"{order}{len(values)}I", *values)
        if len(body) > 4:
            body, more = struct.pack(f"{order}I", after + len(more)), more + body
        table += struct.pack(f"{order}HHI", tag, 4, len(values)) + body
    head = (b"MM" if big else b"II") + struct.pack(f"{order}HI", 42, where)
    return head + data + struct.pack(f"{order}H", len(tags)) + table + bytes(4) + more


def png(width: int, height: int, bits: int, color_type: int, data: bytes) -> bytes:
    """A PNG whose header may promise anything."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def decoded(data: bytes) -> NDArray[np.int64]:
    return decode_image(data, **LIMITS).astype(np.int64)


def refusal(data: bytes, **limits: float) -> str:
    with pytest.raises(RefusedImage) as caught:
        decode_image(data, **{**LIMITS, **limits})
    return caught.value.reason


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("strips", [1, 3])
def test_sixteen_bit_colour_tiff(planar: bool, deflate: bool, big: bool, strips: int):
    found = decoded(tiff(WIDE, 2, planar=planar, deflate=deflate, big=big, strips=strips))
    assert np.abs(found - WIDE // 257).max() <= 1


@pytest.mark.parametrize("planar", [False, True])
def test_sixteen_bit_tiff_with_alpha_lies_over_black(planar: bool):
    alpha = np.full((6, 9, 1), 32896, np.uint16)
    found = decoded(tiff(np.concatenate([WIDE, alpha], -1), 2, planar=planar, extra=(2,)))
    assert np.abs(found - WIDE / 257 * 128 / 255).max() <= 2


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_grey_tiff_of_both_polarities(bits: int, big: bool):
    grey = WIDE[..., :1] if bits == 16 else (WIDE[..., :1] >> 8).astype(np.uint8)
    wanted = grey.astype(np.int64) // 257 if bits == 16 else grey.astype(np.int64)
    assert np.array_equal(decoded(tiff(grey, 1, big=big)), wanted.repeat(3, -1))
    assert np.array_equal(decoded(tiff(grey, 0, big=big)), 255 - wanted.repeat(3, -1))


@pytest.mark.parametrize("planar", [False, True])
def test_eight_bit_colour_tiff(planar: bool):
    narrow = (WIDE >> 8).astype(np.uint8)
    assert np.array_equal(decoded(tiff(narrow, 2, planar=planar)), narrow)


@pytest.mark.parametrize(
    ("pixels", "sample_format"),
    [(WIDE[..., :1].astype(np.uint32), 1), (WIDE[..., :1].view(np.int16), 2), (WIDE[..., :1].astype(np.float32), 3)],
)
def test_pixels_without_an_agreed_brightness_are_refused(pixels: NDArray[np.generic], sample_format: int):
    assert refusal(tiff(pixels, 1, sample_format=sample_format)) == "not_an_image"


def test_planes_that_are_cut_off_are_truncated():
    whole = tiff(WIDE, 2, planar=True)
    counts = struct.pack("<3I", 108, 108, 108)
    assert counts in whole
    assert refusal(whole.replace(counts, struct.pack("<3I", 108, 108, 50))) == "truncated"


def test_sixteen_bit_png_of_every_kind():
    flat = lambda pixels: b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)  # noqa: E731
    grey, alpha = WIDE[..., :1], np.full((6, 9, 1), 65535, np.uint16)
    assert np.array_equal(decoded(png(9, 6, 16, 0, flat(grey))), (grey // 257).repeat(3, -1))
    assert np.abs(decoded(png(9, 6, 16, 2, flat(WIDE))) - WIDE // 257).max() <= 1
    assert np.abs(decoded(png(9, 6, 16, 6, flat(np.concatenate([WIDE, alpha], -1)))) - WIDE // 257).max() <= 1
    found = decoded(png(9, 6, 16, 4, flat(np.concatenate([grey, alpha], -1))))
    assert np.abs(found - (grey // 257).repeat(3, -1)).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_are_near(kind: str):
    found = decoded(encoded(Image.fromarray(SMOOTH), kind, quality=95))
    assert np.abs(found - SMOOTH).mean() < 4


def test_lossless_webp_with_alpha():
    rgba = RNG.integers(0, 256, (6, 9, 4), np.uint8)
    found = decoded(encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True))
    assert np.abs(found - rgba[..., :3] * (rgba[..., 3:] / 255)).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "TIFF", "PNG"])
def test_exif_orientation_of_every_format_that_has_it(kind: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decoded(encoded(Image.fromarray(np.rot90(SMOOTH)), kind, exif=exif, quality=95))
    assert found.shape == SMOOTH.shape and np.abs(found - SMOOTH).mean() < 4


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
def test_orientation_of_sixteen_bit_tiff(planar: bool, deflate: bool):
    turned = np.ascontiguousarray(np.rot90(WIDE))
    found = decoded(tiff(turned, 2, planar=planar, deflate=deflate, orientation=6))
    assert found.shape == WIDE.shape and np.abs(found - WIDE // 257).max() <= 1


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk(kind: str):
    image = Image.fromarray(SMOOTH).convert("CMYK")
    assert np.abs(decoded(encoded(image, kind, quality=95)) - np.asarray(image.convert("RGB"))).mean() < 3


def test_palettes_of_gif_png_and_bmp():
    image = Image.fromarray(SMOOTH).quantize(32)
    for kind in ("GIF", "PNG", "BMP", "TIFF"):
        assert np.array_equal(decoded(encoded(image, kind)), np.asarray(image.convert("RGB"))), kind


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_several_frames_the_first_counts(kind: str):
    frames = [Image.new("RGB", (64, 64), color) for color in ((250, 0, 0), (0, 0, 250))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert np.abs(decoded(data) - [250, 0, 0]).max() < 8


def heif(pixels: NDArray[np.uint8]) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_bytes("RGB", pixels.shape[1::-1], pixels.tobytes()).save(file, quality=95)
    return file.getvalue()


def test_heif_with_the_extra():
    data = heif(SMOOTH)
    assert image_formats.is_heif(data) and not image_formats.is_heif(encoded(Image.fromarray(SMOOTH), "AVIF"))
    assert np.abs(decoded(data) - SMOOTH).mean() < 4
    assert refusal(data, max_pixels=1000) == "too_many_pixels"
    assert refusal(data[: len(data) // 2]) == "truncated"


WITHOUT_EXTRA = """
import sys
sys.modules["pillow_heif"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pillow_heif" else find(name, *rest)
from storage.errors import RefusedImage
from storage.media.images import decode_image
try:
    decode_image(sys.stdin.buffer.read(), max_bytes=10**6, max_pixels=10**6)
except RefusedImage as error:
    print(error.reason, error)
"""


def test_heif_without_the_extra_says_which_one():
    """As on a machine where it is not installed; in a process of its own, for Pillow unlearns nothing."""
    answer = subprocess.run([sys.executable, "-c", WITHOUT_EXTRA], input=heif(SMOOTH), capture_output=True, timeout=60)
    assert answer.stdout.decode().startswith("needs_extra") and "mfmd[heif]" in answer.stdout.decode(), answer.stderr


def test_sides_are_limited_by_their_ratio():
    strip = encoded(Image.new("RGB", (100, 5)), "PNG")
    assert decode_image(strip, **LIMITS, max_aspect=20).shape == (5, 100, 3)
    assert refusal(strip, max_aspect=19.9) == "aspect"
    assert refusal(encoded(Image.new("RGB", (5, 100)), "PNG"), max_aspect=19.9) == "aspect"


def bombs() -> dict[str, bytes]:
    """Files of a few bytes whose headers promise the most that their format can say, or nearly."""
    bmp = bytearray(encoded(Image.new("RGB", (4, 4)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    gif = bytearray(encoded(Image.new("P", (4, 4)), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    sides = tiff(np.zeros((1, 1, 3), np.uint8), 2)
    for tag in (256, 257):
        entry = struct.pack("<HHI", tag, 4, 1)
        sides = sides.replace(entry + struct.pack("<I", 1), entry + struct.pack("<I", 50_000))
    vp8l = b"\x2f" + struct.pack("<I", (16_383) | (16_383 << 14)) + bytes(20)
    webp = b"WEBPVP8L" + struct.pack("<I", len(vp8l)) + vp8l + b"\0" * (len(vp8l) % 2)
    jpeg = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return {
        "png": png(50_000, 50_000, 8, 2, b"\0"), "deep.png": png(50_000, 50_000, 16, 6, b"\0"), "bmp": bytes(bmp),
        "gif": bytes(gif), "tiff": sides, "webp": b"RIFF" + struct.pack("<I", len(webp)) + webp, "jpeg": bytes(jpeg),
    }  # fmt: skip


DECODE = """
import resource, sys, tracemalloc
from PIL import Image
from storage.errors import RefusedImage
from storage.media.images import decode_image
data = sys.stdin.buffer.read()
Image.init()
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
tracemalloc.start()
try:
    decode_image(data, max_bytes=10**6, max_pixels=64 * 10**6)
except RefusedImage as error:
    print(error.reason, used() - before, tracemalloc.get_traced_memory()[1] // 1024)
"""


@pytest.mark.parametrize("kind", list(bombs()))
def test_a_decompression_bomb_allocates_nothing(kind: str):
    """50,000 x 50,000 pixels would be 7.5 GB; the decoder may use a few MB (KiB below)."""
    answer = subprocess.run([sys.executable, "-c", DECODE], input=bombs()[kind], capture_output=True, timeout=60)
    reason, resident, traced = answer.stdout.decode().split()
    assert reason == "too_many_pixels", answer.stderr
    assert int(resident) < 20_000 and int(traced) < 10_000
