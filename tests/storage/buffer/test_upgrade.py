"""A buffer of the mfmd before conditions (catalog schema 3, observations format 1) is upgraded; no frame is lost."""

import sqlite3
from contextlib import closing

import pytest

from storage.buffer.catalog import Catalog
from storage.buffer.frames import FrameBuffer
from storage.buffer.observations import Observations
from storage.checking import check_state, repair_state
from storage.directory.upgrade import prepare
from storage.errors import BufferMismatch, StorageError

CATALOG_3 = """
CREATE TABLE frames (
  id INTEGER PRIMARY KEY AUTOINCREMENT, slot INTEGER NOT NULL UNIQUE, digest TEXT NOT NULL UNIQUE, name TEXT NOT NULL,
  captured_at REAL NOT NULL, committed_at REAL NOT NULL, source_height INTEGER NOT NULL, source_width INTEGER NOT NULL,
  valid_height INTEGER NOT NULL, valid_width INTEGER NOT NULL, crc32 INTEGER NOT NULL, holdout INTEGER NOT NULL,
  source TEXT NOT NULL DEFAULT '', phash TEXT NOT NULL DEFAULT ''
);
CREATE INDEX frames_by_source ON frames (source, id);
CREATE INDEX frames_by_capture ON frames (source, captured_at);
CREATE TABLE digests (digest TEXT PRIMARY KEY, frame INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
  path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('committed', 'duplicate', 'refused', 'skipped')),
  reason TEXT NOT NULL, detail TEXT NOT NULL, digest TEXT, at REAL NOT NULL, changed_ns INTEGER
) WITHOUT ROWID;
CREATE INDEX files_by_state ON files (state, reason);
CREATE TABLE leases (
  round INTEGER NOT NULL, frame INTEGER NOT NULL REFERENCES frames (id), PRIMARY KEY (round, frame)
) WITHOUT ROWID;
CREATE INDEX leases_by_frame ON leases (frame);
PRAGMA user_version = 3;
"""
OBSERVATIONS_1 = """
CREATE TABLE observations (
  frame INTEGER PRIMARY KEY, version INTEGER NOT NULL, released INTEGER NOT NULL, at REAL NOT NULL,
  entropy REAL NOT NULL, confidence REAL NOT NULL, area BLOB NOT NULL, embedding BLOB NOT NULL
) STRICT;
INSERT INTO observations VALUES (1, 1, 1, 5.0, 0.5, 0.9, x'0000803f', x'0000803f');
PRAGMA user_version = 1;
"""


@pytest.fixture
def old(layout, small, new_frame):
    """A buffer with three frames, as the mfmd before conditions left it."""
    with FrameBuffer.open(layout, small, writable=True) as buffer:
        buffer.append([new_frame(number) for number in range(3)])
    today = layout.catalog.with_name("today")
    with closing(sqlite3.connect(layout.catalog)) as connection:
        connection.execute("VACUUM INTO ?", (str(today),))
    for suffix in ("", "-wal", "-shm"):
        layout.catalog.with_name(layout.catalog.name + suffix).unlink(missing_ok=True)
    with closing(sqlite3.connect(layout.catalog, isolation_level=None)) as connection:
        connection.executescript(CATALOG_3)
        connection.execute("ATTACH ? AS today", (str(today),))
        connection.execute("ALTER TABLE today.frames DROP COLUMN resample")
        for table in ("frames", "digests", "files"):
            connection.execute(f"INSERT INTO {table} SELECT * FROM today.{table}")
    today.unlink()
    with closing(sqlite3.connect(layout.observations)) as connection:
        connection.executescript(OBSERVATIONS_1)
    return layout


def test_the_next_start_upgrades_it(old, small) -> None:
    with pytest.raises(BufferMismatch, match="schema 3"):
        Catalog.open(old.catalog, writable=False)
    with pytest.raises(StorageError, match="format 1 of an older mfmd"):
        Observations.open(old.observations, writable=False)
    with FrameBuffer.open(old, small, writable=True) as buffer:
        assert [(record.id, record.resample) for record in buffer.records()] == [(1, ""), (2, ""), (3, "")]
        buffer.keep({2: 1})
        assert buffer.catalog.kept() == {2: 1}
    with Observations.open(old.observations, writable=True) as observations:
        assert observations.observed() == set(), "every frame is observed again, for its style"
        assert observations.source_styles(1) == []
    assert check_state(old, read_data=True) == []


def test_the_start_upgrades_both_also_where_nothing_observes(old) -> None:
    assert prepare(old) == ["databases", "filters"]
    with closing(Catalog.open(old.catalog, writable=False)) as catalog:
        assert [record.id for record in catalog.records()] == [1, 2, 3]
    with Observations.open(old.observations, writable=False) as observations:
        assert observations.observed() == set()


def test_so_does_a_repair(old) -> None:
    assert "catalog_schema" in {problem.code for problem in check_state(old)}
    assert repair_state(old, read_data=True).left == []
    with closing(Catalog.open(old.catalog, writable=False)) as catalog:
        assert [record.id for record in catalog.records()] == [1, 2, 3] and catalog.kept() == {}
