import shutil
from pathlib import Path

import numpy as np
import pytest

from storage.buffer.pixel_array import PixelArray
from storage.buffer.zarr_metadata import create_array
from storage.errors import CorruptBuffer


def make(folder: Path, shape: tuple[int, ...], tile: int = 32, fill: int = 0) -> PixelArray:
    create_array(folder, "pixels", shape, tile=tile, fill=fill, attributes={"note": "n"})
    return PixelArray(folder, "pixels")


@pytest.mark.parametrize("shape", [(3, 64, 96, 3), (3, 61, 45, 3), (2, 20, 30, 3), (3, 100, 33)])
def test_any_geometry_round_trips(tmp_path: Path, shape: tuple[int, ...]):
    pixels = np.random.default_rng(0).integers(0, 256, shape[1:], np.uint8)
    make(tmp_path / "a.zarr", shape).write(1, pixels)
    array = PixelArray(tmp_path / "a.zarr", "pixels")
    assert array.shape == shape
    assert np.array_equal(array.read(1), pixels)
    assert np.array_equal(array.read_crop(1, 3, 5, 17, 20), pixels[3:20, 5:25])
    assert array.attributes["note"] == "n" and array.attributes["tile"] == 32


def test_one_image_is_one_file_in_one_folder(tmp_path: Path):
    array = make(tmp_path / "a.zarr", (5, 64, 96, 3))
    path = array.write(3, np.ones((64, 96, 3), np.uint8))
    assert path == array.shard_path(3) and path.is_file()
    assert path.parent == array.folder
    assert sorted(item.name for item in array.folder.iterdir()) == ["c.3.0.0.0", "zarr.json"]
    assert array.shard_indices() == [3]


def test_black_images_are_written_also_after_reopening(tmp_path: Path):
    """By default zarr writes no file for them, and a lost frame would read as a black one (zarr-python#2931)."""
    make(tmp_path / "a.zarr", (5, 64, 96, 3))
    array = PixelArray(tmp_path / "a.zarr", "pixels")
    array.write(2, np.zeros((64, 96, 3), np.uint8))
    assert array.shard_path(2).is_file()
    assert not array.read(2).any()


def test_missing_and_damaged_files_are_corrupt(tmp_path: Path):
    array = make(tmp_path / "a.zarr", (5, 64, 96, 3))
    with pytest.raises(CorruptBuffer, match=r"c\.0\.0\.0\.0: missing"):
        array.read(0)
    path = array.write(1, np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8))
    good = path.read_bytes()
    for position in (100, len(good) // 2, len(good) - 10):
        damaged = bytearray(good)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(CorruptBuffer, match="damaged"):
            array.read(1)
    for size in (0, 10, len(good) // 2):
        path.write_bytes(good[:size])
        with pytest.raises(CorruptBuffer):
            array.read(1)


def test_a_crop_reads_only_the_tiles_it_touches(tmp_path: Path):
    """Damage in one tile does not reach a crop of another, and is found by a crop of its own."""
    array = make(tmp_path / "a.zarr", (1, 64, 96, 3))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    path = array.write(0, pixels)
    damaged = bytearray(path.read_bytes())
    damaged[200] ^= 0xFF  # in the data of the first tile, which comes first
    path.write_bytes(damaged)
    outcomes = []
    for top in (0, 32):
        for left in (0, 32, 64):
            try:
                crop = array.read_crop(0, top, left, 32, 32)
            except CorruptBuffer:
                outcomes.append(False)
            else:
                outcomes.append(np.array_equal(crop, pixels[top : top + 32, left : left + 32]))
    assert sorted(outcomes) == [False, True, True, True, True, True]


@pytest.mark.parametrize("crop", [(-1, 0, 8, 8), (0, 90, 8, 8), (60, 0, 8, 8), (0, 0, 0, 8), (0, 0, 65, 8)])
def test_a_crop_that_leaves_the_image_is_an_error(tmp_path: Path, crop: tuple[int, int, int, int]):
    array = make(tmp_path / "a.zarr", (1, 64, 96, 3))
    array.write(0, np.ones((64, 96, 3), np.uint8))
    with pytest.raises(ValueError, match="leaves the image of 64x96"):
        array.read_crop(0, *crop)


def test_growing_keeps_what_is_there(tmp_path: Path):
    array = make(tmp_path / "a.zarr", (2, 64, 96, 3))
    array.write(1, np.full((64, 96, 3), 9, np.uint8))
    array.grow(7)
    array = PixelArray(tmp_path / "a.zarr", "pixels")
    array.write(6, np.full((64, 96, 3), 8, np.uint8))
    assert (array.read(1) == 9).all() and (array.read(6) == 8).all()


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_something_else_is_not_an_array(tmp_path: Path, text: str | None):
    (tmp_path / "a.zarr" / "pixels").mkdir(parents=True)
    if text is not None:
        (tmp_path / "a.zarr" / "pixels" / "zarr.json").write_text(text)
    with pytest.raises(CorruptBuffer, match="not a zarr array"):
        PixelArray(tmp_path / "a.zarr", "pixels")


def test_a_failed_creation_leaves_nothing_that_writes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Zarr's own creation writes two files at once; the one left over came into the folder of the next attempt."""
    written, write = [], Path.write_bytes

    def refuse(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", refuse)
    folder = tmp_path / "a.zarr"
    with pytest.raises(OSError, match="No space left"):
        make(folder, (5, 64, 96, 3))
    assert written == [folder / "zarr.json", folder / "pixels" / "zarr.json"]
    shutil.rmtree(folder)
    assert make(folder, (5, 64, 96, 3)).shape == (5, 64, 96, 3)
