"""Give space back: pixels of no frame, catalog rows of files that are gone, free pages of the database.

A row of a file that is still in the drop folder is never forgotten. One of a file that is gone may be: if the same
image comes back, its digest says that it was committed. A refused or skipped one is then judged anew. A refused file
that lies in the quarantine is not gone: `mfmd refused retry` brings it back by its row.
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
    """What `compact_buffer` gave back."""

    files_forgotten: int
    """Rows of files that are not in the drop folder any more."""
    kept_because: str
    """Why no row was forgotten, where the folder could not be trusted; else empty."""
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
    """What a file may be called that the catalog calls `path`: bytes that are no text stand escaped there."""
    return {path, os.fsdecode(ESCAPED.sub(lambda byte: bytes([int(byte[1], 16)]), os.fsencode(path)))}


def _is_gone(path: Path) -> bool:
    """Whether there is nothing of this name; a folder that cannot be looked into may still hold it."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _quarantined(watch: WatchSettings, catalog: Catalog) -> Iterator[str]:
    """Paths of refused files that lie in the quarantine, or may: it is not there."""
    folder = watch.quarantine
    if folder is not None:
        there = folder.is_dir()
        yield from (
            item.file.path for item in catalog.refused(-1) if not there or quarantined(folder, item.file) is not None
        )


def _doubt(watch: WatchSettings, *, everything_gone: bool) -> str:
    """Why the folder may not be the one that the rows speak of; empty when it is."""
    if not watch.folder.is_dir():
        return f"{watch.folder} is not there"
    if watch.marker is not None:
        return "" if (watch.folder / watch.marker).exists() else f"{watch.folder} lacks its marker {watch.marker}"
    if everything_gone and watch.after_commit == "keep":
        return f"none of the files is in {watch.folder}, so it may not be mounted; watch.marker would tell"
    return ""
