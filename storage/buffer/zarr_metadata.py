"""Create an empty zarr v3 array: zarr writes the metadata, `pixel_array.py` reads and writes the shards."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from storage.buffer.pixel_array import ATTRIBUTE

SCHEMA_VERSION = 1
Compression = Literal["none", "lz4", "zstd"]


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
    """Create an empty array of uint8 images in `group`; shape [N, H, W] or [N, H, W, 3]; `tile` in pixels.

    The group is created if it is missing. Zarr makes the metadata in memory: it writes that of the array and that of
    the group concurrently, and when one fails, the other may still be written at any moment, also into a folder that
    was removed meanwhile. `about` describes the content to other tools. Raises OSError.
    """
    documents: dict[str, Buffer] = {}
    count, height, width, *channels = shape
    chunk = (1, _balanced(height, tile), _balanced(width, tile), *channels)
    shard = (1, *(math.ceil(side / step) * step for side, step in zip(shape[1:3], chunk[1:3], strict=True)), *channels)
    zarr.create_array(
        store=MemoryStore(documents),
        name=name,
        shape=(count, height, width, *channels),
        chunks=chunk,
        shards=shard,
        dtype="uint8",
        compressors=[*_compressors(compression), Crc32cCodec()],
        fill_value=fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=("frame", "y", "x", "channel")[: len(shape)],
        attributes={"long_name": about, ATTRIBUTE: {"schema": SCHEMA_VERSION, "tile": tile, **attributes}},
        zarr_format=3,
    )
    for key in sorted(documents, key=len):
        path = group / key
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(documents[key].to_bytes())


def _compressors(compression: Compression) -> list[BytesBytesCodec]:
    match compression:
        case "lz4":
            return [BloscCodec(typesize=1, cname="lz4", clevel=1, shuffle="noshuffle")]
        case "zstd":
            return [ZstdCodec(level=1)]
    return []


def _balanced(side: int, tile: int) -> int:
    """Return the side of equal tiles, none above `tile`, that cover `side` with the least padding (pixels)."""
    return math.ceil(side / math.ceil(side / tile))
