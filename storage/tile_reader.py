"""Reads parts of an image straight from its shard: one file opened once, no thread, no event loop.

It knows the one layout that `pixel_array.create_array` makes, as the specification of zarr v3 has it
(`sharding_indexed`): tiles, each with a checksum, and at the end of the file an index of 16 bytes a tile, checked too.
Zarr's own reader goes through an event loop and opens the file again for every tile, which takes ten times as long
(docs/benchmarks.md, "Crops"); zarrs is fast, but its threads do not survive a fork. Other layouts stay with zarr.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import google_crc32c
import numpy as np
from numcodecs.blosc import decompress as unpack_blosc
from numcodecs.zstd import decompress as unpack_zstd
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
CHECKSUM = 4
"""Bytes of a CRC32C, which stands behind what it is of."""
ENTRY = np.dtype("<u8")
"""The index has two of them a tile: where it starts in the file, and its length (bytes)."""
ABSENT = 2**64 - 1
"""Start of a tile that was not written because it holds the fill value only."""
_UNPACK: Mapping[tuple[str, ...], Callable[[Pixels], Any]] = {
    (): lambda packed: packed,
    ("blosc",): unpack_blosc,
    ("zstd",): unpack_zstd,
}


@dataclass(frozen=True, slots=True)
class TileReader:
    """How the images of one array lie in their files."""

    tile: tuple[int, ...]
    """Height and width of a tile (pixels), and channels if there are any."""
    down: int
    """Rows of tiles in a shard."""
    across: int
    """Tiles in a row."""
    fill: int
    """Value of pixels that were not written."""
    unpack: Callable[[Pixels], Any]

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self | None:
        """The reader for an array with this `zarr.json`; None when it is laid out in another way."""
        match metadata:
            case {
                "data_type": "uint8",
                "fill_value": int(fill),
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shard]}},
                "codecs": [{"name": "sharding_indexed", "configuration": inside}],
            }:
                return cls._inside(inside, shard, fill)
        return None

    @classmethod
    def _inside(cls, inside: Mapping[str, Any], shard: Sequence[int], fill: int) -> Self | None:
        match inside:
            case {
                "chunk_shape": [1, *tile],
                "codecs": [{"name": "bytes"}, *packing, {"name": "crc32c"}],
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                "index_location": "end",
            }:
                unpack = _UNPACK.get(tuple(codec.get("name") for codec in packing))
                if unpack is not None and len(tile) in (2, 3) and tile[2:] == shard[2:]:
                    return cls(tuple(tile), shard[0] // tile[0], shard[1] // tile[1], fill, unpack)
        return None

    def read(self, path: Path, rows: range, columns: range) -> Pixels:
        """The pixels of `rows` and `columns` of the image in `path`; only the tiles they touch are read and checked.

        Raises ValueError or RuntimeError (what its codec found) for a damaged file, OSError for one that is missing or
        cannot be read.
        """
        height, width, *_ = self.tile
        pixels = np.empty((len(rows), len(columns), *self.tile[2:]), np.uint8)
        with path.open("rb", buffering=0) as opened:
            file = _File(opened.fileno(), os.fstat(opened.fileno()).st_size)
            index = self._index(file)
            for down in range(rows.start // height, (rows.stop - 1) // height + 1):
                there, here_rows = _overlap(rows, down * height, height)
                for across in range(columns.start // width, (columns.stop - 1) // width + 1):
                    within, here_columns = _overlap(columns, across * width, width)
                    tile = self._tile(file, *index[down * self.across + across])
                    pixels[here_rows, here_columns] = self.fill if tile is None else tile[there, within]
        return pixels

    def _index(self, file: "_File") -> list[list[int]]:
        """Start and length of every tile, row by row."""
        tiles = self.down * self.across
        length = 2 * ENTRY.itemsize * tiles + CHECKSUM
        packed = file.checked(file.size - length, length, "index of tiles")
        entries: list[list[int]] = np.frombuffer(packed, ENTRY).reshape(tiles, 2).tolist()
        return entries

    def _tile(self, file: "_File", start: int, length: int) -> Pixels | None:
        if start == length == ABSENT:
            return None
        packed = file.checked(start, length, f"tile at byte {start}")
        return np.frombuffer(self.unpack(packed), np.uint8).reshape(self.tile)


@dataclass(frozen=True, slots=True)
class _File:
    """An open shard."""

    descriptor: int
    size: int

    def checked(self, start: int, length: int, what: str) -> Pixels:
        """`length` bytes without the checksum at their end. Raises ValueError when they do not match it."""
        if start < 0 or length < CHECKSUM or start + length > self.size:
            raise ValueError(f"{what} reaches beyond the file")
        data = os.pread(self.descriptor, length, start)
        if len(data) < length:
            raise ValueError(f"{what} ends early")
        content = np.frombuffer(data, np.uint8, length - CHECKSUM)
        if google_crc32c.value(content) != int.from_bytes(data[-CHECKSUM:], "little"):
            raise ValueError(f"{what} does not match its checksum")
        return content


def _overlap(wanted: range, start: int, length: int) -> tuple[slice, slice]:
    """The part of `wanted` that lies in a tile which begins at `start`: as places of the tile, and of `wanted`."""
    first, last = max(wanted.start, start), min(wanted.stop, start + length)
    return slice(first - start, last - start), slice(first - wanted.start, last - wanted.start)
