"""BMP files with a palette, of which Pillow takes some as grey or as bits; what their run lengths skip, it loses."""

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

COLORS = 256
CORE_HEADER = 12
"""Size of the oldest header (bytes), which has shorter fields and colours of three bytes."""
RLE8, RLE4 = 1, 2
"""Compressions; what they skip has index 0."""


def with_plain_indices(image: ImageFile.ImageFile, data: bytes) -> ImageFile.ImageFile:
    """Return `image`, which Pillow opened on `data`; a BMP with a palette as one whose indices Pillow reads well.

    They are uncompressed, of 8 bits, and the palette is black where the file has none. The sides are checked before.
    Raises ValueError and IndexError for indices that are cut off.
    """
    if image.format != "BMP" or _bits(data) > 8:
        return image
    width, height = image.size
    tile, [header] = image.tile[0], struct.unpack_from("<I", data, 14)
    compression, used = (0, 0) if header == CORE_HEADER else struct.unpack_from("<I12xI", data, 30)
    bits, step = _bits(data), 3 if header == CORE_HEADER else 4
    palette = np.zeros((COLORS, 4), np.uint8)
    entries = np.frombuffer(data, np.uint8, step * min(COLORS, used or 1 << bits), 14 + header).reshape(-1, step)
    palette[: len(entries), :3] = entries[:, :3]
    if compression in (RLE8, RLE4):
        indices = _expanded(data, tile.offset, height, width, compression == RLE4)
    else:
        stride, row = (width * bits + 31) // 32 * 4, (width * bits + 7) // 8
        body = data[tile.offset : tile.offset + stride * height]
        packed = np.frombuffer(body.ljust(len(body) + stride - row, b"\0"), np.uint8, stride * height)
        indices = _unpacked(packed.reshape(height, stride), bits)[:, :width]
    upper_first = header != CORE_HEADER and data[25] == 0xFF  # the height is negative
    rows = np.pad(indices[:: -1 if upper_first else 1], ((0, 0), (0, -width % 4))).tobytes()
    start = 54 + 4 * COLORS
    plain = struct.pack("<2sI4xIIiiHHIIiiII", b"BM", start + len(rows), start, 40, width, height, 1, 8, *[0] * 6)
    return Image.open(io.BytesIO(plain + palette.tobytes() + rows), formats=["BMP"])


def _bits(data: bytes) -> int:
    """Return the bits of a pixel."""
    [header] = struct.unpack_from("<I", data, 14)
    return int.from_bytes(data[24:26] if header == CORE_HEADER else data[28:30], "little")


def _unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
    return (packed[..., None] >> shifts & np.uint8((1 << bits) - 1)).reshape(len(packed), -1)


def _expanded(data: bytes, at: int, height: int, width: int, pairs: bool) -> NDArray[np.uint8]:
    """Return the indices [h, w] of an RLE stream from `at` on, its lowest row first; `pairs`: two indices a byte."""
    indices, x, y = np.zeros((height, width), np.uint8), 0, 0
    bits = 4 if pairs else 8
    while (y, x) < (height - 1, width):
        count, value = data[at], data[at + 1]
        at += 2
        if count == 0 and value == 0:  # end of a row
            x, y = 0, y + 1
        elif count == 0 and value == 1:  # end of the picture
            break
        elif count == 0 and value == 2:  # a skip
            x, y, at = x + data[at], y + data[at + 1], at + 2
        else:
            size = -(-value * bits // 8) if count == 0 else 1
            run = _unpacked(np.frombuffer(data, np.uint8, size, at if count == 0 else at - 1)[None], bits)[0]
            run = np.resize(run, count) if count else run[:value]
            at += size + size % 2 if count == 0 else 0
            indices[y, x : x + len(run)] = run[: max(0, width - x)]
            x += len(run)
    return indices
