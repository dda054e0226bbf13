"""Remove frames with damaged pixels, so that their files are ingested again, and record them in a journal.

buffer/lost.jsonl      one line for each committed frame whose pixels could no longer be read
"""

from contextlib import closing

from storage import durable
from storage.buffer.catalog import Catalog
from storage.buffer.catalog_records import FrameRecord
from storage.durable.record import Record, lines_of, parsed
from storage.layout import StateLayout

JOURNAL = "lost.jsonl"


class LostFrame(Record):
    """One line of `lost.jsonl`."""

    at: float
    """Unix time of the removal (seconds)."""
    frame: int
    """Its number; never used again."""
    digest: str
    """Hex SHA-256 of the file it came from."""
    name: str
    """Path of that file, relative to the drop folder."""
    reason: str
    """What was wrong with its pixels."""


def give_up(layout: StateLayout, record: FrameRecord, reason: str, at: float) -> None:
    """Record a frame as lost, then remove it and the record that its file was ingested.

    The file is ingested again, as a new frame, if it is still in the drop folder. Only for the buffer's one writer.
    """
    line = LostFrame(at=at, frame=record.id, digest=record.digest, name=record.name, reason=reason)
    durable.append_line(layout.buffer / JOURNAL, line.model_dump_json())
    with closing(Catalog.open(layout.catalog, writable=True)) as catalog, catalog.transaction() as connection:
        connection.execute("DELETE FROM leases WHERE frame = ?", (record.id,))
        connection.execute("DELETE FROM frames WHERE id = ?", (record.id,))
        connection.execute("DELETE FROM digests WHERE digest = ?", (record.digest,))
        stored = "digest = ? AND state IN ('committed', 'duplicate')"
        connection.execute(f"DELETE FROM files WHERE {stored}", (record.digest,))


def lost_frames(layout: StateLayout) -> list[LostFrame]:
    """Return every removed frame, oldest first; a line that a crash truncated is omitted."""
    path = layout.buffer / JOURNAL
    return list(parsed(lines_of(path), LostFrame, path))
