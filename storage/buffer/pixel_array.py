"""One zarr v3 array of equally sized images: one shard an image, tiles inside, every tile with its checksum.

The key of a shard has dots (`c.17.0.0.0`), so that all shards lie in one directory and one directory fsync makes a
whole group of them durable. Zarr itself never fsyncs; whoever writes calls `storage.durable` on `shard_path`.
"""

import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from storage import durable
from storage.buffer.shard_format import ShardFormat
from storage.errors import CorruptBuffer

SCHEMA_VERSION = 1
ATTRIBUTE = "mfmd"
METADATA = "zarr.json"
TILE_BYTES = 256
"""More than zstd's frame header, the checksum and the index entry of one tile take; zstd's bound is raw + raw / 256."""
_opening = threading.Lock()

Compression = Literal["none", "lz4", "zstd"]
_PACKING: dict[Compression, tuple[BytesBytesCodec, ...]] = {
    "none": (),
    "lz4": (BloscCodec(typesize=1, cname="lz4", clevel=1, shuffle="noshuffle"),),
    "zstd": (ZstdCodec(level=1),),
}


def create_group(folder: Path) -> None:
    """Make an empty zarr group. Raises OSError."""
    documents: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(documents), zarr_format=3)
    _put(documents[METADATA], folder)


def create_array(
    group: Path,
    name: str,
    shape: Sequence[int],
    *,
    tile: int,
    fill: int,
    attributes: dict[str, Any],
    compression: Compression = "zstd",
    about: str = "",
) -> None:
    """Make an empty array of uint8 images in `group`; shape [N, H, W] or [N, H, W, 3]; `tile` in pixels.

    `about` tells whoever opens it with other tools what it holds. Raises OSError.
    """
    documents: dict[str, Buffer] = {}
    count, height, width, *channels = shape
    chunk = (1, _balanced(height, tile), _balanced(width, tile), *channels)
    shard = (1, _rounded_up(height, chunk[1]), _rounded_up(width, chunk[2]), *channels)
    zarr.create_array(
        store=MemoryStore(documents),
        name=name,
        shape=(count, height, width, *channels),
        chunks=chunk,
        shards=shard,
        dtype="uint8",
        compressors=[*_PACKING[compression], Crc32cCodec()],
        fill_value=fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("frame", "y", "x", "channel")[: len(shape)],
        attributes={"long_name": about, ATTRIBUTE: {"schema": SCHEMA_VERSION, "tile": tile, **attributes}},
        zarr_format=3,
    )
    _put(documents[f"{name}/{METADATA}"], group / name)


def _put(document: Buffer, folder: Path) -> None:
    """Make a folder with the metadata that zarr made in memory.

    Zarr writes the metadata of an array and of the group above it at the same time; when one fails it leaves the other
    to come, at any moment, also into a folder that was removed meanwhile.
    """
    folder.mkdir()
    (folder / METADATA).write_bytes(document.to_bytes())


class PixelArray:
    """An open array."""

    def __init__(self, group: Path, name: str, *, writable: bool) -> None:
        """Open an array that `create_array` made. Raises CorruptBuffer when it is not one."""
        self.folder, self.writable = group / name, writable
        try:
            self._array = _open(group, name, "r+" if writable else "r")
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise CorruptBuffer(f"{self.folder}: not a zarr array of mfmd: {error}") from error
        self._rank = len(self._array.shape)
        self._format = ShardFormat.of(self._array.metadata.to_dict())

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, H, W] or [N, H, W, 3]."""
        return tuple(self._array.shape)

    @property
    def attributes(self) -> dict[str, Any]:
        """What `create_array` was given, with `schema` and `tile`."""
        found = self._array.attrs.asdict().get(ATTRIBUTE)
        return dict(found) if isinstance(found, dict) else {}

    @property
    def largest_shard(self) -> int:
        """Most bytes that the file of one image can take: pixels that do not compress, checksums, index of tiles."""
        tile, shard = self._array.chunks, self._array.shards or self._array.chunks
        tiles = math.prod(whole // part for whole, part in zip(shard, tile, strict=True))
        raw = math.prod(tile) * self._array.dtype.itemsize
        return tiles * (raw + raw // 128 + TILE_BYTES) + TILE_BYTES

    def grow(self, count: int) -> Path:
        """Have room for `count` images, durably; returns the metadata file.

        Zarr's own resize renames metadata that was not fsynced over the old: after a power cut there may be none.
        """
        path = self.folder / METADATA
        metadata = json.loads(path.read_bytes())
        metadata["shape"][0] = count
        durable.write_text(path, json.dumps(metadata, indent=2))
        self._array = _open(self.folder.parent, self.folder.name, "r+")
        return path

    def shard_path(self, index: int) -> Path:
        """The file of one image."""
        return self.folder / ".".join(["c", str(index), *["0"] * (self._rank - 1)])

    def shard_indices(self) -> list[int]:
        """Images that have a file."""
        return [int(path.name.split(".")[1]) for path in self.folder.glob("c.*") if path.name.count(".") == self._rank]

    def write(self, index: int, pixels: NDArray[np.uint8]) -> Path:
        """Write one whole image; returns its file, which is not yet fsynced. Raises OSError."""
        if not self.writable:
            raise ValueError(f"{self.folder}: opened for reading only")
        packed = self.pack(pixels)
        if packed is not None:
            return self.write_packed(index, packed)
        self._array[index] = pixels
        return self.shard_path(index)

    def pack(self, pixels: NDArray[np.uint8]) -> bytes | None:
        """The shard of one image, for `write_packed`; safe in any thread. None where only zarr can make it.

        Raises ValueError for another shape.
        """
        return None if self._format is None else self._format.shard(pixels)

    def write_packed(self, index: int, shard: bytes) -> Path:
        """Write what `pack` made; returns the file, which is not yet fsynced. Raises OSError."""
        if not self.writable:
            raise ValueError(f"{self.folder}: opened for reading only")
        path = self.shard_path(index)
        path.write_bytes(shard)
        return path

    def read(self, index: int) -> NDArray[np.uint8]:
        """One whole image. Raises CorruptBuffer when its file is missing or damaged."""
        rows, columns = self._array.shape[1:3]
        return self._get(index, range(rows), range(columns))

    def read_crop(self, index: int, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Rows top..top+height and columns left..left+width; decodes only the tiles it touches.

        Raises ValueError for a crop that leaves the image, CorruptBuffer for a missing or damaged file.
        """
        rows, columns = self._array.shape[1:3]
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > rows or left + width > columns:
            raise ValueError(f"crop {height}x{width} at ({top}, {left}) leaves the image of {rows}x{columns}")
        return self._get(index, range(top, top + height), range(left, left + width))

    def check_file(self, index: int) -> None:
        """Raises CorruptBuffer when the file of an image is missing or empty: zarr would answer the fill value."""
        path = self.shard_path(index)
        try:
            if path.stat().st_size == 0:
                raise CorruptBuffer(f"{path}: damaged: empty")
        except FileNotFoundError as error:
            raise CorruptBuffer(f"{path}: missing") from error

    def _get(self, index: int, rows: range, columns: range) -> NDArray[np.uint8]:
        self.check_file(index)
        path = self.shard_path(index)
        try:
            if self._format is not None:
                return self._format.read(path, rows, columns)
            where = index, slice(rows.start, rows.stop), slice(columns.start, columns.stop)
            return np.asarray(self._array[where], np.uint8)
        except FileNotFoundError as error:
            raise CorruptBuffer(f"{path}: missing") from error
        except (ValueError, RuntimeError, KeyError, IndexError) as error:
            raise CorruptBuffer(f"{path}: damaged: {error}") from error


def _open(group: Path, name: str, mode: Literal["r", "r+"]) -> "zarr.Array[Any]":
    """Open with `write_empty_chunks`, without which zarr writes no file for a black image.

    The array does not store the setting, so every reopening loses it (zarr-python#2931). zarr 3.1.6 ignores `config=`
    for arrays that exist, hence the global configuration, one thread at a time.
    """
    with _opening, zarr.config.set({"array.write_empty_chunks": True}):
        return zarr.open_array(group, path=name, mode=mode, zarr_format=3)


def _balanced(side: int, tile: int) -> int:
    """Side of equal tiles, none above `tile`, that cover `side` with the least padding (pixels)."""
    return math.ceil(side / math.ceil(side / tile))


def _rounded_up(side: int, step: int) -> int:
    return math.ceil(side / step) * step
