"""Crops read straight from the shard are those that zarr reads, and damage never passes for pixels."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from storage.buffer.pixel_array import ENTRY, PixelArray
from storage.buffer.zarr_metadata import create_array
from storage.errors import CorruptBuffer

SHAPE = (2, 61, 75, 3)


def make(folder: Path, shape: tuple[int, ...] = SHAPE, **more: Any) -> PixelArray:
    create_array(folder, "pixels", shape, **{"tile": 32, "fill": 0, "attributes": {}, **more})
    return PixelArray(folder, "pixels")


def draw(shape: tuple[int, ...]) -> np.ndarray:
    """Half of it noise, half of it smooth, so that some tiles shrink and some do not."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels[:, : shape[1] // 2] = 7
    return pixels


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("shape", [SHAPE, (2, 64, 96), (2, 20, 30, 3), (2, 100, 33)])
def test_crops_are_those_that_zarr_reads(tmp_path: Path, shape, compression):
    array = make(tmp_path / "a.zarr", shape, compression=compression)
    array.write(1, draw(shape[1:]))
    theirs = zarr.open_array(array.folder, mode="r")
    assert np.array_equal(array.read(1), theirs[1])
    rng = np.random.default_rng(1)
    for _ in range(20):
        top, bottom = sorted(rng.choice(shape[1] + 1, 2, replace=False).tolist())
        left, right = sorted(rng.choice(shape[2] + 1, 2, replace=False).tolist())
        crop = array.read_crop(1, top, left, bottom - top, right - left)
        assert np.array_equal(crop, theirs[1, top:bottom, left:right])


def test_tiles_that_were_not_written_have_the_fill_value(tmp_path: Path):
    array = make(tmp_path / "a.zarr", (1, 64, 96), fill=255)
    with zarr.config.set({"array.write_empty_chunks": False}):
        theirs = zarr.open_array(array.folder, mode="r+")
        theirs[0, :32, :32] = 9
    assert array.shard_path(0).stat().st_size < 64 * 96, "five tiles of six are not there"
    assert np.array_equal(array.read(0), theirs[0])
    assert (array.read_crop(0, 20, 20, 20, 20) == 255).sum() == 20 * 20 - 12 * 12


@pytest.mark.parametrize("other", [{"shards": None}, {"compressors": None}, {"compressors": zarr.codecs.GzipCodec()}])
def test_arrays_laid_out_in_another_way_are_refused(tmp_path: Path, other):
    settings = {"chunks": (1, 32, 32, 3), "shards": (1, 64, 96, 3), **other}
    zarr.create_array(tmp_path / "a.zarr" / "pixels", shape=SHAPE, dtype="uint8", **settings)
    with pytest.raises(CorruptBuffer, match=r"not a zarr array of mfmd: .* (not that of|as) mfmd"):
        PixelArray(tmp_path / "a.zarr", "pixels")


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_no_flipped_bit_passes_for_pixels(tmp_path: Path, compression):
    array = make(tmp_path / "a.zarr", compression=compression)
    path = array.write(0, draw(SHAPE[1:]))
    good = path.read_bytes()
    for position in [*range(0, len(good), 101), *range(len(good) - 30, len(good))]:
        damaged = bytearray(good)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptBuffer, match=r"c\.0\.0\.0\.0: damaged"):
            array.read(0)


def test_files_of_any_wrong_length_are_damaged(tmp_path: Path):
    array = make(tmp_path / "a.zarr")
    path = array.write(0, draw(SHAPE[1:]))
    good = path.read_bytes()
    for length in [*range(0, 200, 7), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(CorruptBuffer, match="damaged"):
            array.read(0)
    path.write_bytes(good + b"x")
    with pytest.raises(CorruptBuffer, match="damaged"):
        array.read(0)


@pytest.mark.parametrize("entry", [(0, 1 << 40), (1 << 63, 8), (1 << 20, 100), (0, 3), (0, 0), (5, (1 << 64) - 1)])
def test_an_index_that_points_elsewhere_is_damage(tmp_path: Path, entry):
    """With a checksum that fits: no number in it may allocate, overflow or be believed."""
    array = make(tmp_path / "a.zarr")
    path = array.write(0, draw(SHAPE[1:]))
    good, tiles = path.read_bytes(), 6
    index = np.frombuffer(good[-16 * tiles - 4 : -4], ENTRY).copy()
    index[:2] = entry
    content = index.tobytes()
    path.write_bytes(good[: -len(content) - 4] + content + google_crc32c.value(content).to_bytes(4, "little"))
    with pytest.raises(CorruptBuffer, match="damaged: tile"):
        array.read_crop(0, 0, 0, 8, 8)
    assert np.array_equal(array.read_crop(0, 0, 60, 8, 8), draw(SHAPE[1:])[:8, 60:68]), "other tiles can still be read"


def test_a_crop_opens_its_file_once(tmp_path: Path, monkeypatch):
    array = make(tmp_path / "a.zarr")
    array.write(0, draw(SHAPE[1:]))
    opened, real = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *rest, **more: opened.append(path) or real(path, *rest, **more))
    array.read(0)
    assert opened == [array.shard_path(0)]


def test_neighbouring_crops_meet(tmp_path: Path):
    array = make(tmp_path / "a.zarr")
    array.write(0, draw(SHAPE[1:]))
    edges = [0, 1, 30, 31, 32, 61]
    rows = [array.read_crop(0, top, 0, bottom - top, SHAPE[2]) for top, bottom in pairwise(edges)]
    assert np.array_equal(np.concatenate(rows), array.read(0))
