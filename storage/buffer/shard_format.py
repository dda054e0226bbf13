"""Reads and writes the shard of one image in the calling thread: one file opened once, no event loop.

It knows the one layout that `pixel_array.create_array` makes, as the specification of zarr v3 has it
(`sharding_indexed`): tiles, each with a checksum, and at the end of the file an index of 16 bytes a tile, checked too.
Any zarr reads what this writes, and the other way round (tested). Why not zarr's own: docs/explanation/decisions/0011.
Other layouts stay with zarr.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import google_crc32c
import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
CHECKSUM = 4
"""Bytes of a CRC32C, which stands behind what it is of."""
ENTRY = np.dtype("<u8")
"""The index has two of them a tile: where it starts in the file, and its length (bytes)."""
ABSENT = 2**64 - 1
"""Start of a tile that was not written because it holds the fill value only."""
Transform = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class ShardFormat:
    """How the images of one array lie in their files."""

    image: tuple[int, ...]
    """Height and width of an image (pixels), and channels if there are any; tiles may reach beyond."""

    tile: tuple[int, ...]
    """Height and width of a tile (pixels), and channels if there are any."""
    down: int
    """Rows of tiles in a shard."""
    across: int
    """Tiles in a row."""
    fill: int
    """Value of pixels that were not written."""
    pack: Transform
    unpack: Transform

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> Self | None:
        """The reader for an array with this `zarr.json`; None when it is laid out in another way."""
        match metadata:
            case {
                "data_type": "uint8",
                "fill_value": int(fill),
                "shape": [_, *image],
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shard]}},
                "codecs": [{"name": "sharding_indexed", "configuration": inside}],
            }:
                return cls._inside(inside, tuple(image), shard, fill)
        return None

    @classmethod
    def _inside(cls, inside: Mapping[str, Any], image: tuple[int, ...], shard: Sequence[int], fill: int) -> Self | None:
        match inside:
            case {
                "chunk_shape": [1, *tile],
                "codecs": [{"name": "bytes"}, *packing, {"name": "crc32c"}],
                "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
                "index_location": "end",
            }:
                codec = _codec(packing)
                if codec is not None and len(tile) in (2, 3) and tile[2:] == shard[2:]:
                    return cls(image, tuple(tile), shard[0] // tile[0], shard[1] // tile[1], fill, *codec)
        return None

    def shard(self, pixels: Pixels) -> bytes:
        """What the file of an image holds, all tiles of it. Raises ValueError for another shape."""
        if pixels.shape != self.image or pixels.dtype != np.uint8:
            raise ValueError(f"{pixels.dtype} {pixels.shape}, an image here is uint8 {self.image}")
        parts, index, start = list[bytes](), list[int](), 0
        for tile in self._tiles(pixels):
            packed = self.pack(tile)
            parts += [packed, _checksum(packed)]
            index += [start, len(packed) + CHECKSUM]
            start += index[-1]
        entries = np.array(index, ENTRY).tobytes()
        return b"".join([*parts, entries, _checksum(entries)])

    def _tiles(self, pixels: Pixels) -> Iterator[Pixels]:
        """Every tile, row by row; beyond the image they hold the fill value."""
        (height, width, *channels), (rows, columns, *_) = self.tile, self.image
        if (rows, columns) != (self.down * height, self.across * width):
            padded = np.full((self.down * height, self.across * width, *channels), self.fill, np.uint8)
            padded[:rows, :columns] = pixels
            pixels = padded
        for down in range(self.down):
            for across in range(self.across):
                yield pixels[down * height : (down + 1) * height, across * width : (across + 1) * width]

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


def _codec(packing: Sequence[Mapping[str, Any]]) -> tuple[Transform, Transform] | None:
    """How tiles are packed and unpacked; None for what `create_array` does not make."""
    match packing:
        case []:
            return np.ndarray.tobytes, lambda packed: packed
        case [{"name": "zstd", "configuration": {"level": int(level), "checksum": bool(checksum)}}]:
            zstd = Zstd(level=level, checksum=checksum)
            return lambda tile: zstd.encode(np.ascontiguousarray(tile)), zstd.decode
        case [{"name": "blosc", "configuration": {"cname": str(name), "clevel": int(level), "shuffle": "noshuffle"}}]:
            blosc = Blosc(cname=name, clevel=level, shuffle=Blosc.NOSHUFFLE)
            return lambda tile: blosc.encode(np.ascontiguousarray(tile)), blosc.decode
    return None


def _checksum(content: Any) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(CHECKSUM, "little")


def _overlap(wanted: range, start: int, length: int) -> tuple[slice, slice]:
    """The part of `wanted` that lies in a tile which begins at `start`: as places of the tile, and of `wanted`."""
    first, last = max(wanted.start, start), min(wanted.stop, start + length)
    return slice(first - start, last - start), slice(first - wanted.start, last - wanted.start)
