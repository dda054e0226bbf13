"""Return space: pixels without a frame, catalog rows of missing files, free pages of the database."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs.buffer import BufferSettings
from storage import durable
from storage.buffer.catalog import Catalog
from storage.buffer.frames import FrameBuffer
from storage.errors import StorageError
from storage.layout import StateLayout

FindMissing = Callable[[Catalog], tuple[set[str], str]]
"""Returns the paths whose rows may be forgotten; if that cannot be told, none and the reason."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """Result of `compact_buffer`."""

    files_forgotten: int
    """Removed rows of files that are no longer in the drop folder."""
    kept_because: str
    """Why no row was removed, when the folder could not be trusted; otherwise empty."""
    bytes_before: int
    """Size of the catalog and its log before (bytes)."""
    bytes_after: int
    """Size of both after (bytes)."""


def compact_buffer(layout: StateLayout, settings: BufferSettings, find_missing: FindMissing) -> Compacted:
    """Compact the buffer.

    Opening the buffer for writing has already removed pixels of no frame. Raises AlreadyRunning while a daemon or a
    round works there, StorageError when there is no buffer, OSError(ENOSPC) when there is no room for a copy of the
    catalog; what `FrameBuffer.open` raises.
    """
    if not layout.catalog.exists():
        raise StorageError(f"{layout.buffer}: no frame buffer yet; `mfmd run` creates it")
    with layout.lock(), FrameBuffer.open(layout, settings, writable=True) as buffer:
        catalog = buffer.catalog
        before = _size(catalog.path)
        missing, doubt = find_missing(catalog)
        if missing:
            with catalog.transaction() as connection:
                connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in missing])
        catalog.vacuum()
        return Compacted(len(missing), doubt, before, _size(catalog.path))


def _size(catalog: Path) -> int:
    return durable.size_of(catalog) + durable.size_of(catalog.with_name(f"{catalog.name}-wal"))
