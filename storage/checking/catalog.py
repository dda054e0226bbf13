"""Check whether the catalog is intact, and its tables agree with each other."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from storage.buffer import catalog_schema
from storage.buffer.catalog import SELECT_FRAMES, Catalog, to_record
from storage.buffer.files import ARRAY
from storage.buffer.pixel_array import PixelArray
from storage.checking.problem import Problem, Scope
from storage.errors import StorageError
from storage.layout import StateLayout
from storage.media.images import fitted_size

RESTORE = "stop the daemon and restore the buffer folder from a backup"
REPAIR = "stop mfmd run, then mfmd check --repair"

NEWEST = "SELECT MAX(frame) AS id FROM (SELECT frame FROM digests UNION SELECT id FROM frames)"
INCONSISTENT: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "digest_missing",
        "SELECT id, name FROM frames WHERE digest NOT IN (SELECT digest FROM digests WHERE frame = frames.id)",
        "frame {id} ({name}) has no digest: its file could be ingested a second time",
        ("INSERT OR REPLACE INTO digests (digest, frame) SELECT digest, id FROM frames",),
    ),
    (
        "file_without_frame",
        "SELECT path AS name, state AS id FROM files WHERE state IN ('committed', 'duplicate') "
        "AND COALESCE(digest, '') NOT IN (SELECT digest FROM digests UNION SELECT digest FROM frames)",
        "{name} counts as {id}, but its content is not in the buffer: it would never be ingested",
        (
            "DELETE FROM files WHERE state IN ('committed', 'duplicate') "
            "AND COALESCE(digest, '') NOT IN (SELECT digest FROM digests UNION SELECT digest FROM frames)",
        ),
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
    """Return problems of the catalog file and of its tables."""
    path = scope.layout.catalog
    try:
        version = schema_version(path)
        if version == 0:
            yield from _missing(scope.layout)
            return
        if version != catalog_schema.SCHEMA_VERSION:
            yield _other_schema(path, version)
            return
        with closing(Catalog.open(path, writable=False)) as catalog:
            damage = list(_integrity(catalog))
            yield from damage
            if not damage:
                yield from _inconsistencies(catalog)
                yield from _regions(scope.layout, catalog)
    except (StorageError, sqlite3.DatabaseError) as error:
        yield Problem("catalog_damaged", path, str(error), RESTORE)


def schema_version(path: Path) -> int:
    """Return the schema of the catalog at `path`; 0 when there is none, or a crash left it without tables."""
    if not path.exists():
        return 0
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=catalog_schema.BUSY_SECONDS)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def readable_catalog(layout: StateLayout) -> Catalog | None:
    """Open the catalog for reading; None when it is missing or `check_catalog` says why it cannot be read."""
    try:
        return Catalog.open(layout.catalog, writable=False)
    except StorageError:
        return None


def committed_frames(layout: StateLayout) -> set[int] | None:
    """Return ids of the frames in the buffer; None when `check_catalog` says why they cannot be read."""
    catalog = readable_catalog(layout)
    if catalog is None:
        return None
    with closing(catalog):
        try:
            return {record.id for record in catalog.records()}
        except StorageError:
            return None


def change(path: Path, *statements: str, values: Sequence[object] = ()) -> None:
    """Run statements in one durable transaction, each with the same `values`. Raises StorageError, DurabilityLost."""
    with closing(Catalog.open(path, writable=True)) as catalog, catalog.transaction() as connection:
        for statement in statements:
            connection.execute(statement, values)


def _missing(layout: StateLayout) -> Iterator[Problem]:
    """Report a missing catalog; an array that was never written to is what a crash leaves of a new buffer."""
    if any((layout.frames_zarr / ARRAY).glob("c.*")):
        yield Problem(
            "catalog_missing",
            layout.catalog,
            "missing, but pixels exist: nothing describes them, and the daemon does not start",
            RESTORE,
        )


def _other_schema(path: Path, version: int) -> Problem:
    known = catalog_schema.SCHEMA_VERSION
    older = version < known
    return Problem(
        "catalog_schema",
        path,
        f"schema {version}, this mfmd reads {known}",
        f"{REPAIR}, or the next `mfmd run`, upgrades it" if older else "use the mfmd version that wrote it",
        (lambda: Catalog.open(path, writable=True).close()) if older else None,
    )


def _integrity(catalog: Catalog) -> Iterator[Problem]:
    with catalog.reading() as connection:
        lines = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    if lines == ["ok"]:
        return
    if all("index" in line for line in lines):  # the rows are whole: indexes are made of them
        mend = partial(change, catalog.path, "REINDEX")
        yield Problem("catalog_index", catalog.path, _some(lines), REPAIR, mend)
    else:
        yield Problem("catalog_damaged", catalog.path, _some(lines), RESTORE)


def _inconsistencies(catalog: Catalog) -> Iterator[Problem]:
    with catalog.reading() as connection:
        for code, finds, says, mends in INCONSISTENT:
            mend = partial(change, catalog.path, *mends)
            for row in connection.execute(finds).fetchall():
                detail = says.format(id=row["id"], name=row["name"])
                yield Problem(code, catalog.path, detail, REPAIR, mend)


def _regions(layout: StateLayout, catalog: Catalog) -> Iterator[Problem]:
    """Report valid regions that leave the frame; they follow from the sizes of image and frame."""
    array = _array(layout)
    if array is None:
        return
    height, width = array.shape[1:3]
    with catalog.reading() as connection:
        rows = connection.execute(
            f"{SELECT_FRAMES} WHERE valid_height NOT BETWEEN 1 AND ? OR valid_width NOT BETWEEN 1 AND ?",
            (height, width),
        ).fetchall()
    for record in map(to_record, rows):
        region = fitted_size(record.source_height, record.source_width, height, width)
        yield Problem(
            "valid_region",
            catalog.path,
            f"frame {record.id} ({record.name}): {record.valid_height}x{record.valid_width} pixels are said to be "
            f"image, in a frame of {height}x{width}",
            REPAIR,
            _set_region(catalog.path, record.id, region),
        )


def _set_region(path: Path, frame: int, region: tuple[int, int]) -> Callable[[], None]:
    statement = "UPDATE frames SET valid_height = ?, valid_width = ? WHERE id = ?"
    return partial(change, path, statement, values=(*region, frame))


def _array(layout: StateLayout) -> PixelArray | None:
    """Return the array of frames, or None when `check_pixels` says why not."""
    try:
        return PixelArray(layout.frames_zarr, ARRAY, writable=False)
    except StorageError:
        return None


def _some(lines: list[str]) -> str:
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")
