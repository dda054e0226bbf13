"""Record what was committed, refused, and why: the commit record of the frame buffer, readable while it is written.

It uses only SQLite, so a process that reads about frames without their pixels imports no zarr.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from storage.buffer import catalog_schema
from storage.buffer.catalog_records import CatalogCounts, FileFact, FileRecord, FrameRecord, as_text
from storage.errors import DurabilityLost, StorageError
from storage.eviction.policy import Held

COLUMNS = ", ".join(field.name for field in fields(FrameRecord))
SELECT_FRAMES = f"SELECT {COLUMNS} FROM frames"
STAYING = "SELECT frame FROM leases UNION SELECT frame FROM kept"
NEWEST_ID = "SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'frames'"


class Catalog:
    """One connection to the catalog; safe for several threads.

    At most one process writes (FrameBuffer holds the lock); any number read meanwhile.
    """

    def __init__(self, path: Path, *, writable: bool, broken: str = "") -> None:
        """Open the catalog; `broken` says why it cannot be: then every use raises StorageError with it."""
        self.path = path
        self.writable = writable
        self._failed: DurabilityLost | None = None
        self._lock = threading.RLock()
        self._broken = broken
        self._opened = None if broken else catalog_schema.connect(path, writable=writable)

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            raise StorageError(self._broken)
        return self._opened

    @classmethod
    def open(cls, path: Path, *, writable: bool) -> Self:
        """Open the catalog; a writer creates it if it is missing. Raises StorageError when a reader finds none."""
        return cls(path, writable=writable)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()

    def known(self, file: FileFact) -> bool:
        """Return whether exactly this file was committed, a duplicate, skipped, or refused, and did not change since.

        One whose inode changed (`FileFact.changed_ns`) may be another file of the same size and mtime.
        """
        record = self.state_of(file)
        return record is not None and record.describes(file)

    def knows_path(self, path: str) -> bool:
        """Return whether a file of this name was processed, whatever is there now."""
        return bool(self._select("SELECT 1 FROM files WHERE path = ?", (path,)))

    def state_of(self, file: FileFact) -> FileRecord | None:
        """Return the record of exactly this file (path, size, mtime); None when it is not known."""
        rows = self._select("SELECT * FROM files WHERE path = ? AND size = ? AND mtime_ns = ?", _key(file))
        return FileRecord(**dict(rows[0])) if rows else None

    def known_files(self) -> dict[str, FileFact]:
        """Return the processed fact of each path, for a rescan that stats only new names."""
        rows = self._select("SELECT path, size, mtime_ns, changed_ns FROM files")
        return {row["path"]: FileFact(*row) for row in rows}

    def has_digest(self, digest: str) -> bool:
        """Return whether an image of this content was ever committed; stays true after eviction."""
        return bool(self._select("SELECT 1 FROM digests WHERE digest = ?", (digest,)))

    def note(self, file: FileFact, state: str, reason: str = "", detail: str = "", digest: str | None = None) -> None:
        """Record, durably, that a file is refused, skipped (no other row remembers it) or a duplicate, and why."""
        with self.transaction() as connection:
            note_file(connection, file, state, digest, reason, detail)

    def refused(self, limit: int = 100, *, reason: str | None = None) -> list[FileRecord]:
        """Return the files refused last, newest first; only those for `reason`, if given.

        A negative limit means no limit.
        """
        if reason is not None and not reason.isascii():
            return []  # no code of ours; sqlite takes no half a character, which a command line or JSON may name
        rows = self._select(
            "SELECT * FROM files WHERE state = 'refused' AND reason = COALESCE(?, reason) "
            "ORDER BY at DESC, path LIMIT ?",
            (reason, limit),
        )
        return [FileRecord(**dict(row)) for row in rows]

    def forget_refusals(self, files: Iterable[FileFact]) -> None:
        """Remove, durably, the refusal of these files, so that they are ingested again. Other files stay known."""
        with self.transaction() as connection:
            connection.executemany(
                "DELETE FROM files WHERE state = 'refused' AND path = ? AND size = ? AND mtime_ns = ?",
                map(_key, files),
            )

    def records(self, *, ids: Collection[int] | None = None, holdout: bool | None = None) -> list[FrameRecord]:
        """Return committed frames in commit order; only those of `ids` and of the slice `holdout`, where given."""
        wanted = None if ids is None else json.dumps([int(item) for item in ids])
        rows = self._select(
            f"{SELECT_FRAMES} WHERE holdout IS COALESCE(:holdout, holdout) "
            "AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids))) ORDER BY id",
            {"holdout": holdout, "ids": wanted},
        )
        return [to_record(row) for row in rows]

    def holds(self, record: FrameRecord) -> bool:
        """Return whether this frame is still in the buffer."""
        return bool(self._select("SELECT 1 FROM frames WHERE id = ? AND slot = ?", (record.id, record.slot)))

    def slots(self) -> set[int]:
        """Return the slots that committed frames use."""
        return {row["slot"] for row in self._select("SELECT slot FROM frames")}

    def held(self) -> list[Held]:
        """Return every committed frame in commit order, as eviction sees it."""
        rows = self._select(f"SELECT id, digest, source, slot, id IN ({STAYING}) FROM frames ORDER BY id")
        return [Held(*row) for row in rows]

    def newest(self, limit: int, skip: int = 0) -> list[FrameRecord]:
        """Return the newest frames of the buffer, newest first, without the first `skip` of them."""
        rows = self._select(f"{SELECT_FRAMES} ORDER BY id DESC LIMIT ? OFFSET ?", (limit, skip))
        return [to_record(row) for row in rows]

    def newest_id(self) -> int:
        """Return the id of the frame committed last, even if evicted: the number of frames ever committed."""
        return int(self._select(NEWEST_ID)[0][0])

    def frames_after(self, frame: int) -> int:
        """Return how many frames of the buffer were committed after this one."""
        return int(self._select("SELECT COUNT(*) FROM frames WHERE id > ?", (frame,))[0][0])

    def commits_after(self, frame: int, but: Collection[int]) -> list[float]:
        """Return when the frames after this one, without those in `but`, were committed (Unix, seconds), in order."""
        statement = "SELECT committed_at FROM frames WHERE id > ? AND id NOT IN (SELECT value FROM json_each(?))"
        return [float(row[0]) for row in self._select(f"{statement} ORDER BY id", (frame, json.dumps(list(but))))]

    def recent_hashes(self, source: str, limit: int) -> list[tuple[int, str, str]]:
        """Return id, name and perceptual hash of the newest frames of a source, newest first."""
        rows = self._select(
            "SELECT id, name, phash FROM frames WHERE source = ? ORDER BY id DESC LIMIT ?", (source, limit)
        )
        return [tuple(row) for row in rows if row["phash"]]

    def nearest_capture(self, source: str, at: float, within: float) -> tuple[int, str, float] | None:
        """Return id, name and capture time of the source's frame captured nearest to `at` (Unix, seconds).

        None when none was captured less than `within` seconds before or after.
        """
        rows = self._select(
            "SELECT id, name, captured_at FROM frames WHERE source = ? AND captured_at > ? AND captured_at < ? "
            "ORDER BY ABS(captured_at - ?), id LIMIT 1",
            (source, at - within, at + within, at),
        )
        return tuple(rows[0]) if rows else None

    def leased_frames(self) -> int:
        """Return how many frames may not be evicted: leased by a round, or kept for a condition."""
        return int(self._select(f"SELECT COUNT(*) FROM ({STAYING})")[0][0])

    def kept(self) -> dict[int, int]:
        """Return the frames that eviction does not take, each with the condition that it is kept for."""
        return {row["frame"]: row["condition"] for row in self._select("SELECT frame, condition FROM kept")}

    def leases(self) -> list[int]:
        """Return the rounds that lease frames."""
        return [row["round"] for row in self._select("SELECT DISTINCT round FROM leases ORDER BY round")]

    def counts(self) -> CatalogCounts:
        """Return totals, all of one moment."""
        with self.reading() as connection:
            return count_all(connection)

    def frames_and_held(self) -> tuple[int, int]:
        """Return how many frames the buffer holds, and how many of them are held out."""
        ((frames, held),) = self._select("SELECT COUNT(*), COALESCE(SUM(holdout), 0) FROM frames")
        return frames, held

    def backup(self, target: Path) -> None:
        """Write the catalog of this moment to `target`, which must not exist; not fsynced."""
        with self._lock, catalog_schema.translated(self.path), closing(sqlite3.connect(target)) as copy:
            self._connection.backup(copy)

    def vacuum(self) -> None:
        """Return the space of removed rows to the disk. Raises OSError(ENOSPC), DurabilityLost."""
        with self._lock, catalog_schema.translated(self.path, writing=True):
            self._connection.execute("VACUUM")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a durable write transaction. Raises OSError(ENOSPC) on a full disk, DurabilityLost on a failing one.

        DurabilityLost is final for every thread and every write: this catalog accepts nothing more.
        """
        if not self.writable:
            raise StorageError(f"{self.path}: opened for reading only")
        with self._lock:
            if self._failed is not None:
                raise DurabilityLost(f"{self._failed}; no more data is written to it") from self._failed
            try:
                with catalog_schema.transaction(self._connection, self.path) as connection:
                    yield connection
            except DurabilityLost as error:
                self._failed = error
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Run several statements that see one moment of the catalog."""
        with self._lock, catalog_schema.translated(self.path):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    def _select(self, statement: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        with self._lock, catalog_schema.translated(self.path):
            return self._connection.execute(statement, values).fetchall()


def count_all(connection: sqlite3.Connection) -> CatalogCounts:
    """Return totals; inside `Catalog.reading` together with other reads."""
    frames, holdout, last = connection.execute(
        "SELECT COUNT(*), COALESCE(SUM(holdout), 0), MAX(committed_at) FROM frames"
    ).fetchone()
    committed = connection.execute(NEWEST_ID).fetchone()[0]
    states = connection.execute("SELECT state, reason, COUNT(*) FROM files GROUP BY state, reason").fetchall()
    return CatalogCounts(
        frames=frames,
        holdout=holdout,
        committed_total=committed,
        evicted_total=committed - frames,
        duplicates=sum(count for state, _, count in states if state == "duplicate"),
        refused={reason: count for state, reason, count in states if state == "refused"},
        skipped={reason: count for state, reason, count in states if state == "skipped"},
        last_committed_at=last,
    )


def note_file(
    connection: sqlite3.Connection, file: FileFact, state: str, digest: str | None, reason: str = "", detail: str = ""
) -> None:
    """Write the state of a file, replacing the state of its path; inside a transaction.

    The file of a frame stays `committed` when only its mtime changed, although its content is known by then.
    """
    connection.execute(
        "INSERT INTO files (path, size, mtime_ns, state, reason, detail, digest, at, changed_ns) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns, "
        "changed_ns = excluded.changed_ns, "
        "reason = excluded.reason, detail = excluded.detail, digest = excluded.digest, at = excluded.at, state = CASE "
        "WHEN state = 'committed' AND excluded.state = 'duplicate' AND digest = excluded.digest THEN 'committed' "
        "ELSE excluded.state END",
        (file.path, file.size, file.mtime_ns, state, reason, as_text(detail), digest, time.time(), file.changed_ns),
    )


def _key(file: FileFact) -> tuple[str, int, int]:
    return file.path, file.size, file.mtime_ns


def to_record(row: sqlite3.Row) -> FrameRecord:
    """Convert a row of `frames` to a record."""
    return FrameRecord(**(dict(row) | {"holdout": bool(row["holdout"])}))
