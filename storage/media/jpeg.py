"""JPEG: what its segments say, and whether any of its coded data is missing.

libjpeg fills what is missing with grey and says so by a warning only, which Pillow does not pass on. A picture in one
scan is therefore decoded without its end, so that a decoder that wants more data stops. One of several scans
(progressive, or a scan for each colour) is decoded twice, the second time with other bytes behind the data of each
scan, which a scan that is whole does not read.
"""

import io
import itertools
import re
import struct
from collections.abc import Iterator

from PIL import Image

from storage.errors import RefusedImage
from storage.media.essentials import APP2, JPEG_KEPT, SOS, jpeg_segments

FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
SEQUENTIAL, PROGRESSIVE, ARITHMETIC = (0xC0, 0xC1), 0xC2, (0xC9, 0xCA)
"""Markers of frames: all, those of baseline and extended JPEG, of progressive JPEG, and with arithmetic coding."""
EOI, DRI = 0xD9, 0xDD
MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
"""What ends coded data: neither a stuffed 0xFF nor a restart (ISO/IEC 10918-1, B.1.1)."""
RESTART = re.compile(rb"\xff[\xd0-\xd7]")
SPARE = 32
"""Bytes that a decoder may look at behind the last pixel."""
OTHER = bytes(range(254, 0, -4))
BEHIND = b"".join(OTHER + bytes((0xFF, restart)) for restart in range(0xD0, 0xD8)) + OTHER
"""Bytes for a scan that wants more; one of the restarts is the one that it waits for."""
COEFFICIENTS = range(64)
"""Places of a block's coefficients, in the order of the file."""


def check_jpeg_kind(name: str, data: bytes) -> None:
    """Raise RefusedImage (unsupported_bits, unsupported_compression) for a JPEG of a kind that viewers do not show."""
    frame, _ = jpeg_frame(data)
    if not frame:
        return
    if frame[1] in ARITHMETIC:
        text = f"{name}: a JPEG with arithmetic coding, which hides that a file is cut off; save it as plain JPEG"
        raise RefusedImage("unsupported_compression", text)
    if frame[1] not in (*SEQUENTIAL, PROGRESSIVE):
        raise RefusedImage("unsupported_compression", f"{name}: lossless or hierarchical JPEG; save it as plain JPEG")
    if frame[4] != 8:
        raise RefusedImage("unsupported_bits", f"{name}: a JPEG of {frame[4]} bits; save it with 8, or as PNG with 16")


def jpeg_that_ends(data: bytes) -> bytes:
    """Return a JPEG so that a decoder notices pixels that are missing before its end, which it fills with grey else.

    It stops for want of data if few zeros stand there in place of the end. Those of several scans need their end, which
    stays, and `check_scans` looks at them. Raises ValueError for a picture without an end, as when zeros were written
    over it.
    """
    frame, scan = jpeg_frame(data)
    end = scan.find(b"\xff\xd9")
    if scan and end < 0:
        raise ValueError("no end of the picture")
    return data[: len(data) - len(scan) + end] + bytes(SPARE) if is_one_scan(frame, scan) else data


def jpeg_frame(data: bytes) -> tuple[bytes, bytes]:
    """Return the frame's segment of a JPEG, and the file from its first scan on; empty if they do not stand there."""
    segments = list(jpeg_segments(data))
    frame = next((segment for segment in segments if segment[1] in FRAMES and len(segment) > 9), b"")
    return frame, segments[-1] if segments and segments[-1][1] == SOS else b""


def is_one_scan(frame: bytes, scan: bytes) -> bool:
    """Return whether the first scan holds all components, whole."""
    return frame[1:2] in [bytes([marker]) for marker in SEQUENTIAL] and scan[4:5] == frame[9:10]


def check_scans(image: Image.Image, data: bytes) -> None:
    """Raise ValueError if `data`, which was decoded to `image`, lacks a scan, the end of one, or restarts."""
    frame, scan = jpeg_frame(data)
    if not frame:
        return
    if is_one_scan(frame, scan):  # `jpeg_that_ends` has seen to its end
        if len(RESTART.findall(scan, 0, scan.find(b"\xff\xd9"))) < _restarts(frame, data):
            raise ValueError("a part of the picture between two restarts is missing")
        return
    scans = list(_scans(data, len(data) - len(scan)))
    missing = {(component, place) for component in frame[10::3] for place in COEFFICIENTS}
    missing.difference_update(*(_completed(header, frame[1] in SEQUENTIAL) for header, _ in scans))
    if missing:
        raise ValueError(f"a scan is missing: {len(missing)} coefficients of the blocks are not complete")
    ends = [0, *(end for _, end in scans), len(data)]
    longer = BEHIND.join(data[start:end] for start, end in itertools.pairwise(ends))
    with Image.open(io.BytesIO(longer), formats=["JPEG"]) as again:
        if again.tobytes() != image.tobytes():
            raise ValueError("a scan ends too early")


def _restarts(frame: bytes, data: bytes) -> int:
    """Return how many restarts a scan of all components has (ISO/IEC 10918-1, A.2 and B.2.4.4)."""
    sizes = [segment for segment in jpeg_segments(data) if segment[1] == DRI and len(segment) == 6]
    interval = int.from_bytes(sizes[-1][4:], "big") if sizes else 0
    height, width, count = struct.unpack_from(">HHB", frame, 5)
    steps = frame[11::3][:count] if count > 1 else b"\x11"
    across = -(-width // (8 * max(step >> 4 for step in steps)))
    down = -(-height // (8 * max(step & 15 for step in steps)))
    return (across * down - 1) // interval if interval else 0


def jpeg_profile(data: bytes) -> bytes | None:
    """Return the ICC profile of a JPEG, wherever its segments stand before the first scan; None unless all are there.

    Pillow passes over those behind the frame's segment.
    """
    start, _ = JPEG_KEPT[APP2]
    parts = sorted(part[4 + len(start) :] for part in jpeg_segments(data) if part[1] == APP2)
    whole = parts and [number for number, *_ in parts] == list(range(1, parts[0][1] + 1))
    return b"".join(part[2:] for part in parts) if whole else None


def _completed(header: bytes, sequential: bool) -> set[tuple[int, int]]:
    """Return component and place of the coefficients whose last bits a scan holds (ISO/IEC 10918-1, B.2.3)."""
    first, last, bits = header[-3:]
    places = COEFFICIENTS if sequential else range(first, last + 1)
    return {(component, place) for component in header[1:-3:2] for place in places if sequential or not bits & 15}


def _scans(data: bytes, at: int) -> Iterator[tuple[bytes, int]]:
    """Yield the content of each scan's header, and where its data ends; the first one starts `at`."""
    marker = SOS
    while marker != EOI:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        end = MARKER.search(data, at + 2 + size)
        if end is None:
            return
        if marker == SOS:
            yield data[at + 4 : at + 2 + size], end.start()
        at, marker = end.end() - 2, data[end.end() - 1]
