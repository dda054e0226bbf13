"""Colour profiles: what the numbers of a file mean, and their way to sRGB, which viewers show.

A profile is the bytes of an ICC profile (ICC.1). What PNG, AVIF and HEIF say in other ways becomes one. A profile that
is damaged, or of another number of colours than the picture has, is passed over, as viewers do.
"""

import functools
import struct
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.errors import RefusedImage
from storage.media.jpeg import jpeg_profile

SRGB: bytes = imagecodecs.cms_profile("srgb")
SPACES = {b"GRAY": ("gray", (1,)), b"RGB ": ("rgb", (1, 3)), b"CMYK": ("cmyk", (4,))}
"""Colour space of a profile -> its name in lcms, and numbers of colours that it fits; grey counts as equal RGB."""
CLASSES = (b"mntr", b"scnr", b"prtr", b"spac")
"""Classes of profiles that describe pictures."""
D65, C, DCI = (0.3127, 0.329), (0.31, 0.316), (0.314, 0.351)
BT709 = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
PRIMARIES = {
    4: (*C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.6, 0.15, 0.06),
    6: (*D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    7: (*D65, 0.63, 0.34, 0.31, 0.595, 0.155, 0.07),
    9: (*D65, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (*DCI, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
"""ColourPrimaries (ITU-T H.273) -> x and y of white, red, green and blue; the others count as those of sRGB."""
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
"""TransferCharacteristics (H.273) -> exponent; the others count as that of sRGB."""
HIGH_RANGE = (16, 18)
"""TransferCharacteristics of high dynamic range: PQ and HLG."""
USUAL_GAMMA, NEAR = 2.2, 0.05
"""Exponents this near to the usual one (share) mean the curve of sRGB, as in libpng."""
PROBES = 9
"""Values of each colour that are tried to see whether a profile changes anything."""


def to_srgb(colors: NDArray[np.uint8] | NDArray[np.uint16], profile: bytes | None) -> NDArray[np.uint8] | None:
    """Return colours [h, w, n] of full range as sRGB [h, w, 3]; None if the profile changes nothing or does not fit."""
    return _convert(colors, profile) if profile and _changes(profile, colors.shape[-1]) else None


def profile_of(name: str, image: Image.Image, data: bytes) -> bytes | None:
    """Return the profile of `image`, which Pillow opened on `data`; None for sRGB and when it says nothing.

    Raises RefusedImage("unsupported_colors") for high dynamic range.
    """
    info = image.info
    cicp = data.find(b"\0\0\0\4cICP", 0, data.find(b"IDAT")) if image.format == "PNG" else -1
    if cicp > 0:
        return _of_code_points(name, *struct.unpack_from("BB", data, cicp + 8))
    if image.format in ("JPEG", "MPO"):
        return jpeg_profile(data)
    if info.get("icc_profile"):
        return bytes(info["icc_profile"])
    nclx = data.find(b"colrnclx") if image.format in ("AVIF", "HEIF") else -1
    if nclx > 0:
        return _of_code_points(name, *struct.unpack_from(">HH", data, nclx + 8))
    if "srgb" in info or not {"gamma", "chromaticity"} & set(info):
        return None
    exponent = 1 / (info.get("gamma") or 1 / USUAL_GAMMA)
    usual = abs(exponent / USUAL_GAMMA - 1) < NEAR
    return _rgb_profile(info.get("chromaticity", (*D65, *BT709)), None if usual else exponent)


def _of_code_points(name: str, primaries: int, transfer: int) -> bytes | None:
    if transfer in HIGH_RANGE:
        text = f"{name}: high dynamic range (PQ or HLG) has no agreed look in 8 bits; save it in standard range"
        raise RefusedImage("unsupported_colors", text)
    return _rgb_profile(PRIMARIES.get(primaries, (*D65, *BT709)), GAMMAS.get(transfer))


@functools.lru_cache(8)
def _rgb_profile(points: tuple[float, ...], exponent: float | None) -> bytes | None:
    """Return a profile with white and primaries at `points`; the curve of sRGB without an exponent."""
    levels = np.linspace(0, 1, 4096)
    curve = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4).astype(np.float32)
    how: dict[str, Any] = {"transferfunction": curve} if exponent is None else {"gamma": exponent}
    try:
        return bytes(imagecodecs.cms_profile("rgb", whitepoint=points[:2], primaries=points[2:], **how))
    except imagecodecs.CmsError:  # points that are no colours
        return None


@functools.lru_cache(8)
def _changes(profile: bytes, count: int) -> bool:
    """Return whether a profile fits `count` colours and moves any of them by more than 1."""
    if profile[12:16] not in CLASSES or count not in SPACES.get(profile[16:20], ("", ()))[1]:
        return False
    values = np.linspace(0, 255, PROBES).astype(np.uint8)
    probes = np.stack(np.meshgrid(*[values] * count), -1).reshape(1, -1, count)
    try:
        shown = _convert(probes, profile)
    except imagecodecs.CmsError:
        return False
    return count == 4 or bool(np.abs(shown.astype(np.int64) - probes).max() > 1)


def _convert(colors: NDArray[np.uint8] | NDArray[np.uint16], profile: bytes) -> NDArray[np.uint8]:
    space, counts = SPACES[profile[16:20]]
    full = colors[..., 0] if space == "gray" else np.broadcast_to(colors, (*colors.shape[:2], counts[-1]))
    shown = imagecodecs.cms_transform(full, profile, SRGB, colorspace=space, outcolorspace="rgb", outdtype="uint8")
    return np.asarray(shown, np.uint8)
