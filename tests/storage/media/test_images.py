import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from configs.buffer import Resample
from storage.durable.digest import digest_of
from storage.errors import RefusedImage
from storage.media.images import Fit, crc32_of, decode_image, fit_frame, fit_label, fitted_size

LIMITS = {"max_bytes": 10_000_000, "max_pixels": 1_000_000}
RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (20, 30, 3), np.uint8)
SMOOTH = np.stack(np.meshgrid(np.linspace(0, 255, 30), np.linspace(0, 255, 20)) * 2, -1)[..., :3].astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def handmade_png(width: int, height: int, bits: int, color_type: int, data: bytes) -> bytes:
    """A PNG whose header may promise anything."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def reason(source: Path | bytes, **limits: int) -> str:
    with pytest.raises(RefusedImage) as caught:
        decode_image(source, **{**LIMITS, **limits})
    assert str(source) in str(caught.value) if isinstance(source, Path) else str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_decode_exactly(kind: str, tmp_path: Path):
    path = tmp_path / "a.image"
    path.write_bytes(encoded(Image.fromarray(COLOR), kind))
    assert np.array_equal(decode_image(path, **LIMITS), COLOR)
    assert np.array_equal(decode_image(path.read_bytes(), **LIMITS), COLOR)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_decode_closely(kind: str):
    decoded = decode_image(encoded(Image.fromarray(SMOOTH), kind, quality=95), **LIMITS)
    assert np.abs(decoded.astype(int) - SMOOTH).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    """What a camera stores for each orientation must come out as the same upright scene."""
    stored = {
        1: COLOR,
        2: COLOR[:, ::-1],
        3: COLOR[::-1, ::-1],
        4: COLOR[::-1],
        5: COLOR.transpose(1, 0, 2),
        6: np.rot90(COLOR),
        7: COLOR[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(COLOR, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored[orientation])), "PNG", exif=exif)
    assert np.array_equal(decode_image(data, **LIMITS), COLOR)


def test_broken_exif_does_not_refuse_a_good_image():
    data = encoded(Image.fromarray(COLOR), "PNG", exif=b"Exif\0\0nonsense")
    assert np.array_equal(decode_image(data, **LIMITS), COLOR)


def test_grey_palette_and_one_bit():
    grey = Image.fromarray(COLOR[..., 0])
    assert np.array_equal(decode_image(encoded(grey, "PNG"), **LIMITS), np.stack([COLOR[..., 0]] * 3, -1))
    palette = Image.fromarray(COLOR).quantize(16)
    assert np.array_equal(decode_image(encoded(palette, "PNG"), **LIMITS), np.array(palette.convert("RGB")))
    one_bit = decode_image(encoded(grey.point(lambda value: 255 * (value > 99), "1"), "PNG"), **LIMITS)
    assert set(np.unique(one_bit)) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_uses_the_full_range(kind: str):
    wide = np.array([[0, 257, 65535], [32896, 256, 65278]], np.uint16)
    decoded = decode_image(encoded(Image.fromarray(wide), kind), **LIMITS)
    assert decoded[..., 0].tolist() == [[0, 1, 255], [128, 0, 254]]


def test_alpha_lies_over_black():
    rgba = np.full((4, 4, 4), 200, np.uint8)
    rgba[..., 3] = [0, 51, 102, 255]
    decoded = decode_image(encoded(Image.fromarray(rgba), "PNG"), **LIMITS)
    assert np.allclose(decoded[0, :, 0], [0, 40, 80, 200], atol=1)
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert np.allclose(decode_image(encoded(grey_alpha, "PNG"), **LIMITS)[0, :, 2], [0, 40, 80, 200], atol=1)


def test_transparent_palette_lies_over_black():
    image = Image.new("P", (2, 1))
    image.putpalette([250, 250, 250, 10, 20, 30])
    image.putpixel((1, 0), 1)
    decoded = decode_image(encoded(image, "PNG", transparency=0), **LIMITS)
    assert decoded.tolist() == [[[0, 0, 0], [10, 20, 30]]]


def test_cmyk_jpeg_becomes_rgb():
    decoded = decode_image(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), **LIMITS)
    assert decoded.shape == (8, 8, 3)
    assert decoded[4, 4, 0] > 200 and decoded[4, 4, 1] < 60


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data, **LIMITS)[0, 0].tolist() == [255, 0, 0]


def test_float_images_are_refused():
    assert reason(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")) == "not_an_image"


def test_bad_files_are_refused_with_their_reason(tmp_path: Path):
    path = tmp_path / "bad.png"
    path.touch()
    assert reason(path) == "empty"
    path.write_bytes(b"not an image at all" * 10)
    assert reason(path) == "not_an_image"
    path.write_bytes(encoded(Image.fromarray(COLOR), "PNG")[:-600])
    assert reason(path) == "truncated"
    path.write_bytes(encoded(Image.fromarray(COLOR), "JPEG")[:-100])
    assert reason(path) == "truncated"
    path.write_bytes(encoded(Image.fromarray(COLOR), "PNG"))
    assert reason(path, max_bytes=100) == "too_many_bytes"
    assert reason(path, max_pixels=599) == "too_many_pixels"
    assert decode_image(path, max_bytes=10**6, max_pixels=600).shape == (20, 30, 3)
    assert reason(tmp_path) == "unreadable"


def test_text_that_would_start_another_program_is_not_an_image():
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n") == "not_an_image"


@pytest.mark.parametrize("side", [2_000, 10_000, 50_000])
def test_size_is_judged_from_the_header(side: int):
    """50,000 x 50,000 pixels are 7.5 GB: had they been allocated, this test would not pass in no time."""
    assert reason(handmade_png(side, side, 8, 2, b"\0" * 4)) == "too_many_pixels"


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    assert reason(tmp_path / "pipe.png") == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    path.chmod(0)
    assert reason(path) == "unreadable"


def test_permission_error_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    monkeypatch.setattr(Path, "open", deny)
    assert reason(path) == "unreadable"


def test_a_vanished_file_is_not_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        decode_image(tmp_path / "gone.png", **LIMITS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"]), st.data())
def test_damage_is_refused_or_decoded_but_never_another_error(kind: str, data: st.DataObject):
    packing = {"compression": data.draw(st.sampled_from(["tiff_lzw", "jpeg", "zstd"]))} if kind == "TIFF" else {}
    good = bytearray(encoded(Image.fromarray(SMOOTH), kind, **packing))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(good[: data.draw(st.integers(1, len(good)))])
    try:
        pixels = decode_image(damaged, **LIMITS)
    except RefusedImage as error:
        known = {"not_an_image", "truncated", "too_many_pixels", "camera_raw", "thumbnail_only"}
        assert error.reason in known or error.reason.startswith("unsupported_")
    else:
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 600), st.integers(32, 600))
def test_fitted_size_fills_one_side_and_keeps_the_aspect(height: int, width: int, rows: int, columns: int):
    valid_height, valid_width = fitted_size(height, width, rows, columns)
    assert 1 <= valid_height <= rows and 1 <= valid_width <= columns
    assert valid_height == rows or valid_width == columns
    scale = min(rows / height, columns / width)
    assert abs(valid_height - height * scale) <= 1 and abs(valid_width - width * scale) <= 1


def test_frame_is_placed_top_left_with_zeros_around():
    fitted = fit_frame(np.full((40, 20, 3), 7, np.uint8), 64, 96)
    assert fitted.pixels.shape == (64, 96, 3)
    assert (fitted.valid_height, fitted.valid_width) == (64, 32)
    assert (fitted.cropped() == 7).all() and fitted.cropped().shape == (64, 32, 3)
    assert not fitted.pixels[:, 32:].any()


def test_same_size_is_not_touched_and_shrinking_is_antialiased():
    assert np.array_equal(fit_frame(COLOR, 20, 30).pixels, COLOR)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    assert np.abs(fit_frame(stripes, 16, 16).pixels.astype(int) - 127).max() < 20


def test_label_follows_its_image():
    labels = np.repeat(np.arange(4, dtype=np.uint8), 10)[None].repeat(20, 0)
    fitted = fit_label(labels, 64, 96, 255)
    assert fitted_size(20, 40, 64, 96) == (48, 96)
    assert (fitted[48:] == 255).all() and set(np.unique(fitted[:48])) == {0, 1, 2, 3}
    assert (fitted[:48, :24] == 0).all() and (fitted[:48, 72:] == 3).all()


def test_digest_and_checksum(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_of(tmp_path / "a") == digest_of(b"abc")
    assert digest_of(b"abc").startswith("ba7816bf")
    assert crc32_of(COLOR[:, ::2]) == zlib.crc32(COLOR[:, ::2].tobytes())


def test_squash_fills_the_frame_and_labels_follow_their_image() -> None:
    pixels = np.zeros((40, 20, 3), np.uint8)
    pixels[20:] = 200
    squashed = fit_frame(pixels, 64, 96, Fit("squash", "bicubic"))
    assert (squashed.valid_height, squashed.valid_width) == (64, 96)
    label = fit_label((pixels[..., 0] > 0).astype(np.uint8), 64, 96, 255, Fit("squash", "bicubic"))
    assert np.array_equal(label == 1, squashed.pixels[..., 0] > 100)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic", "lanczos", "nearest", "box", "hamming"])
def test_frames_are_scaled_by_the_filter_of_that_name(resample: Resample) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 20, 3), np.uint8)
    expected = Image.fromarray(pixels).resize((96, 64), Image.Resampling[resample.upper()])
    assert np.array_equal(fit_frame(pixels, 64, 96, Fit("squash", resample)).pixels, np.asarray(expected))
