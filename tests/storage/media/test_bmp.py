"""BMP files with a palette: every depth, both compressions, and what a file may leave out."""

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from storage.errors import RefusedImage
from storage.media.images import decode_image

LIMITS = {"max_bytes": 10_000_000, "max_pixels": 1_000_000}
COLORS = np.random.default_rng(2).integers(0, 256, (16, 3)).astype(np.uint8)
PALETTES = {
    "colours": COLORS,
    "black and white": np.array([[0] * 3, [255] * 3], np.uint8),
    "white and black": np.array([[255] * 3, [0] * 3], np.uint8),
    "dark greys": np.repeat(np.arange(16, dtype=np.uint8)[:, None], 3, 1),
}
SHORT, LONG = 12, 124
"""Sizes of headers (bytes)."""


def bmp(body: bytes, size: tuple[int, int], bits: int, palette: NDArray[Any], compression: int = 0, head: int = 40):
    width, height = size
    if head == SHORT:
        header = struct.pack("<IHHHH", head, width, height, 1, bits)
        table = palette[:, ::-1].tobytes().ljust(3 << bits, b"\0")
    else:
        header = struct.pack("<IiiHHIIiiII", head, width, height, 1, bits, compression, 0, 0, 0, len(palette), 0)
        header, table = header.ljust(head, b"\0"), np.insert(palette[:, ::-1], 3, 0, 1).tobytes()
    start = 14 + len(header) + len(table)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + table + body


def rows_of(indices: NDArray[Any], bits: int) -> bytes:
    """Uncompressed rows, the lowest first."""
    single = indices[::-1, :, None] >> np.arange(bits - 1, -1, -1, dtype=np.uint8) & 1
    packed = np.packbits(single.reshape(len(indices), -1), 1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 4))).tobytes()


@pytest.mark.parametrize("kind", PALETTES)
@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("head", [SHORT, 40, LONG])
def test_palettes_of_every_depth(kind: str, bits: int, head: int):
    palette = PALETTES[kind][: 1 << bits]
    indices = np.random.default_rng(0).integers(0, len(palette), (11, 13)).astype(np.uint8)
    body = rows_of(indices, bits)
    assert np.array_equal(decode_image(bmp(body, (13, 11), bits, palette, head=head), **LIMITS), palette[indices])
    if head != SHORT:
        upper = bmp(rows_of(indices[::-1], bits), (13, -11), bits, palette, head=head)
        assert np.array_equal(decode_image(upper, **LIMITS), palette[indices]), "the upper row first"
    with pytest.raises(RefusedImage) as caught:
        decode_image(bmp(body[:-5], (13, 11), bits, palette, head=head), **LIMITS)
    assert caught.value.reason == "truncated"


def test_an_index_beyond_the_palette_is_black():
    found = decode_image(bmp(bytes([0, 1, 2, 255]), (4, 1), 8, COLORS[:2]), **LIMITS)
    assert found.tolist() == [[*COLORS[:2].tolist(), [0] * 3, [0] * 3]]


SKIPPING = b"\x02\x01\0\2\1\1\1\3\0\0\x04\x05\0\1"
COMPRESSED = {
    "runs": (1, b"\x04\x01\0\0\x04\x02\0\0\x04\x03\0\1", ["3333", "2222", "1111"]),
    "single values": (1, b"\0\3\1\2\3\0\1\7\0\0\0\4\4\3\2\1\0\0\4\5\0\1", ["5555", "4321", "1237"]),
    "an empty row": (1, b"\x04\x01\0\0\0\0\x04\x02\0\1", ["2222", "0000", "1111"]),
    "a short row": (1, b"\2\1\0\0\x04\2\0\0\4\3\0\1", ["3333", "2222", "1100"]),
    "rows left out": (1, b"\x04\x01\0\1", ["0000", "0000", "1111"]),
    "a skip": (1, SKIPPING, ["5555", "0003", "1100"]),
    "a run beyond the row": (1, b"\x09\x01\0\0\x04\2\0\0\4\3\0\1", ["3333", "2222", "1111"]),
    "no end behind the last pixel": (1, b"\x04\x01\0\0" * 2 + b"\x04\x01", ["1111"] * 3),
    "pairs": (2, b"\x04\x12\0\0\0\3\x34\x50\1\x60\0\0\3\x78\0\1", ["7870", "3456", "1212"]),
    "a skip between pairs": (2, b"\1\x10\0\2\1\1\2\x34\0\0\4\x55\0\1", ["5555", "0034", "1000"]),
}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_run_lengths(kind: str):
    """What the file leaves out has index 0, as in OpenCV and GIMP."""
    compression, body, wanted = COMPRESSED[kind]
    data = bmp(body, (4, 3), 8 // compression, COLORS, compression)
    indices = np.array([[int(digit) for digit in row] for row in wanted])
    assert np.array_equal(decode_image(data, **LIMITS), COLORS[indices])


def test_run_lengths_that_are_cut_off_are_refused():
    for place in range(len(SKIPPING) - 2):
        with pytest.raises(RefusedImage) as caught:
            decode_image(bmp(SKIPPING[:place], (4, 3), 8, COLORS, 1), **LIMITS)
        assert caught.value.reason == "truncated"
