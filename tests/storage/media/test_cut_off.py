"""A file that is cut off or overwritten is refused, or what is missing does not matter: no picture is half grey."""

import io
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from storage.errors import RefusedImage
from storage.media.images import decode_image

LIMITS = {"max_bytes": 10_000_000, "max_pixels": 1_000_000}
ROWS, COLUMNS = np.mgrid[:48, :64]
NOISE = np.random.default_rng(0).integers(0, 60, (48, 64, 3))
DRAWN = (NOISE + np.stack([COLUMNS * 3, ROWS * 4, COLUMNS + ROWS], -1)).astype(np.uint8)
YCBCR = np.asarray(Image.fromarray(DRAWN).convert("YCbCr"))
END = b"\xff\xd9"


def encoded(kind: str, pixels: NDArray[Any] = DRAWN, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def tiles(**options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, DRAWN, photometric="rgb", tile=(16, 16), **options)
    return file.getvalue()


def jpeg_by_colour() -> bytes:
    """A baseline JPEG with a scan for each colour."""
    parts = [encoded("JPEG", quality=95, pixels=plane) for plane in np.moveaxis(YCBCR, -1, 0)]
    head, scan = parts[0].index(b"\xff\xc0"), parts[0].index(b"\xff\xda")
    frame = parts[0][head : head + 2] + b"\0\x11" + parts[0][head + 4 : head + 9]
    frame += b"\3\1\x11\0\2\x11\0\3\x11\0" + parts[0][head + 13 : scan]
    scans = [b"\xff\xda\0\x08\1" + bytes([1 + i]) + part[scan + 6 : -2] for i, part in enumerate(parts)]
    return parts[0][:head] + frame + b"".join(scans) + END


FILES = {
    "jpeg": encoded("JPEG"),
    "jpeg by colour": jpeg_by_colour(),
    "jpeg progressive": encoded("JPEG", progressive=True),
    "jpeg of several pictures": encoded("MPO", save_all=True, append_images=[Image.fromarray(DRAWN[::-1])]),
    "png": encoded("PNG"),
    "jpeg 2000": encoded("JPEG2000"),
    "tiff of jpegs": tiles(compression="jpeg"),
    "tiff lzw": encoded("TIFF", compression="tiff_lzw"),
    "tiff deflate": tiles(compression="zlib"),
}
UNCHECKED = {
    "gif": encoded("GIF"),
    "webp": encoded("WEBP"),
    "avif": encoded("AVIF"),
    "bmp": encoded("BMP"),
    "ppm": encoded("PPM"),
    "tiff": encoded("TIFF"),
}
"""Formats whose data has neither checksum nor end: what zeros replace may be pixels."""


def places(size: int) -> list[int]:
    return sorted({size * part // 25 for part in range(1, 25)} | {size - part for part in (1, 2, 4, 8, 16)})


def is_whole_or_refused(data: bytes, whole: bytes) -> bool:
    try:
        found = decode_image(data, **LIMITS).astype(np.int64)
    except RefusedImage:
        return True
    return bool(np.abs(found - decode_image(whole, **LIMITS)).mean() < 1)


@pytest.mark.filterwarnings("ignore:.*malformed MPO:UserWarning")
@pytest.mark.parametrize("kind", [*FILES, *UNCHECKED])
def test_a_file_cut_off_is_refused_or_whole(kind: str):
    whole = (FILES | UNCHECKED)[kind]
    for place in places(len(whole)):
        assert is_whole_or_refused(whole[:place], whole), place


@pytest.mark.filterwarnings("ignore:.*malformed MPO:UserWarning")
@pytest.mark.parametrize("kind", [kind for kind in FILES if "several" not in kind])
def test_a_file_whose_end_is_zeros_is_refused_or_whole(kind: str):
    """A power cut or a failed upload leaves the full size, and zeros that were never written over."""
    whole = FILES[kind]
    for place in places(len(whole)):
        assert is_whole_or_refused(whole[:place] + bytes(len(whole) - place), whole), place


@pytest.mark.parametrize("restart", [0, 1])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_a_jpeg_that_ends_too_early_is_refused(subsampling: str, restart: int):
    """Cameras that lose a part of a picture still write its end; libjpeg fills what is missing with grey."""
    whole = encoded("JPEG", subsampling=subsampling, restart_marker_rows=restart)
    start = whole.index(b"\xff\xda") + 16
    assert is_whole_or_refused(whole, whole)
    for place in range(start, len(whole) - 200, 150):
        with pytest.raises(RefusedImage) as caught:
            decode_image(whole[:place].rstrip(b"\xff") + END, **LIMITS)
        assert caught.value.reason == "truncated"


FLAT = np.where(ROWS[..., None] < 16, DRAWN, 128).astype(np.uint8)


@pytest.mark.parametrize("pixels", [DRAWN, FLAT, DRAWN[..., 0]], ids=["colour", "flat below", "grey"])
@pytest.mark.parametrize("restart", [0, 1])
def test_a_progressive_jpeg_that_lacks_a_scan_or_its_end_is_refused(pixels: NDArray[Any], restart: int):
    check_cuts(encoded("JPEG", pixels=pixels, progressive=True, restart_marker_rows=restart))


def test_a_jpeg_by_colour_that_lacks_a_scan_or_its_end_is_refused():
    check_cuts(FILES["jpeg by colour"])
    assert np.abs(decode_image(FILES["jpeg by colour"], **LIMITS).astype(np.int64) - DRAWN).mean() < 4


def check_cuts(whole: bytes) -> None:
    wanted = decode_image(whole, **LIMITS)
    assert np.array_equal(decode_image(whole[:-2] + b"bytes behind a scan" + END, **LIMITS), wanted)
    refused = [place for place in range(whole.index(b"\xff\xda") + 10, len(whole) - 2, len(whole) // 30)
               if not is_whole_or_refused(whole[:place].rstrip(b"\xff") + END, whole)]  # fmt: skip
    assert refused == []


@pytest.mark.parametrize("options", [{"subsampling": "4:2:0"}, {"subsampling": "4:4:4"}, {"pixels": DRAWN[..., 0]}])
def test_a_jpeg_that_lacks_what_stood_between_two_restarts_is_refused(options: dict[str, Any]):
    """What follows moves up, and the last rows are grey."""
    for blocks in (1, 2):
        whole = encoded("JPEG", restart_marker_blocks=blocks, **options)
        decode_image(whole, **LIMITS)
        third, fourth = whole.index(b"\xff\xd2"), whole.index(b"\xff\xd3")
        for data in (whole[:third] + whole[fourth:], whole[:third] + whole[third + 2 :]):
            with pytest.raises(RefusedImage) as caught:
                decode_image(data, **LIMITS)
            assert caught.value.reason == "truncated"


def test_arithmetic_coding_which_hides_a_cut_is_refused_by_name():
    for kind, frame, arithmetic in (("jpeg", 0xC0, 0xC9), ("jpeg progressive", 0xC2, 0xCA)):
        data = FILES[kind].replace(bytes((0xFF, frame, 0, 17)), bytes((0xFF, arithmetic, 0, 17)))
        with pytest.raises(RefusedImage) as caught:
            decode_image(data, **LIMITS)
        assert caught.value.reason == "unsupported_compression"


@pytest.mark.parametrize("side", [1, 7, 16, 33])
def test_a_whole_jpeg_is_never_called_too_short(side: int):
    """Flat pictures need the fewest bits, noise the most."""
    noise = np.random.default_rng(side).integers(0, 256, (side, side + 1, 3), np.uint8)
    for pixels in (noise, np.zeros_like(noise), np.full_like(noise, 255), noise[..., 0]):
        for quality, optimize, progressive in (
            (100, True, False),
            (75, False, False),
            (5, True, False),
            (75, True, True),
        ):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=quality, optimize=optimize, progressive=progressive)
            with Image.open(file) as image:
                wanted = np.asarray(image.convert("RGB"))
            for padded in (b"", bytes(100), END, file.getvalue()):
                assert np.array_equal(decode_image(file.getvalue() + padded, **LIMITS), wanted)


def test_a_png_with_a_wrong_checksum_of_its_pixels_is_refused():
    data = bytearray(FILES["png"])
    data[data.index(b"IEND") - 5] ^= 1
    with pytest.raises(RefusedImage) as caught:
        decode_image(bytes(data), **LIMITS)
    assert caught.value.reason == "truncated"
