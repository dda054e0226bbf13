"""JPEG 2000: samples of 1 to 16 bits as they stand in the file, which Pillow spoils beyond 8 bits and below.

The boxes around the codestream (ISO/IEC 15444-1, annex I) say what the samples mean; imagecodecs (OpenJPEG) decodes,
applies palettes, puts colours in order and converts sYCC.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from storage.errors import RefusedImage
from storage.media.samples import SUPPORTED, Alpha, ColorModel, Layout, check_layout, to_rgb

SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
CODESTREAM = b"\xff\x4f\xff\x51"
END = b"\xff\xd9"
COLOR_SPACES: dict[int, ColorModel] = {12: "cmyk", 16: "rgb", 17: "grey", 18: "rgb"}
"""Enumerated colour space -> colour model after decoding; 18 is sYCC."""
MOST_HEADER = 50_000
"""Bytes that hold the first segment (its size) of a codestream at most."""
ALPHAS: dict[int, Alpha] = {1: "straight", 2: "premultiplied"}
"""Type of a channel definition -> alpha."""


def is_jpeg2000(data: bytes) -> bool:
    """Return whether the first bytes are those of a JPEG 2000 file or codestream."""
    return data.startswith((SIGNATURE, CODESTREAM))


def read_jpeg2000(name: str, data: bytes, check_sides: Callable[[str, int, int], None]) -> NDArray[np.uint8]:
    """Return the picture, [h, w, 3] RGB.

    `check_sides` is called with name, width and height (pixels) before anything is decoded. Raises RefusedImage
    (unsupported_...) and what the libraries raise on damage.
    """
    boxes = dict(_boxes(data, 0, len(data))) if data.startswith(SIGNATURE) else {}
    stream = boxes[b"jp2c"] if boxes else data[:MOST_HEADER]
    if not stream.startswith(CODESTREAM):
        raise ValueError("no codestream")
    right, low, left, top = struct.unpack_from(">4I", stream, 8)
    width, height = right - left, low - top
    check_sides(name, width, height)
    [count] = struct.unpack_from(">H", stream, 40)
    parts = [tuple(part) for part in struct.iter_unpack("3B", stream[42 : 42 + 3 * count])]
    layout = _layout(name, boxes, parts)
    check_layout(name, layout)
    if layout.profile is not None:  # OpenJPEG applies any, even one of another number of colours
        data = data.replace(b"colr" + boxes[b"colr"], b"free" + boxes[b"colr"], 1)
    if END not in data[data.index(CODESTREAM) :]:  # coded data never holds it
        raise ValueError("no end of the picture")
    values: NDArray[Any] = imagecodecs.jpeg2k_decode(data, planar=False, numthreads=1)
    values = values.reshape(*values.shape[:2], -1)
    if values.shape != (height, width, layout.samples):
        raise ValueError(f"decoded to {values.shape}, expected {(height, width, layout.samples)}")
    if values.dtype.kind == "i":  # signed samples have their black at the lowest value
        values = values.astype(np.int32) + (1 << layout.bits - 1)
    return to_rgb(values.astype(np.uint16, copy=False) if layout.bits > 8 else values.astype(np.uint8), layout)


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of the boxes of the header; of colour boxes the last comes first, so the first counts."""
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:
            [size] = struct.unpack_from(">Q", data, begin)
            begin += 8
        stop = end if size == 0 else at + size
        if kind == b"jp2c":
            yield kind, data[begin : begin + MOST_HEADER]
            return
        if stop <= at or stop > end:
            return
        if kind == b"jp2h":
            yield from reversed(list(_boxes(data, begin, stop)))
        yield kind, data[begin:stop]
        at = stop


def _layout(name: str, boxes: dict[bytes, bytes], parts: list[tuple[int, ...]]) -> Layout:
    """Return what the samples mean; `parts` has depth and sampling of each component of the codestream."""
    space = _color_space(boxes.get(b"colr", b""))
    samples, depths = len(parts), {depth for depth, *_ in parts}
    if any(step != [1, 1] for _, *step in parts) and space != 18:
        raise RefusedImage("unsupported_layout", f"{name}: subsampled colours are read in sYCC only; save it as RGB")
    if b"pclr" in boxes:
        samples = boxes[b"pclr"][2]
        depths = set(boxes[b"pclr"][3 : 3 + samples])
    if len(depths) != 1:
        raise RefusedImage("unsupported_bits", f"{name}: samples of different depths; save them with 8 or 16 bits each")
    profile = boxes[b"colr"][3:] if space is None and b"colr" in boxes else None
    if space is None:
        inks = samples > 3 and profile is not None and profile[16:20] == b"CMYK"
        model: ColorModel | None = "grey" if samples < 3 else "cmyk" if inks else "rgb"
    else:
        model = COLOR_SPACES.get(space)
    if model is None:
        raise RefusedImage("unsupported_colors", f"{name}: colour space {space} is not read; save it as RGB")
    channels = list(struct.iter_unpack(">HHH", boxes.get(b"cdef", b"")[2:]))
    alpha = next(((number, ALPHAS[kind]) for number, kind, _ in channels if kind in ALPHAS), None)
    if alpha is not None and samples == SUPPORTED[model][0] + 1:
        alpha = samples - 1, alpha[1]  # OpenJPEG puts the colours first
    return Layout(model, (depths.pop() & 0x7F) + 1, samples, alpha, profile=profile)


def _color_space(colr: bytes) -> int | None:
    """Return the enumerated colour space; None without one, as with an ICC profile."""
    return struct.unpack_from(">I", colr, 3)[0] if colr[:1] == b"\1" else None
