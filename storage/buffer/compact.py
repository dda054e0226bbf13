"""Return space: pixels without a frame, catalog rows of missing files, free pages of the database.

The row of a file that is still in the drop folder is never removed. The row of a missing file may be: if the same image
comes back, its digest shows that it was committed. A refused or skipped one is then judged again. A refused file in the
quarantine is not missing, because `mfmd refused retry` restores it by its row.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.buffer import BufferSettings
from configs.watch import WatchSettings
from storage.buffer.catalog import Catalog
from storage.buffer.frames import FrameBuffer
from storage.buffer.quarantine import quarantined
from storage.errors import StorageError
from storage.layout import StateLayout

ESCAPED = re.compile(rb"\\x([89a-f][0-9a-f])")
"""A byte that is no text, as catalog paths hold it."""


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


def compact_buffer(layout: StateLayout, settings: BufferSettings, watch: WatchSettings) -> Compacted:
    """Compact the buffer.

    Opening the buffer for writing has already removed pixels of no frame. Raises AlreadyRunning while a daemon or a
    round works there, StorageError when there is no buffer, OSError(ENOSPC) when there is no room for a copy of the
    catalog; what `FrameBuffer.open` raises.
    """
    if not layout.catalog.exists():
        raise StorageError(f"{layout.buffer}: no frame buffer here yet; `mfmd run` makes it")
    with layout.lock(), FrameBuffer.open(layout, settings, writable=True) as buffer:
        catalog = buffer.catalog
        before = _size(catalog.path)
        known = catalog.known_files()
        gone = {path for path in known if all(_is_gone(watch.folder / name) for name in _names(path))}
        doubt = _doubt(watch, everything_gone=bool(known) and gone == known.keys())
        gone -= set(_quarantined(watch, catalog))
        if gone and not doubt:
            _forget(catalog, gone)
        catalog.vacuum()
        return Compacted(0 if doubt else len(gone), doubt if gone else "", before, _size(catalog.path))


def _size(catalog: Path) -> int:
    files = (catalog, catalog.with_name(f"{catalog.name}-wal"))
    return sum(path.stat().st_size for path in files if path.exists())


def _forget(catalog: Catalog, gone: set[str]) -> None:
    with catalog.transaction() as connection:
        connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])


def _names(path: str) -> set[str]:
    """Return the possible names of a file with catalog path `path`: bytes that are no text are escaped there."""
    return {path, os.fsdecode(ESCAPED.sub(lambda byte: bytes([int(byte[1], 16)]), os.fsencode(path)))}


def _is_gone(path: Path) -> bool:
    """Return whether nothing has this name; an unreadable folder may still hold it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _quarantined(watch: WatchSettings, catalog: Catalog) -> Iterator[str]:
    """Return paths of refused files that are, or may be, in the quarantine, which is missing in the latter case."""
    folder = watch.quarantine
    if folder is not None:
        there = folder.is_dir()
        yield from (
            item.file.path for item in catalog.refused(-1) if not there or quarantined(folder, item.file) is not None
        )


def _doubt(watch: WatchSettings, *, everything_gone: bool) -> str:
    """Return why the folder may not be the one of the rows; empty when it is."""
    if not watch.folder.is_dir():
        return f"{watch.folder} is not there"
    if watch.marker is not None:
        return "" if (watch.folder / watch.marker).exists() else f"{watch.folder} lacks its marker {watch.marker}"
    if everything_gone and watch.after_commit == "keep":
        return f"none of the files is in {watch.folder}, so it may not be mounted; watch.marker would tell"
    return ""
