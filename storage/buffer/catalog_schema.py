"""The catalog's SQLite file: schema, connections, and the meaning of its errors."""

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from storage import durable
from storage.errors import BufferMismatch, DurabilityLost, NewerRecord, StorageError
from storage.failpoints import step

SCHEMA_VERSION = 5
BUSY_SECONDS = 30.0
DAMAGED = (
    "; stop `mfmd run` and restore {buffer} from a backup, or move it away to begin with an empty buffer: "
    "checkpoints are not in it"
)
"""What to do when SQLite finds the file damaged."""
FILES = """CREATE TABLE files (
  path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('committed', 'duplicate', 'refused', 'skipped')),
  reason TEXT NOT NULL, detail TEXT NOT NULL, digest TEXT, at REAL NOT NULL, changed_ns INTEGER
) WITHOUT ROWID;
"""
KEPT = """CREATE TABLE kept (
  frame INTEGER PRIMARY KEY REFERENCES frames (id) ON DELETE CASCADE, condition INTEGER NOT NULL
);
"""
SCHEMA = f"""
CREATE TABLE frames (
  id INTEGER PRIMARY KEY AUTOINCREMENT, slot INTEGER NOT NULL UNIQUE, digest TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
  captured_at REAL NOT NULL, committed_at REAL NOT NULL, source_height INTEGER NOT NULL, source_width INTEGER NOT NULL,
  valid_height INTEGER NOT NULL, valid_width INTEGER NOT NULL, crc32 INTEGER NOT NULL, holdout INTEGER NOT NULL,
  source TEXT NOT NULL DEFAULT '', phash TEXT NOT NULL DEFAULT '', resample TEXT NOT NULL DEFAULT ''
);
CREATE INDEX frames_by_source ON frames (source, id);
CREATE INDEX frames_by_capture ON frames (source, captured_at);
CREATE TABLE digests (digest TEXT PRIMARY KEY, frame INTEGER NOT NULL) WITHOUT ROWID;
{FILES}CREATE INDEX files_by_state ON files (state, reason);
CREATE TABLE leases (
  round INTEGER NOT NULL, frame INTEGER NOT NULL REFERENCES frames (id), PRIMARY KEY (round, frame)
) WITHOUT ROWID;
CREATE INDEX leases_by_frame ON leases (frame);
{KEPT}"""
"""`digests` keeps every digest ever committed, so that an evicted image that is still in the drop folder is not
ingested twice. `files` has the state of each file of the drop folder, by its size, mtime and
change time (NULL in rows that are older than the column). `kept` has the golden frames of conditions."""

FROM_1 = f"""
ALTER TABLE frames ADD COLUMN source TEXT NOT NULL DEFAULT '';
ALTER TABLE frames ADD COLUMN phash TEXT NOT NULL DEFAULT '';
CREATE INDEX frames_by_source ON frames (source, id);
CREATE INDEX frames_by_capture ON frames (source, captured_at);
DROP INDEX files_by_state;
ALTER TABLE files RENAME TO files_1;
{FILES}INSERT INTO files SELECT *, NULL FROM files_1;
DROP TABLE files_1;
CREATE INDEX files_by_state ON files (state, reason);
"""
FROM_2 = "ALTER TABLE files ADD COLUMN changed_ns INTEGER;"
FROM_4 = "ALTER TABLE frames ADD COLUMN resample TEXT NOT NULL DEFAULT '';"
FROM_3 = KEPT + FROM_4
SCRIPTS = {0: SCHEMA, 1: FROM_1 + FROM_3, 2: FROM_2 + FROM_3, 3: FROM_3, 4: FROM_4, SCHEMA_VERSION: ""}
"""What brings a catalog to this schema, in one transaction, when a writer opens it; 0 is an empty file."""


def connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    """Open the catalog; a writer creates it if it is missing.

    Raises StorageError when a reader finds none, NewerRecord or BufferMismatch when it has the schema of a newer or an
    older mfmd.
    """
    if not writable and not path.exists():
        raise StorageError(f"{path}: no frame buffer yet; `mfmd run` creates it")
    if writable and not path.exists():
        _make(path)
    uri = f"{path.absolute().as_uri()}?mode={'rw' if writable else 'ro'}"
    with translated(path):
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            _prepare(connection, path, writable)
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """Run all statements of the block or none, durably: after a block without an exception they are on the disk."""
    with translated(path, writing=True):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            step("transaction.filled")
            connection.execute("COMMIT")
            step("transaction.committed")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def translated(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Translate SQLite's errors: a full disk is OSError(ENOSPC), a failed write DurabilityLost, others StorageError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        extended = getattr(error, "sqlite_errorcode", 0)
        code = extended & 0xFF
        # The index of the log (-shm) could not grow: it is no record, and what refuses it is a full disk.
        if code == sqlite3.SQLITE_FULL or extended == sqlite3.SQLITE_IOERR_SHMSIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if writing and code == sqlite3.SQLITE_IOERR:
            raise DurabilityLost(f"{path}: {error}; check the disk, then restart mfmd") from error
        remedy = DAMAGED.format(buffer=path.parent) if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else ""
        raise StorageError(f"{path}: {error}{remedy}") from error


def _make(path: Path) -> None:
    """Create a new catalog, complete or not at all: a crash while SQLite enables its log would leave a damaged file."""
    folder = path.with_name(f".{path.name}{durable.PARTIAL}")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    with translated(path), closing(sqlite3.connect(folder / path.name, isolation_level=None)) as connection:
        _prepare(connection, path, writable=True)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # closing would do it too, and keep silent where it fails
    step("catalog.made")
    durable.publish_file(folder / path.name, path)
    shutil.rmtree(folder)


def _prepare(connection: sqlite3.Connection, path: Path, writable: bool) -> None:
    connection.row_factory = sqlite3.Row
    if writable:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":  # SQLite says so instead of raising when the disk refused
            raise StorageError(
                f"{path}: SQLite's write-ahead log cannot be turned on; is the disk full, or a network mount? "
                "Make room, or put the state directory on a local disk, then restart mfmd"
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if writable and version in SCRIPTS:
        # Also to find out now whether the system lets SQLite write: it would say so at the first write only.
        connection.executescript(f"BEGIN IMMEDIATE; {SCRIPTS[version]} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
    elif version != SCHEMA_VERSION:
        reason = f"{path}: catalog schema {version}, this mfmd reads {SCHEMA_VERSION}"
        if 0 < version < SCHEMA_VERSION:
            raise BufferMismatch(f"{reason}; the next `mfmd run`, or `mfmd check --repair`, upgrades it")
        raise NewerRecord(f"{reason}; use the mfmd version that wrote it")
