"""What decoding a file costs at most, by its headers: only a file whose cost is known is decoded without a budget."""

import struct
from collections.abc import Iterator

from storage.media.essentials import PNG_SIGNATURE
from storage.media.jpeg import FRAMES

MAX_PIXEL_PASSES = 1_000_000_000
"""Pixels times passes over them, at most: 64 megapixels in 7 scans, about a second of CPU time."""
MAX_HEADER_BYTES = 256 * 1024
"""Bytes of metadata, at most."""
MAX_EXIF_BYTES = 16 * 1024
"""Bytes of EXIF data, at most: each of its entries may name the same bytes again, so the cost grows with the square."""
MAX_PARTS = 4096
"""Segments of a JPEG header or chunks of a PNG, at most."""
PNG_PASSES = JPEG_PASSES = 2
"""An interlaced PNG is put together in a second pass; a JPEG of several scans is decoded twice."""
JPEG_SIZED = frozenset([*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE]) - {0xC8}
"""Markers that a size follows for every reader; behind others readers go on at different places."""
JPEG_SCAN, JPEG_APP1, JPEG_APP2 = 0xDA, 0xE1, 0xE2


def is_cheap(data: bytes) -> bool:
    """Return whether the headers prove that decoding the file costs a second or two, and memory by its pixels.

    It is so for JPEG and PNG files as cameras and programs write them. Damage does not matter: what cannot be read here
    is not proven. The proof itself costs milliseconds.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _is_cheap_jpeg(data)
        return data.startswith(PNG_SIGNATURE) and _is_cheap_png(data)
    except struct.error:
        return False  # cut off


def _is_cheap_jpeg(data: bytes) -> bool:
    pixels = exif = 0
    for parts, (marker, start, size) in enumerate(_jpeg_segments(data)):
        if parts >= MAX_PARTS or start > MAX_HEADER_BYTES:
            return False
        if marker == JPEG_SCAN:
            # Inside of coded data 0xFF is never followed by 0xDA, so this counts every scan.
            scans = data.count(b"\xff\xda", start - 4)
            passes = pixels * scans * (JPEG_PASSES if scans > 1 else 1)
            return 0 < passes <= MAX_PIXEL_PASSES and exif <= MAX_EXIF_BYTES
        if marker in FRAMES:
            height, width = struct.unpack_from(">xHH", data, start)
            pixels = max(pixels, height * width)
        elif marker == JPEG_APP1:
            exif += size
        elif marker == JPEG_APP2 and data.startswith(b"MPF\0", start):
            return False  # more images follow
    return False


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and size (bytes) of the segments until something else follows."""
    place = 2
    while data[place : place + 1] == b"\xff":
        marker, size = struct.unpack_from(">xBH", data, place)
        if marker not in JPEG_SIZED:
            return
        yield marker, place + 4, size - 2
        place += 2 + size


def _is_cheap_png(data: bytes) -> bool:
    width, height, depth = struct.unpack_from(">IIB", data, 16)
    place, parts, header, exif = len(PNG_SIGNATURE), 0, 0, 0
    while place < len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        place, parts = place + 12 + size, parts + 1
        exif += size if kind in (b"eXIf", b"tEXt") else 0
        header += size if kind != b"IDAT" else 0
        if kind in (b"zTXt", b"iTXt") or parts > MAX_PARTS:
            return False  # compressed text may hold EXIF data too
    passes = PNG_PASSES * (2 if depth == 16 else 1)
    return width * height * passes <= MAX_PIXEL_PASSES and header <= MAX_HEADER_BYTES and exif <= MAX_EXIF_BYTES
