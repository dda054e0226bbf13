"""Which files are decoded without a budget: those whose headers prove what they cost, and no others."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from storage.media.decode_cost import is_cheap

COLOR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOR).save(file, kind, **options)
    return file.getvalue()


def png(*chunks: tuple[bytes, bytes], size: tuple[int, int] = (32, 32)) -> bytes:
    """A grey PNG with more chunks before its pixels, which are missing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


JPEG = encoded("JPEG", progressive=True)
LAST_SCAN = JPEG.rindex(b"\xff\xda")
FIRST_SCAN = JPEG.index(b"\xff\xda")
SIZE_FIELD = JPEG.index(b"\xff\xc2") + 5
EXIF = b"\xff\xe1" + struct.pack(">H", 9002) + b"Exif\0\0" + bytes(8994)
FRAME_AND_SCAN = b"\xff\xc0\0\x0b\x08\0\1\0\1\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0"
"""Of an image of one pixel."""
HIDDEN = b"\xff\xe5" + struct.pack(">H", 2 + len(FRAME_AND_SCAN)) + FRAME_AND_SCAN
"""The same in a segment that decoders pass over; behind two bytes more, those who miss its start find it."""
CHEAP = {
    "jpeg": encoded("JPEG"),
    "progressive": JPEG,
    "optimized": encoded("JPEG", optimize=True, quality=100, subsampling=0),
    "profile": encoded("JPEG", icc_profile=bytes(3000)),
    "exif of a camera": JPEG[:2] + EXIF + JPEG[2:],
    "png": encoded("PNG"),
    "text": png((b"tEXt", b"Author\0me")),
    "64 megapixels": png(size=(8000, 8000)),
}
COSTLY = {
    "many scans": JPEG[:-2] + JPEG[LAST_SCAN:-2] * 2_000_000 + JPEG[-2:],
    "large, and more scans than usual": JPEG[:SIZE_FIELD] + struct.pack(">HH", 8000, 8000) + JPEG[SIZE_FIELD + 4 : -2]
    + JPEG[LAST_SCAN:-2] * 20,
    "much exif": JPEG[:2] + EXIF * 3 + JPEG[2:],
    "many segments": JPEG[:2] + b"\xff\xe5\0\3x" * 5000 + JPEG[2:],
    "no scan": JPEG[:FIRST_SCAN],
    "bytes between segments": JPEG[:2] + b"xx" + JPEG[2:],
    **{f"another picture behind {marker:x}": JPEG[:2] + bytes((0xFF, marker, 0, 6)) + HIDDEN + JPEG[2:]
       for marker in (0x01, 0xC8, *range(0xD0, 0xDA), 0xDE, 0xDF, *range(0xF0, 0xFE), 0xFF)},
    "scan before the size": JPEG[:2] + JPEG[FIRST_SCAN:],
    "many images": encoded("MPO", save_all=True, append_images=[Image.fromarray(COLOR)]),
    "many chunks": png(*[(b"abCd", b"")] * 5000),
    "large chunk": png((b"abCd", bytes(300_000))),
    "compressed text": png((b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(1000)))),
    "much exif in a png": png((b"eXIf", bytes(20_000))),
    "cut off": png()[:20],
    "words": b"not an image",
    **{kind: encoded(kind) for kind in ("GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF")},
}  # fmt: skip


@pytest.mark.parametrize("name", CHEAP)
def test_ordinary_files_are_decoded_by_threads(name: str) -> None:
    assert is_cheap(CHEAP[name])


@pytest.mark.parametrize("name", COSTLY)
def test_nothing_else_is_called_cheap(name: str) -> None:
    assert not is_cheap(COSTLY[name])


@pytest.mark.parametrize("whole", [JPEG, encoded("PNG")], ids=["jpeg", "png"])
def test_damage_never_raises(whole: bytes) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        data = bytearray(whole[: rng.integers(1, len(whole))])
        for place in rng.integers(0, min(len(data), 200), 5):
            data[place] = rng.integers(0, 256)
        assert is_cheap(bytes(data)) in (True, False)
