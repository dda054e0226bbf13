"""Write one consistent copy of a state directory as a tar file, beside a running daemon.

Nobody is stopped, so the order decides. First every small file is read and every large one opened: rounds before the
registry, so that no verdict names a version that is missing, and the registry under its lock. What is open stays whole,
whatever retention removes. Then SQLite copies the catalog, and the shards of the frames in that copy follow, oldest
first, as they leave. A frame that was evicted before its shard was read is removed from the copy.
"""

import errno
import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, closing, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from storage import durable
from storage.buffer import catalog_schema
from storage.buffer.files import ARRAY, RESIZED
from storage.buffer.pixel_array import METADATA, PixelArray
from storage.directory.archive import MARK, BackupMark, Hashed
from storage.directory.format import read_format, this_format
from storage.errors import BackupRefused, StorageError
from storage.layout import StateLayout
from storage.rounds.folder import RECORD
from storage.source.labelled import CURRENT, current_fingerprint

OnProgress = Callable[[int, int], None]
SMALL = 64 * 1024
"""A file of at most this size is read at once, so that few stay open (bytes)."""
DATABASE = ("", "-wal", "-shm")
"""Ends of the names of a database's files."""
MEANWHILE = "{} was replaced while it was read; run `mfmd backup` again"
LIVE = "SELECT 1 FROM frames WHERE id = ? AND slot = ?"
REMOVE = ("DELETE FROM leases WHERE frame = ?", "DELETE FROM frames WHERE id = ?")


class BackupResult(NamedTuple):
    """What a backup holds."""

    files: int
    """Files in it."""
    frames: int
    """Frames in it."""
    missing: int
    """Frames without pixels, in the state directory and so in the backup: `mfmd check` says which."""


class _File(NamedTuple):
    """A file as it is at the moment of the backup."""

    path: Path
    content: BinaryIO
    size: int


def write_backup(layout: StateLayout, target: Path, on_progress: OnProgress = lambda done, total: None) -> BackupResult:
    """Write the backup `target`, complete or not at all; changes nothing in the state directory.

    `on_progress(done, total)` is called with files after each. Raises BackupRefused when `target` exists or its folder
    does not, when there is nothing to back up, or when a resize or an import replaced files meanwhile; NewerFormat;
    StorageError for a damaged database; OSError (ENOSPC).
    """
    if os.path.lexists(target):
        raise BackupRefused(f"{target} exists; name a new file")
    if not target.parent.is_dir():
        raise BackupRefused(f"{target.parent}: no such folder; make it, or mount its disk")
    if not (layout.checkpoints.exists() or layout.catalog.exists()):
        raise BackupRefused(f"{layout.root}: neither checkpoints nor frames; nothing to back up")
    with durable.replacing(target) as temporary, ExitStack() as opened:
        about, buffer = _about(layout), _identity(layout)
        files = _moment(layout, opened)
        sets = {folder: _set_in_use(folder) for folder in (layout.source, *layout.canary_sets)}
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)))
        catalog = _copied(layout.catalog, scratch)
        slots = _slots(catalog) if catalog else []
        total = len(files) + sum(len(paths) for _, paths in sets.values()) + len(slots)
        tar = opened.enter_context(tarfile.open(temporary, "x", format=tarfile.PAX_FORMAT))
        archive = _Archive(tar, layout.root, total, on_progress)
        archive.add_bytes(layout.format_file, about)
        missing, gone = 0, 0
        if catalog is not None:  # at once: frames leave while the rest is written
            missing, gone = _add_frames(archive, layout, catalog, slots)
            archive.add_file(layout.catalog, catalog)
        with suppress(StorageError):  # derived from the frames: the observer makes it again
            if observations := _copied(layout.observations, scratch):
                archive.add_file(layout.observations, observations)
        for file in files:
            archive.add(*file)
        for folder, (current, paths) in sets.items():
            _add_set(archive, folder, current, paths)
        if _identity(layout) != buffer:
            raise BackupRefused(MEANWHILE.format(layout.buffer))
        mark = BackupMark(files=archive.files, sha256=archive.digest.hexdigest(), at=time.time())
        archive.add_bytes(layout.root / MARK, mark.model_dump_json(indent=2).encode())
        return BackupResult(archive.files, len(slots) - gone, missing)


class _Archive:
    """A tar that is written, and what is in it so far."""

    def __init__(self, tar: tarfile.TarFile, root: Path, total: int, on_progress: OnProgress) -> None:
        self._tar, self._root, self._total, self._on_progress = tar, root, total, on_progress
        self.digest, self.files = hashlib.sha256(), 0

    def add(self, path: Path, content: BinaryIO, size: int) -> None:
        """Add `content` under the name that `path` has in the state directory."""
        entry = tarfile.TarInfo(path.relative_to(self._root).as_posix())
        entry.size, entry.mtime, entry.mode = size, int(time.time()), 0o640
        self._tar.addfile(entry, Hashed(entry.name, content, self.digest))
        self.files += 1
        self._on_progress(min(self.files, self._total), self._total)

    def add_bytes(self, path: Path, data: bytes) -> None:
        """Add a file that is in memory."""
        self.add(path, io.BytesIO(data), len(data))

    def add_file(self, path: Path, source: Path) -> None:
        """Add the file `source` under the name of `path`. Raises OSError."""
        with source.open("rb") as file:
            self.add(path, file, os.fstat(file.fileno()).st_size)


def _about(layout: StateLayout) -> bytes:
    number = read_format(layout)
    return (
        layout.format_file.read_bytes()
        if layout.format_file.exists()
        else this_format(number).model_dump_json().encode()
    )


def _identity(layout: StateLayout) -> tuple[int, int] | None:
    """Return what changes when a resize replaces the buffer. Raises BackupRefused while one is not finished."""
    if (layout.root / RESIZED).is_dir():
        raise BackupRefused(f"{layout.buffer}: a resize is not finished; the next `mfmd run` finishes it")
    with suppress(FileNotFoundError):
        status = layout.buffer.stat()
        return status.st_dev, status.st_ino
    return None


def _moment(layout: StateLayout, opened: ExitStack) -> list[_File]:
    """Open everything but frames and labelled sets, in an order that makes the files belong together."""
    databases = (path.with_name(path.name + end) for path in (layout.catalog, layout.observations) for end in DATABASE)
    apart = {layout.run, layout.format_file, layout.source, *layout.canary_sets, layout.rounds, *databases}
    apart |= {layout.frames_zarr / ARRAY, layout.root / "lost+found"}
    files = _opened(layout.rounds, apart=(), opened=opened) if layout.rounds.is_dir() else []
    registry = layout.checkpoints / ".lock"
    with durable.exclusive_lock(registry) if registry.exists() else nullcontext():
        return files + _opened(layout.root, apart, opened)


def _opened(folder: Path, apart: Collection[Path], opened: ExitStack) -> list[_File]:
    """Open every file below a folder; a folder that is removed meanwhile is left out as a whole."""
    found, paths = [], sorted(folder.iterdir(), key=lambda path: (path.name != RECORD, path.name))
    for path in paths:  # the stage of a round first
        if path in apart or path.name.startswith(".") or path.name.endswith(durable.PARTIAL):
            continue
        with suppress(FileNotFoundError):
            if path.is_dir():
                found += _opened(path, apart, opened)
            elif path.is_file():
                found.append(_open(path, opened))
    return found if folder.is_dir() else []


def _open(path: Path, opened: ExitStack) -> _File:
    file = path.open("rb")
    opened.callback(file.close)
    size = os.fstat(file.fileno()).st_size
    if size > SMALL:
        return _File(path, file, size)
    data = file.read()
    file.close()
    return _File(path, io.BytesIO(data), len(data))


def _set_in_use(folder: Path) -> tuple[str, list[Path]]:
    """Return the fingerprint of the labelled set in use, and its files; empty before an import."""
    current = current_fingerprint(folder) or ""
    return current, [path for path in sorted((folder / current).rglob("*")) if path.is_file()] if current else []


def _add_set(archive: _Archive, folder: Path, current: str, paths: list[Path]) -> None:
    """Add a labelled set. Raises BackupRefused when an import replaced it meanwhile."""
    with suppress(FileNotFoundError):
        for path in (folder / CURRENT, *paths) if current else ():
            archive.add_file(path, path)
        if (current_fingerprint(folder) or "") == current:
            return
    raise BackupRefused(MEANWHILE.format(folder))


def _copied(source: Path, folder: Path) -> Path | None:
    """Copy a database as it is at one moment, into one file; None when there is none.

    Raises StorageError when it is damaged, OSError(ENOSPC) when the copy does not fit.
    """
    if not source.exists():
        return None
    copy = folder / source.name
    uri = f"{source.absolute().as_uri()}?mode=ro"
    with (
        catalog_schema.translated(source),
        closing(sqlite3.connect(uri, uri=True, timeout=catalog_schema.BUSY_SECONDS)) as live,
        closing(sqlite3.connect(copy)) as other,
    ):
        try:
            live.backup(other)
            other.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(copy)) from error
            raise
    return copy


def _slots(catalog: Path) -> list[tuple[int, int]]:
    with closing(sqlite3.connect(catalog)) as connection:
        return connection.execute("SELECT id, slot FROM frames ORDER BY id").fetchall()


def _add_frames(archive: _Archive, layout: StateLayout, catalog: Path, slots: list[tuple[int, int]]) -> tuple[int, int]:
    """Add the shards of the frames in a copied catalog, and remove evicted ones from it.

    A shard belongs to its frame when the live catalog still has the frame after the shard was read: a slot is used
    again only after its row is gone. Returns how many frames have no pixels, and how many were removed.
    """
    array, missing, gone = PixelArray(layout.frames_zarr, ARRAY), 0, list[tuple[int]]()
    archive.add_file(array.folder / METADATA, array.folder / METADATA)
    uri = f"{layout.catalog.absolute().as_uri()}?mode=ro"
    with (
        catalog_schema.translated(layout.catalog),
        closing(sqlite3.connect(uri, uri=True, timeout=catalog_schema.BUSY_SECONDS, isolation_level=None)) as live,
    ):
        for frame, slot in slots:
            path, shard = array.shard_path(slot), b""
            with suppress(FileNotFoundError):
                shard = path.read_bytes()
            if live.execute(LIVE, (frame, slot)).fetchone() is None:
                gone.append((frame,))
            elif shard:
                archive.add_bytes(path, shard)
            else:
                missing += 1
    with closing(sqlite3.connect(catalog)) as copy, copy:
        copy.execute("PRAGMA foreign_keys = ON")
        for statement in REMOVE:
            copy.executemany(statement, gone)
    return missing, len(gone)
