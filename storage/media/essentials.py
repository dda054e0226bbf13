"""PNG and JPEG files without the parts that viewers pass over: what stays is enough for the picture and its place.

Pillow refuses a whole picture for damage or size of a comment; libpng and libjpeg, which viewers use, do not.
"""

import struct
import zlib
from collections.abc import Iterator

from isal import isal_zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_KEPT = {b"tRNS": 1, b"eXIf": 8, b"cICP": 4, b"iCCP": 4, b"sRGB": 1, b"gAMA": 4, b"cHRM": 32}
"""Ancillary chunks that matter -> their least length (bytes); those with a bad CRC are passed over, as libpng does."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced PNG: first column and row, and steps to the next ones (pixels)."""
AT_ONCE = 2**20
"""Bytes that are unpacked at once."""
MOST_PROFILE = 2**22
"""Bytes of an unpacked profile, and of a text, that are read at most; those of RGB printers have a few millions."""
SOI, SOS, APP0, APP2, APP15, COM = 0xD8, 0xDA, 0xE0, 0xE2, 0xEF, 0xFE
"""JPEG markers (ISO/IEC 10918-1, table B.1)."""
JPEG_KEPT = {APP0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 14), APP2: (b"ICC_PROFILE\0", 14), 0xEE: (b"Adobe", 12)}
"""Application segments that matter: marker -> how the content starts and its least length (bytes), as in libjpeg."""


def essentials(data: bytes) -> bytes | None:
    """Return a PNG or JPEG without what viewers pass over; None for other formats, and when nothing goes."""
    if data.startswith(PNG_SIGNATURE):
        kept = PNG_SIGNATURE + b"".join(_chunks(data))
    elif data.startswith(b"\xff\xd8"):
        kept = b"\xff\xd8" + b"".join(jpeg_segments(data))
    else:
        return None
    return kept if kept != data else None


def check_png_pixels(data: bytes) -> None:
    """Raise ValueError for pixels whose CRC is bad, and for rows that are missing: Pillow sees neither, libpng both."""
    at, packed = len(PNG_SIGNATURE), list[bytes]()
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + size
        if (
            name == b"IDAT"
            and end + 4 <= len(data)
            and zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big")
        ):
            raise ValueError("a checksum of the pixels is wrong")
        packed += [data[at + 8 : end]] if name == b"IDAT" else []
        at = end + 4
    missing, stream = _png_bytes(data), isal_zlib.decompressobj()
    rest = b"".join(packed)
    try:
        while missing > 0 and not stream.eof and rest:
            missing -= len(stream.decompress(rest, AT_ONCE))
            rest = stream.unconsumed_tail
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub calls the class an instance
        raise ValueError(f"the pixels cannot be unpacked: {error}") from error
    if missing > 0 and stream.eof:  # Pillow sees a stream that is cut off
        raise ValueError(f"{missing} bytes of pixels are missing")


def _png_bytes(data: bytes) -> int:
    """Return how many bytes the unpacked pixels of a PNG have, by its header (PNG specification, 8.2 and 9)."""
    width, height, depth, color, interlaced = struct.unpack_from(">IIBBxxB", data, 16)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(color, 1)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    sides = ((len(range(y, height, down)), len(range(x, width, right))) for x, y, right, down in passes)
    return sum(rows * (1 + (columns * bits + 7) // 8) for rows, columns in sides if columns)


def _chunks(data: bytes) -> Iterator[bytes]:
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(data):
        [size] = struct.unpack_from(">I", data, at)
        chunk = data[at : at + 12 + size]
        name = chunk[4:8]
        ancillary = name[0] & 0x20
        if not ancillary or _is_kept(name, chunk[8:-4], zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")):
            yield chunk
        if name == b"IEND":
            return
        at += len(chunk)


def _is_kept(name: bytes, body: bytes, whole: bool) -> bool:
    if not whole or name not in PNG_KEPT or len(body) < PNG_KEPT[name]:
        return False
    if name != b"iCCP":
        return True
    try:
        return len(zlib.decompressobj().decompress(body[body.find(b"\0") + 2 :], MOST_PROFILE + 1)) <= MOST_PROFILE
    except zlib.error:
        return False


def jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Yield the segments of a JPEG before the first scan that matter, then the rest of the file."""
    at = 2
    while True:
        at = data.find(b"\xff", at)  # bytes between segments are passed over, as libjpeg does
        if at < 0 or at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker in (0x00, 0xFF, SOI):  # no marker, a fill byte, a second start
            at += 2 if marker == SOI else 1
            continue
        if marker == SOS:
            yield data[at:]
            return
        [size] = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + max(2, size)]
        start, least = JPEG_KEPT.get(marker, (b"", 0))
        optional = APP0 <= marker <= APP15 or marker == COM
        if not optional or (least and segment[4:].startswith(start) and len(segment) >= 4 + least):
            yield segment
        at += len(segment)
