"""A picture with a colour profile is committed in the sRGB that viewers show; the wanted colours are computed here."""

import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from storage.errors import RefusedImage
from storage.media.images import decode_image

LIMITS = {"max_bytes": 10_000_000, "max_pixels": 1_000_000}
ROWS, COLUMNS = np.mgrid[:24, :40]
DRAWN = np.stack([COLUMNS * 6, ROWS * 11, (COLUMNS * 7 + ROWS * 13) % 256], -1).astype(np.uint8)
GREY = DRAWN[..., 0]
WHITE = (0.3127, 0.329)
SRGB = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
ADOBE = (0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3 = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
PROFILES = {
    "adobe": (imagecodecs.cms_profile("adobergb"), ADOBE, 563 / 256),
    "wide": (imagecodecs.cms_profile("rgb", whitepoint=WHITE, primaries=P3, gamma=1.8), P3, 1.8),
    "linear": (imagecodecs.cms_profile("rgb", whitepoint=WHITE, primaries=SRGB, gamma=1.0), SRGB, 1.0),
}
GREY_PROFILE = imagecodecs.cms_profile("gray", whitepoint=(0.3457, 0.3585), gamma=1.8)


def to_xyz(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    """The matrix of primaries with the white of sRGB (IEC 61966-2-1, SMPTE RP 177)."""
    columns = np.array([(x, y, 1 - x - y) for x, y in zip(primaries[::2], primaries[1::2], strict=True)]).T
    white = np.array([WHITE[0], WHITE[1], 1 - sum(WHITE)]) / WHITE[1]
    return columns * np.linalg.solve(columns, white)


def curve(linear: NDArray[Any]) -> NDArray[Any]:
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def uncurve(shares: NDArray[Any]) -> NDArray[Any]:
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


def shown(primaries: tuple[float, ...], gamma: float | None, colors: NDArray[Any] = DRAWN) -> NDArray[Any]:
    """Colours of other primaries and exponent (None: the curve of sRGB) in sRGB."""
    linear = uncurve(colors / 255) if gamma is None else (colors / 255) ** gamma
    return curve(linear @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T)


def encoded(pixels: NDArray[Any], kind: str, mode: str | None = None, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, kind, **options)
    return file.getvalue()


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: bytes, pixels: NDArray[Any] = DRAWN) -> bytes:
    data = imagecodecs.png_encode(np.ascontiguousarray(pixels))
    return data[:33] + b"".join(chunks) + data[33:]


def iccp(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


def jp2(profile: bytes, pixels: NDArray[Any] = DRAWN) -> bytes:
    data = imagecodecs.jpeg2k_encode(np.ascontiguousarray(pixels), level=0, reversible=True, codecformat="jp2")
    at = data.index(b"\0\0\0\x0fcolr\1")
    old = data[at : at + 15]
    start = data.index(b"jp2h") - 4
    [size] = struct.unpack_from(">I", data, start)
    new = struct.pack(">I", 11 + len(profile)) + b"colr\2\0\0" + profile
    assert data.count(old) == 1
    head = struct.pack(">I", size + len(new) - len(old))
    return data[:start] + head + data[start + 4 :].replace(old, new)


def error_of(data: bytes, wanted: NDArray[Any]) -> float:
    found = decode_image(data, **LIMITS).astype(np.int64)
    wanted = wanted if wanted.ndim == 3 else wanted[..., None]
    assert found.shape == (24, 40, 3)
    return float(np.abs(found - wanted).mean())


@pytest.mark.parametrize("kind", PROFILES)
def test_profiles_of_every_format_are_applied(kind: str):
    profile, primaries, gamma = PROFILES[kind]
    wanted = shown(primaries, gamma)
    assert np.abs(wanted - DRAWN).mean() > 5
    wide = DRAWN.astype(np.uint16) * 257
    named = {"icc_profile": profile}
    for data in (
        encoded(DRAWN, "PNG", **named), encoded(DRAWN, "WEBP", lossless=True, **named), encoded(DRAWN, "TIFF", **named),
        png(iccp(profile), pixels=wide), tiff(wide, photometric="rgb", iccprofile=profile), jp2(profile),
        jp2(profile, wide),
        png(chunk(b"tEXt", b"a\0b")[:-1] + b"?", iccp(profile)),
    ):  # fmt: skip
        assert error_of(data, wanted) < 1, data[:4]
    for data in (
        encoded(DRAWN, "JPEG", quality=100, subsampling=0, **named),
        encoded(DRAWN, "AVIF", quality=100, subsampling="4:4:4", **named),
    ):
        assert error_of(data, wanted) < 3, data[:12]
    half = np.full((24, 40), 128, np.uint8)
    assert error_of(encoded(np.dstack([DRAWN, half]), "PNG", **named), wanted * (128 / 255)) < 1, "alpha lies above"
    alpha = {"photometric": "rgb", "extrasamples": ["assocalpha"], "iccprofile": profile}
    assert error_of(tiff(np.dstack([DRAWN // 2, half]), **alpha), wanted * (128 / 255)) < 1.5, "also multiplied before"
    assert error_of(tiff(np.dstack([wide // 2, half.astype(np.uint16) * 256]), **alpha), wanted / 2) < 1
    assert error_of(encoded(GREY, "PNG", **named), curve((GREY / 255) ** gamma)) < 1, "grey is equal RGB"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WHITE", "JPEG2000"])
def test_grey_with_its_own_curve(kind: str):
    if kind == "WHITE":
        data = tiff(255 - GREY, photometric="miniswhite", iccprofile=GREY_PROFILE)
    elif kind == "JPEG2000":
        data = jp2(GREY_PROFILE, GREY)
    else:
        data = encoded(GREY, kind, icc_profile=GREY_PROFILE, **({"quality": 100} if kind == "JPEG" else {}))
    assert error_of(data, curve((GREY / 255) ** 1.8)) < 1


def test_dark_linear_colours_keep_all_their_bits():
    dark = np.stack([COLUMNS * 20, ROWS * 30, ROWS + COLUMNS], -1).astype(np.uint16)
    profile, wanted = PROFILES["linear"][0], curve(dark / 65535)
    assert error_of(png(iccp(profile), pixels=dark), wanted) < 1
    assert error_of(tiff(dark, photometric="rgb", iccprofile=profile), wanted) < 1
    assert (
        error_of(tiff(dark >> 4, photometric="rgb", iccprofile=profile, bitspersample=12), curve((dark >> 4) / 4095))
        < 1
    )


def test_a_large_profile_is_applied():
    profile = PROFILES["wide"][0]
    large = struct.pack(">I", 1_500_000) + profile[4:].ljust(1_500_000 - 4, b"\0")
    for kind in ("PNG", "TIFF"):
        assert error_of(encoded(DRAWN, kind, icc_profile=large), shown(P3, 1.8)) < 1


@pytest.mark.parametrize("progressive", [False, True])
def test_a_profile_of_a_jpeg_is_applied_wherever_it_stands(progressive: bool):
    """libjpeg looks for it up to the first scan: before the frame, behind it, in parts of any order."""
    data = encoded(DRAWN, "JPEG", quality=100, subsampling=0, progressive=progressive)
    profile = PROFILES["wide"][0]
    bodies = [b"ICC_PROFILE\0\1\2" + profile[:200], b"ICC_PROFILE\0\2\2" + profile[200:]]
    first, second = (b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body for body in bodies)
    for place in (2, data.index(b"\xff\xc4"), data.index(b"\xff\xda")):
        assert error_of(data[:place] + second + first + data[place:], shown(P3, 1.8)) < 3, place
        assert error_of(data[:place] + first + data[place:], DRAWN) < 3, "a part is missing"


def inks() -> bytes:
    """A profile of CMYK whose table is linear in lightness: white without ink, black at any full ink (ICC.1, lut8)."""
    corners = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), -1).reshape(16, 4)
    grid = b"".join(bytes([0 if inked.any() else 255, 128, 128]) for inked in corners)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *[65536, 0, 0, 0, 65536, 0, 0, 0, 65536])
    table = b"mft1\0\0\0\0\4\3\2\0" + matrix + ramp * 4 + grid + ramp * 3
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(table))
    head = struct.pack(">I4sI4s4s4s", 144 + len(table), b"lcms", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + struct.pack(">3I", 63190, 65536, 54061)
    return (head.ljust(128, b"\0") + tags).ljust(144, b"\0") + table


def test_inks_are_shown_as_their_profile_says():
    """Half of one ink is grey of half lightness there, and cyan without a profile."""
    cyan = np.zeros((24, 40, 4), np.uint8)
    cyan[..., 0] = 128
    grey, plain = np.full((24, 40), 118.5), np.full((24, 40, 3), (127, 255, 255))
    for kind in ("TIFF", "JPEG"):
        assert error_of(encoded(cyan, kind, "CMYK", icc_profile=inks()), grey) < 2
        assert error_of(encoded(cyan, kind, "CMYK"), plain) < 2
        assert error_of(encoded(cyan, kind, "CMYK", icc_profile=PROFILES["wide"][0]), plain) < 2
    assert error_of(jp2(inks(), cyan), grey) < 2
    assert error_of(tiff(cyan.astype(np.uint16) * 257, photometric="separated", iccprofile=inks()), grey) < 2


@pytest.mark.parametrize(
    "profile",
    [
        b"", PROFILES["wide"][0][:10], PROFILES["wide"][0][:200], bytes(3000), inks(), GREY_PROFILE,
        imagecodecs.cms_profile("srgb"), imagecodecs.cms_profile("lab2"), imagecodecs.cms_profile("xyz"),
    ],
)  # fmt: skip
def test_profiles_that_fit_nothing_are_passed_over(profile: bytes):
    assert error_of(encoded(DRAWN, "PNG", icc_profile=profile), DRAWN) == 0
    assert error_of(tiff(DRAWN, photometric="rgb", iccprofile=profile or None), DRAWN) == 0
    assert error_of(jp2(profile), DRAWN) == 0


GAMMA = {value: chunk(b"gAMA", struct.pack(">I", value)) for value in (0, 45455, 55556, 100000)}
POINTS = {
    kind: chunk(b"cHRM", struct.pack(">8I", *[round(100_000 * part) for part in (*WHITE, *primaries)]))
    for kind, primaries in (("srgb", SRGB), ("p3", P3), ("none", (0.0,) * 6))
}


@pytest.mark.parametrize(
    ("chunks", "wanted"),
    [
        ([GAMMA[100000]], shown(SRGB, 1.0)),
        ([GAMMA[55556]], shown(SRGB, 1.8)),
        ([GAMMA[55556], POINTS["p3"]], shown(P3, 1.8)),
        ([GAMMA[45455], POINTS["p3"]], shown(P3, None)),
        ([GAMMA[45455], POINTS["srgb"]], DRAWN),
        ([GAMMA[45455]], DRAWN),
        ([GAMMA[100000], chunk(b"sRGB", b"\0")], DRAWN),
        ([GAMMA[100000], iccp(PROFILES["wide"][0])], shown(P3, 1.8)),
        ([GAMMA[0]], DRAWN),
        ([POINTS["none"]], DRAWN),
        ([chunk(b"cICP", b"\x0c\x0d\0\1"), GAMMA[100000]], shown(P3, None)),
        ([chunk(b"cICP", b"\1\x0d\0\1"), iccp(PROFILES["wide"][0])], DRAWN),
    ],
)
def test_what_chunks_of_a_png_say_about_colours(chunks: list[bytes], wanted: NDArray[Any]):
    assert error_of(png(*chunks), wanted) < 1


@pytest.mark.parametrize(
    ("primaries", "transfer", "wanted"),
    [(1, 13, DRAWN), (2, 2, DRAWN), (12, 13, shown(P3, None)), (1, 8, shown(SRGB, 1.0))],
)
def test_code_points_of_avif(primaries: int, transfer: int, wanted: NDArray[Any]):
    data = imagecodecs.avif_encode(DRAWN, level=100, pixelformat="444", primaries=primaries, transfer=transfer)
    assert error_of(data, wanted) < 2


@pytest.mark.parametrize("transfer", [16, 18])
def test_high_dynamic_range_is_refused(transfer: int):
    avif = imagecodecs.avif_encode(DRAWN, level=100, pixelformat="444", primaries=9, transfer=transfer)
    for data in (avif, png(chunk(b"cICP", bytes([9, transfer, 0, 1])))):
        with pytest.raises(RefusedImage) as caught:
            decode_image(data, **LIMITS)
        assert caught.value.reason == "unsupported_colors"
