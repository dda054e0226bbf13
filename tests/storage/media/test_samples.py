"""Every combination of samples that Pillow, tifffile and imagecodecs write comes out as it was drawn, or is refused."""

import io
import itertools
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from storage.errors import RefusedImage
from storage.media.images import decode_image
from storage.media.samples import SUPPORTED

LIMITS = {"max_bytes": 10_000_000, "max_pixels": 1_000_000}
ROWS, COLUMNS = np.mgrid[:24, :40]
DRAWN = np.stack([COLUMNS * 6, ROWS * 11, (COLUMNS * 7 + ROWS * 13) % 256], -1).astype(np.uint8)
DRAWN[:3], DRAWN[3:5] = 255, 0
INFRARED = np.full((24, 40), 64, np.uint8)
HALF = np.full((24, 40), 128, np.uint8)
COLORS = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
BITS = range(1, 17)


def scaled(pixels: NDArray[Any], bits: int) -> NDArray[Any]:
    """8-bit values by the full range of `bits`."""
    return (pixels.astype(np.uint32) * (2**bits - 1) // 255).astype(np.uint8 if bits <= 8 else np.uint16)


def seen(pixels: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """What is left of 8-bit values after `scaled`."""
    return scaled(pixels, bits).astype(np.int64) * 255 // (2**bits - 1)


def as_rgb(grey: NDArray[Any]) -> NDArray[Any]:
    return np.stack([grey] * 3, -1)


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def packed(values: NDArray[Any], bits: int) -> bytes:
    """Rows of samples, most significant bit first, each row from a byte of its own (TIFF 6.0)."""
    rows = values.reshape(len(values), -1, 1).astype(np.uint32) >> np.arange(bits - 1, -1, -1, dtype=np.uint32) & 1
    return np.packbits(rows.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def decoded(data: bytes) -> NDArray[np.int64]:
    return decode_image(data, **LIMITS).astype(np.int64)


def error_of(data: bytes, wanted: NDArray[Any]) -> float:
    found = decoded(data)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).mean())


def refusal(data: bytes) -> str:
    with pytest.raises(RefusedImage) as caught:
        decode_image(data, **LIMITS)
    return caught.value.reason


def drawings(bits: int) -> dict[str, tuple[NDArray[Any], dict[str, Any], NDArray[Any]]]:
    """Samples to write, how, and what a viewer shows, by kind."""
    grey, most = DRAWN[..., 0], 2**bits - 1
    share = int(scaled(HALF, bits)[0, 0]) / most
    rgb, half = scaled(DRAWN, bits), scaled(HALF, bits)
    near = scaled(INFRARED, bits)
    unknown = {"photometric": "rgb", "extrasamples": ["unspecified"]}
    kinds: dict[str, tuple[NDArray[Any], dict[str, Any], NDArray[Any]]] = {
        "grey": (scaled(grey, bits), {"photometric": "minisblack"}, as_rgb(seen(grey, bits))),
        "white": (most - scaled(grey, bits), {"photometric": "miniswhite"}, as_rgb(seen(grey, bits))),
        "rgb": (rgb, {"photometric": "rgb"}, seen(DRAWN, bits)),
        "infrared": (np.dstack([rgb, near]), unknown, seen(DRAWN, bits)),
        "straight": (
            np.dstack([rgb, half]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, seen(DRAWN, bits) * share
        ),
        "premultiplied": (
            np.dstack([scaled(DRAWN // 2, bits), half]), {"photometric": "rgb", "extrasamples": ["assocalpha"]},
            seen(DRAWN // 2, bits),
        ),
        "grey premultiplied": (
            np.dstack([scaled(grey // 2, bits), half]), {"photometric": "minisblack", "extrasamples": ["assocalpha"]},
            as_rgb(seen(grey // 2, bits)),
        ),
    }  # fmt: skip
    if bits in (8, 16):
        inks = scaled(np.dstack([255 - DRAWN, np.zeros_like(HALF)]), bits)
        kinds["cmyk"] = (inks, {"photometric": "separated"}, DRAWN)
    if bits == 8:
        table = {"photometric": "palette", "colormap": COLORS.T.astype(np.uint16) * 257}
        kinds["palette"] = (grey, table, COLORS[grey])
    return kinds


ORDERS = [{"byteorder": order, "bigtiff": big} for order, big in itertools.product("<>", (False, True))]
BLOCKS = [{}, {"tile": (16, 16)}, {"rowsperstrip": 5}]
PACKINGS = [{}, *({"compression": kind, "predictor": p} for kind in ("zlib", "lzw", "zstd") for p in (False, True))]


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_tiff_of_whole_bytes_is_as_drawn(bits: int, planar: bool):
    for kind, (pixels, options, wanted) in drawings(bits).items():
        if planar and pixels.ndim == 2:
            continue
        layout = {"planarconfig": "separate" if planar else "contig"} if pixels.ndim == 3 else {}
        pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if planar else pixels
        for order, blocks, packing in itertools.product(ORDERS, BLOCKS, PACKINGS):
            data = tiff(pixels, **options, **layout, **order, **blocks, **packing)
            assert error_of(data, wanted) < 1, (kind, order, blocks, packing)


@pytest.mark.parametrize("bits", [*range(2, 8), *range(9, 16)])
def test_every_packed_tiff_is_as_drawn(bits: int):
    """tifffile writes packed samples of big-endian files with their bytes swapped, so those are packed here."""
    for kind, (pixels, options, wanted) in drawings(bits).items():
        contig = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
        data = tiff(pixels, bitspersample=bits, **options, **contig)
        assert error_of(data, wanted) < 1, kind
        rows = packed(pixels, bits)
        assert rows in data
        layout = tifffile.TiffFile(io.BytesIO(data)).pages[0]
        assert layout.bitspersample == bits


@pytest.mark.parametrize("white", [False, True])
def test_one_bit_tiff_of_every_compression(white: bool):
    wide = DRAWN[..., 0] > 127
    name = "miniswhite" if white else "minisblack"
    assert error_of(tiff(wide != white, photometric=name), as_rgb(wide * 255)) == 0
    for compression in (None, "group3", "group4", "tiff_ccitt", "packbits", "tiff_lzw", "tiff_adobe_deflate"):
        file = io.BytesIO()
        Image.fromarray(wide).save(file, "TIFF", compression=compression)
        assert error_of(file.getvalue(), as_rgb(wide * 255)) == 0, compression


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "RGBX", "PA"])
def test_tiff_of_pillow_in_every_compression(mode: str):
    image = Image.fromarray(DRAWN).convert(mode)
    wanted = np.asarray(image.convert("RGB"))
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"):
        file = io.BytesIO()
        image.save(file, "TIFF", compression=compression)
        assert error_of(file.getvalue(), wanted) < 1, compression


@pytest.mark.parametrize("tile", [{}, {"tile": (16, 16)}, {"rowsperstrip": 16}])
@pytest.mark.parametrize(
    ("kind", "options"), [("jpeg", {"level": 97}), ("jpeg2000", {"level": 0}), ("webp", {"level": 100})]
)
def test_tiff_of_compressed_pictures(kind: str, options: dict[str, int], tile: dict[str, Any]):
    smooth = Image.fromarray(DRAWN).resize((80, 48), Image.Resampling.BICUBIC)
    data = tiff(np.asarray(smooth), photometric="rgb", compression=kind, compressionargs=options, **tile)
    assert error_of(data, np.asarray(smooth)) < 4


def test_a_compressed_picture_of_other_sides_is_no_strip():
    """Decoders take the sides of the inner picture: its memory, and its rows as rows of another length."""
    data = bytearray(tiff(DRAWN, photometric="rgb", compression="jpeg"))
    frame = data.index(b"\xff\xc0")
    for height, width in ((48, 20), (60_000, 60_000)):
        data[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        assert refusal(bytes(data)) in ("truncated", "too_many_pixels")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_every_jpeg_2000_is_as_drawn(bits: int, signed: bool):
    rgb = scaled(DRAWN, bits)
    full = np.full((24, 40), 2**bits - 1, rgb.dtype)
    for samples, form in itertools.product((1, 3, 4), ("jp2", "j2k")):
        values = {1: rgb[..., 0], 3: rgb, 4: np.dstack([rgb, full // 2])}[samples]
        if signed:
            values = (values.astype(np.int32) - 2 ** (bits - 1)).astype(np.int8 if bits <= 8 else np.int16)
        data = imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(values), level=0, reversible=True, bitspersample=bits, codecformat=form
        )
        wanted = as_rgb(seen(DRAWN[..., 0], bits)) if samples == 1 else seen(DRAWN, bits)
        assert error_of(data, wanted) == 0, (samples, form)


@pytest.mark.parametrize("bits", [8, 16])
def test_every_png_of_libpng_is_as_drawn(bits: int):
    rgb, full = scaled(DRAWN, bits), scaled(np.full((24, 40), 255, np.uint8), bits)
    grey = rgb[..., 0]
    for values in (grey, np.dstack([grey, full]), rgb, np.dstack([rgb, full])):
        wanted = DRAWN if values.shape[-1] in (3, 4) else as_rgb(DRAWN[..., 0])
        assert error_of(imagecodecs.png_encode(np.ascontiguousarray(values)), wanted) < 1


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_avif_of_every_depth(bits: int):
    data = imagecodecs.avif_encode(scaled(DRAWN, bits), level=100, bitspersample=bits, pixelformat="444")
    assert error_of(data, DRAWN) < 2


@pytest.mark.parametrize("most", [1, 2, 15, 100, 127, 254, 255, 256, 1023, 4095, 65534, 65535])
def test_netpbm_of_every_range(most: int):
    values = DRAWN.astype(np.uint32) * most // 255
    wanted = values * 255 / most
    raw = values.astype(">u2" if most > 255 else "u1")
    text = lambda pixels: b" ".join(b"%d" % value for value in pixels.ravel())  # noqa: E731
    for kind, body, expected in (
        (b"P6", raw.tobytes(), wanted), (b"P3", text(values), wanted),
        (b"P5", raw[..., 0].tobytes(), as_rgb(wanted[..., 0])), (b"P2", text(values[..., 0]), as_rgb(wanted[..., 0])),
    ):  # fmt: skip
        assert error_of(b"%s 40 24 %d\n" % (kind, most) + body, expected) < 1, kind


@pytest.mark.parametrize(
    ("pixels", "options", "reason"),
    [
        (DRAWN[..., 0].view(np.int8), {}, "not_an_image"),
        (DRAWN.astype(np.int16), {"photometric": "rgb"}, "not_an_image"),
        (DRAWN.astype(np.float32), {"photometric": "rgb"}, "not_an_image"),
        (DRAWN.astype(np.uint32), {"photometric": "rgb"}, "not_an_image"),
        (DRAWN[..., 0].astype(np.complex64), {}, "not_an_image"),
        (DRAWN, {"photometric": "cielab"}, "unsupported_colors"),
        (np.dstack([DRAWN, HALF]), {"photometric": "minisblack", "planarconfig": "contig"}, "unsupported_samples"),
        (np.dstack([DRAWN] * 4), {"photometric": "rgb", "planarconfig": "contig"}, "unsupported_samples"),
        (DRAWN, {"photometric": "rgb", "compression": "jpegxl"}, "unsupported_compression"),
        (DRAWN, {"photometric": "rgb", "compression": "lerc"}, "unsupported_compression"),
    ],
)
def test_what_the_table_does_not_have_is_refused_by_name(pixels: NDArray[Any], options: dict[str, Any], reason: str):
    assert refusal(tiff(pixels, **options)) == reason


def test_three_grey_bands_are_rgb():
    assert error_of(tiff(DRAWN, photometric="minisblack", planarconfig="contig"), DRAWN) == 0


def test_the_documented_table_is_the_one_that_is_used():
    assert {model: samples for model, (samples, _) in SUPPORTED.items()} == {
        "grey": 1, "white_is_zero": 1, "rgb": 3, "palette": 1, "cmyk": 4, "ycbcr": 3,
    }  # fmt: skip
