"""One zarr v3 array of equally sized images: one shard an image, tiles inside, every tile with its checksum.

The format is `sharding_indexed` of zarr v3, with all shards in one directory (`c.17.0.0.0`), so that one directory
fsync makes a whole group durable. The caller fsyncs `shard_path`. Decision 0011 says why this is not zarr's own code.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

from storage import durable
from storage.durable.record import USE_NEWER
from storage.errors import CorruptBuffer, NewerRecord

ATTRIBUTE = "mfmd"
METADATA = "zarr.json"
TILE_BYTES = 256
"""Upper bound of zstd's frame header, the checksum and the index entry of one tile; zstd's bound is raw + raw / 256."""
CHECKSUM = 4
"""Bytes of a CRC32C, which follows its data."""
ENTRY = np.dtype("<u8")
"""The index has two of these per tile: its start in the file, and its length (bytes)."""
ABSENT = 2**64 - 1
"""Start of a tile that was not written because it holds the fill value only."""

Pixels = NDArray[np.uint8]
Transform = Callable[[Any], Any]


class PixelArray:
    """An open array."""

    def __init__(self, group: Path, name: str) -> None:
        """Open an array that `create_array` made. Raises CorruptBuffer when it is not one."""
        self.folder = group / name
        try:
            metadata = json.loads((self.folder / METADATA).read_bytes())
            self._learn_layout(metadata)
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise CorruptBuffer(f"{self.folder}: not a zarr array of mfmd: {error}") from error
        found = metadata.get("attributes", {}).get(ATTRIBUTE)
        self.attributes: dict[str, Any] = found if isinstance(found, dict) else {}
        """What `create_array` was given, with `schema` and `tile`."""
        if (schema := self.attributes.get("schema", 1)) != 1:
            raise NewerRecord(f"{self.folder}: an array of format {schema}, this mfmd reads 1; {USE_NEWER}")

    def _learn_layout(self, metadata: Any) -> None:
        match metadata:
            case {
                "data_type": "uint8",
                "fill_value": int(fill),
                "shape": [*shape],
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shard]}},
                "codecs": [
                    {
                        "name": "sharding_indexed",
                        "configuration": {
                            "chunk_shape": [1, *tile],
                            "codecs": [{"name": "bytes"}, *packing, {"name": "crc32c"}],
                            "index_codecs": [
                                {"name": "bytes", "configuration": {"endian": "little"}},
                                {"name": "crc32c"},
                            ],
                            "index_location": "end",
                        },
                    }
                ],
            } if len(tile) in (2, 3) and tile[2:] == shard[2:]:
                self.shape: tuple[int, ...] = tuple(shape)
                """Number of images, height, width, and channels if there are any; tiles may reach beyond."""
                self._fill = fill
                self._tile: tuple[int, ...] = tuple(tile)
                self._down, self._across = int(shard[0] // tile[0]), int(shard[1] // tile[1])
                self._pack, self._unpack = _codec(packing)
            case _:
                raise ValueError("its layout is not that of mfmd")

    @property
    def largest_shard(self) -> int:
        """Most bytes that the file of one image can take: pixels that do not compress, checksums, index of tiles."""
        raw = math.prod(self._tile)
        return self._down * self._across * (raw + raw // 128 + TILE_BYTES) + TILE_BYTES

    def grow(self, count: int) -> None:
        """Make room for `count` images, durably.

        Zarr's own resize renames metadata that was not fsynced over the old: after a power cut there may be none.
        """
        path = self.folder / METADATA
        metadata = json.loads(path.read_bytes())
        metadata["shape"][0] = count
        durable.write_text(path, json.dumps(metadata, indent=2))
        self.shape = (count, *self.shape[1:])

    def shard_path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.folder / ".".join(["c", str(index), *["0"] * (len(self.shape) - 1)])

    def shard_indices(self) -> list[int]:
        """Return the images that have a file."""
        rank = len(self.shape)
        return [int(path.name.split(".")[1]) for path in self.folder.glob("c.*") if path.name.count(".") == rank]

    def write(self, index: int, pixels: Pixels) -> Path:
        """Write one whole image; return its file, which is not yet fsynced. Raises OSError."""
        return self.write_packed(index, self.pack(pixels))

    def pack(self, pixels: Pixels) -> bytes:
        """Pack the shard of one image for `write_packed`; safe in any thread. Raises ValueError for another shape."""
        if pixels.shape != self.shape[1:] or pixels.dtype != np.uint8:
            raise ValueError(f"{pixels.dtype} {pixels.shape}, an image here is uint8 {self.shape[1:]}")
        parts, index, start = list[bytes](), list[int](), 0
        for tile in self._tiles(pixels):
            packed = self._pack(tile)
            parts += [packed, _checksum(packed)]
            index += [start, len(packed) + CHECKSUM]
            start += index[-1]
        entries = np.array(index, ENTRY).tobytes()
        return b"".join([*parts, entries, _checksum(entries)])

    def write_packed(self, index: int, shard: bytes) -> Path:
        """Write the result of `pack`; return the file, which is not yet fsynced. Raises OSError."""
        path = self.shard_path(index)
        path.write_bytes(shard)
        return path

    def read(self, index: int) -> Pixels:
        """Return one whole image. Raises CorruptBuffer when its file is missing or damaged."""
        rows, columns = self.shape[1:3]
        return self._read(index, range(rows), range(columns))

    def read_crop(self, index: int, top: int, left: int, height: int, width: int) -> Pixels:
        """Return rows top..top+height and columns left..left+width; decodes only the tiles it touches.

        Raises ValueError for a crop that leaves the image, CorruptBuffer for a missing or damaged file.
        """
        rows, columns = self.shape[1:3]
        if top < 0 or left < 0 or height < 1 or width < 1 or top + height > rows or left + width > columns:
            raise ValueError(f"crop {height}x{width} at ({top}, {left}) leaves the image of {rows}x{columns}")
        return self._read(index, range(top, top + height), range(left, left + width))

    def check_file(self, index: int) -> None:
        """Check the file of an image. Raises CorruptBuffer when it is missing or empty."""
        path = self.shard_path(index)
        try:
            if path.stat().st_size == 0:
                raise CorruptBuffer(f"{path}: damaged: empty")
        except FileNotFoundError as error:
            raise CorruptBuffer(f"{path}: missing") from error

    def _read(self, index: int, rows: range, columns: range) -> Pixels:
        path = self.shard_path(index)
        try:
            with path.open("rb", buffering=0) as opened:
                return self._unpacked(_File(opened.fileno(), os.fstat(opened.fileno()).st_size), rows, columns)
        except FileNotFoundError as error:
            raise CorruptBuffer(f"{path}: missing") from error
        except (ValueError, RuntimeError) as error:
            raise CorruptBuffer(f"{path}: damaged: {error}") from error

    def _tiles(self, pixels: Pixels) -> Iterator[Pixels]:
        """Yield every tile, row by row; beyond the image they hold the fill value."""
        (height, width, *channels), (rows, columns, *_) = self._tile, self.shape[1:]
        if (rows, columns) != (self._down * height, self._across * width):
            padded = np.full((self._down * height, self._across * width, *channels), self._fill, np.uint8)
            padded[:rows, :columns] = pixels
            pixels = padded
        for down in range(self._down):
            for across in range(self._across):
                yield pixels[down * height : (down + 1) * height, across * width : (across + 1) * width]

    def _unpacked(self, file: "_File", rows: range, columns: range) -> Pixels:
        """Return these rows and columns; reads and checks only their tiles. Raises ValueError or RuntimeError."""
        height, width, *_ = self._tile
        pixels = np.empty((len(rows), len(columns), *self._tile[2:]), np.uint8)
        index = self._index(file)
        for down in range(rows.start // height, (rows.stop - 1) // height + 1):
            there, here_rows = _overlap(rows, down * height, height)
            for across in range(columns.start // width, (columns.stop - 1) // width + 1):
                within, here_columns = _overlap(columns, across * width, width)
                tile = self._read_tile(file, *index[down * self._across + across])
                pixels[here_rows, here_columns] = self._fill if tile is None else tile[there, within]
        return pixels

    def _index(self, file: "_File") -> list[list[int]]:
        """Return start and length of every tile, row by row."""
        tiles = self._down * self._across
        length = 2 * ENTRY.itemsize * tiles + CHECKSUM
        packed = file.checked(file.size - length, length, "index of tiles")
        entries: list[list[int]] = np.frombuffer(packed, ENTRY).reshape(tiles, 2).tolist()
        return entries

    def _read_tile(self, file: "_File", start: int, length: int) -> Pixels | None:
        if start == length == ABSENT:
            return None
        packed = file.checked(start, length, f"tile at byte {start}")
        return np.frombuffer(self._unpack(packed), np.uint8).reshape(self._tile)


@dataclass(frozen=True, slots=True)
class _File:
    """An open shard."""

    descriptor: int
    size: int

    def checked(self, start: int, length: int, what: str) -> Pixels:
        """Return `length` bytes without the checksum at their end. Raises ValueError when they do not match it."""
        if start < 0 or length < CHECKSUM or start + length > self.size:
            raise ValueError(f"{what} reaches beyond the file")
        data = os.pread(self.descriptor, length, start)
        if len(data) < length:
            raise ValueError(f"{what} is truncated")
        content = np.frombuffer(data, np.uint8, length - CHECKSUM)
        if google_crc32c.value(content) != int.from_bytes(data[-CHECKSUM:], "little"):
            raise ValueError(f"{what} does not match its checksum")
        return content


def _codec(packing: Sequence[Mapping[str, Any]]) -> tuple[Transform, Transform]:
    """Return the codec of the tiles. Raises ValueError for what `create_array` does not create."""
    match packing:
        case []:
            return np.ndarray.tobytes, lambda packed: packed
        case [{"name": "zstd", "configuration": {"level": int(level), "checksum": bool(checksum)}}]:
            zstd = Zstd(level=level, checksum=checksum)
            return lambda tile: zstd.encode(np.ascontiguousarray(tile)), zstd.decode
        case [{"name": "blosc", "configuration": {"cname": str(name), "clevel": int(level), "shuffle": "noshuffle"}}]:
            blosc = Blosc(cname=name, clevel=level, shuffle=Blosc.NOSHUFFLE)
            return lambda tile: blosc.encode(np.ascontiguousarray(tile)), blosc.decode
    raise ValueError("its tiles are not compressed as mfmd does it")


def _checksum(content: Any) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(CHECKSUM, "little")


def _overlap(wanted: range, start: int, length: int) -> tuple[slice, slice]:
    """Return the part of `wanted` in a tile that begins at `start`: as places of the tile, and of `wanted`."""
    first, last = max(wanted.start, start), min(wanted.stop, start + length)
    return slice(first - start, last - start), slice(first - wanted.start, last - wanted.start)
