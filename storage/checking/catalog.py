"""Check whether the catalog is intact, its tables agree with each other, and what it describes exists."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from storage.buffer import catalog_schema
from storage.buffer.catalog import Catalog
from storage.buffer.files import ARRAY
from storage.checking.pixels import check_observations, check_pixels
from storage.checking.problem import REPAIR, RESTORE, Problem, Scope, change, newer
from storage.checking.rounds import check_leases
from storage.errors import NewerRecord, StorageError
from storage.layout import StateLayout

NEWEST = "SELECT MAX(frame) AS id FROM (SELECT frame FROM digests UNION SELECT id FROM frames)"
NEVER_COMMITTED = (
    "FROM files WHERE state IN ('committed', 'duplicate') "
    "AND COALESCE(digest, '') NOT IN (SELECT digest FROM digests UNION SELECT digest FROM frames)"
)
INCONSISTENT: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "digest_missing",
        "SELECT id, name FROM frames WHERE digest NOT IN (SELECT digest FROM digests WHERE frame = frames.id)",
        "frame {id} ({name}) has no digest: its file could be ingested a second time",
        ("INSERT OR REPLACE INTO digests (digest, frame) SELECT digest, id FROM frames",),
    ),
    (
        "file_without_frame",
        f"SELECT path AS name, state AS id {NEVER_COMMITTED}",
        "{name} counts as {id}, but its content is not in the buffer: it would never be ingested",
        (f"DELETE {NEVER_COMMITTED}",),
    ),
    (
        "lease_without_frame",
        "SELECT frame AS id, round AS name FROM leases WHERE frame NOT IN (SELECT id FROM frames)",
        "round {name} leases frame {id}, which does not exist",
        ("DELETE FROM leases WHERE frame NOT IN (SELECT id FROM frames)",),
    ),
    (
        "frame_numbers",
        f"SELECT id, '' AS name FROM ({NEWEST}) "
        "WHERE id > COALESCE((SELECT seq FROM sqlite_sequence WHERE name = 'frames'), 0)",
        "frame {id} was used, but the counter of frames is lower: its number would be reused",
        (
            "DELETE FROM sqlite_sequence WHERE name = 'frames'",
            f"INSERT INTO sqlite_sequence (name, seq) SELECT 'frames', id FROM ({NEWEST})",
        ),
    ),
)
"""Code, query, message, statements of repair."""


def check_catalog(scope: Scope) -> Iterator[Problem]:
    """Return problems of the catalog and, when it is intact, of everything that it describes."""
    path = scope.layout.catalog
    try:
        version = _schema_version(path)
        if version == 0:
            yield from _missing(scope.layout)
            return
        if version != catalog_schema.SCHEMA_VERSION:
            yield _other_schema(path, version)
            return
        with closing(Catalog.open(path, writable=False)) as catalog:
            damage = list(_integrity(catalog))
            yield from damage
            for check in () if damage else (_check_tables, check_leases, check_pixels, check_observations):
                yield from check(scope, catalog)
    except NewerRecord as error:
        yield newer(path.parent, error)
    except (StorageError, sqlite3.DatabaseError) as error:
        yield Problem("catalog_damaged", path, str(error), RESTORE)


def _schema_version(path: Path) -> int:
    """Return the schema of the catalog at `path`; 0 when there is none, or a crash left it without tables."""
    if not path.exists():
        return 0
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=catalog_schema.BUSY_SECONDS)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _missing(layout: StateLayout) -> Iterator[Problem]:
    """Report a missing catalog; an array that was never written to is what a crash leaves of a new buffer."""
    if any((layout.frames_zarr / ARRAY).glob("c.*")):
        detail = "missing, but pixels exist: nothing describes them, and the daemon does not start"
        yield Problem("catalog_missing", layout.catalog, detail, RESTORE)


def _other_schema(path: Path, version: int) -> Problem:
    detail = f"schema {version}, this mfmd reads {catalog_schema.SCHEMA_VERSION}"
    if version > catalog_schema.SCHEMA_VERSION:
        return Problem("catalog_schema", path, detail, "use the mfmd version that wrote it")
    remedy = f"{REPAIR}, or the next `mfmd run`, upgrades it"
    return Problem("catalog_schema", path, detail, remedy, partial(change, path))


def _integrity(catalog: Catalog) -> Iterator[Problem]:
    with catalog.reading() as connection:
        lines = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    detail = "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
    if lines == ["ok"]:
        return
    if all("index" in line for line in lines):  # the rows are whole: indexes are made of them
        yield Problem("catalog_index", catalog.path, detail, REPAIR, partial(change, catalog.path, "REINDEX"))
    else:
        yield Problem("catalog_damaged", catalog.path, detail, RESTORE)


def _check_tables(scope: Scope, catalog: Catalog) -> Iterator[Problem]:
    with catalog.reading() as connection:
        for code, finds, says, repairs in INCONSISTENT:
            for row in connection.execute(finds).fetchall():
                detail = says.format(id=row["id"], name=row["name"])
                yield Problem(code, catalog.path, detail, REPAIR, partial(change, catalog.path, *repairs))
