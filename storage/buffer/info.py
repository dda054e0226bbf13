"""Describe content and size of the frame buffer, also beside a running daemon."""

from contextlib import closing
from pathlib import Path

from configs.buffer import BufferSettings
from storage import durable
from storage.buffer.catalog import Catalog, count_all
from storage.buffer.eviction_plan import blocks
from storage.buffer.files import ARRAY
from storage.buffer.lost import lost_frames
from storage.buffer.pixel_array import PixelArray
from storage.durable.record import Record
from storage.errors import CorruptBuffer
from storage.layout import StateLayout


class BufferInfo(Record):
    """Output of `mfmd buffer info`."""

    frames: int
    holdout: int
    capacity_frames: int
    """Frames that fit, by the configuration."""
    height: int
    """Frame height (pixels)."""
    width: int
    """Frame width (pixels)."""
    tile: int
    """Largest side of a tile (pixels)."""
    pixel_bytes: int
    """Size of the frames' files on the disk, in whole blocks, as for `max_bytes` (bytes)."""
    catalog_bytes: int
    """Size of the catalog and of the observer's database on the disk (bytes)."""
    max_bytes: int
    """`buffer.max_bytes`: most bytes that the frames may take; 0 sets no limit."""
    oldest: float | None
    """Capture time of the oldest frame (Unix, seconds)."""
    newest: float | None
    """Capture time of the newest frame (Unix, seconds)."""
    sources: dict[str, int]
    leases: dict[int, int]
    """Number of leased frames by round."""
    committed_total: int
    evicted_total: int
    lost_total: int
    """Frames removed because their pixels were damaged (`lost.jsonl`)."""


def buffer_info(layout: StateLayout, settings: BufferSettings) -> BufferInfo:
    """Describe the buffer now. Raises StorageError when there is none, CorruptBuffer when it cannot be read."""
    with closing(Catalog.open(layout.catalog, writable=False)) as catalog, catalog.reading() as connection:
        counts = count_all(connection)
        oldest, newest = connection.execute("SELECT MIN(captured_at), MAX(captured_at) FROM frames").fetchone()
        sources = connection.execute("SELECT source, COUNT(*) FROM frames GROUP BY source ORDER BY source").fetchall()
        leases = connection.execute("SELECT round, COUNT(*) FROM leases GROUP BY round ORDER BY round").fetchall()
    array = PixelArray(layout.frames_zarr, ARRAY)
    tile = array.attributes.get("tile")
    if tile is None:
        raise CorruptBuffer(
            f"{array.folder}: not an array of mfmd (it has no attribute `tile`); restore it from a backup"
        )
    return BufferInfo(
        frames=counts.frames,
        holdout=counts.holdout,
        capacity_frames=settings.capacity_frames,
        height=array.shape[1],
        width=array.shape[2],
        tile=tile,
        pixel_bytes=_bytes(layout.frames_zarr / ARRAY, "c."),
        catalog_bytes=_bytes(layout.buffer, "catalog.") + _bytes(layout.buffer, "observations."),
        max_bytes=settings.max_bytes,
        oldest=oldest,
        newest=newest,
        sources=dict(map(tuple, sources)),
        leases=dict(map(tuple, leases)),
        committed_total=counts.committed_total,
        evicted_total=counts.evicted_total,
        lost_total=len(lost_frames(layout)),
    )


def _bytes(folder: Path, prefix: str) -> int:
    """Return the disk space of the files in `folder` with this prefix; files may vanish meanwhile (bytes)."""
    return sum(blocks(durable.size_of(path)) for path in folder.glob(f"{prefix}*"))
