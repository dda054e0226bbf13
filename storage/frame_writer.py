"""How frames get into the buffer and out of it, so that a crash at any point shows whole groups only.

Order of a commit: write the shards, fsync the files and their directory, then ONE SQLite transaction.

Slots: the array has `SPARE_SLOTS` more slots than the buffer has frames. New frames are always written to slots that
no committed row points at; the rows that make room for them are deleted in the same transaction that commits the new
ones, and only after it are their shards removed and their slots free. So the old frames are whole until the very
moment the new ones are, and a disk that is full evicts nothing.
"""

import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice

import numpy as np

from configs.settings import BufferSettings
from storage import durable
from storage.catalog import Catalog, FileFact, FrameRecord, note_file
from storage.errors import BufferFull, CorruptBuffer, DurabilityLost
from storage.images import FittedFrame, crc32_of
from storage.pixel_array import PixelArray

SPARE_SLOTS = 32
"""Slots beyond the capacity, and so the most frames in one commit; fewer for a buffer of fewer frames."""


@dataclass(frozen=True, slots=True)
class NewFrame:
    """A decoded image on its way into the buffer."""

    file: FileFact
    """The file it came from."""
    digest: str
    """Hex SHA-256 of that file."""
    captured_at: float
    """Unix time (seconds)."""
    source_height: int
    """Height of the image in the file (pixels)."""
    source_width: int
    """Width of the image in the file (pixels)."""
    frame: FittedFrame
    """Its pixels at frame size."""
    source: str = ""
    """Source label (camera); empty when there is none."""
    phash: str = ""
    """Perceptual hash, 16 hex digits; empty when it was not computed."""


def is_holdout(digest: str, fraction: float) -> bool:
    """Whether an image is held out from training: a fixed choice by content, the same in every process and run."""
    return int(digest[:8], 16) / 2**32 < fraction


def group_frames(settings: BufferSettings) -> int:
    """Most frames in one commit."""
    return min(SPARE_SLOTS, settings.capacity_frames)


class FrameWriter:
    """The write side of an open buffer; its owner holds the buffer's lock and calls from one thread at a time."""

    def __init__(self, array: PixelArray, catalog: Catalog, settings: BufferSettings) -> None:
        """Take over the buffer: removes what was written and never committed."""
        self._array, self._catalog, self._settings = array, catalog, settings
        self._failed: DurabilityLost | None = None
        self._recover()

    def append(self, frames: Sequence[NewFrame]) -> list[FrameRecord]:
        """Commit frames in as few groups as slots allow. See `FrameBuffer.append`."""
        self._check(frames)
        room = self._settings.capacity_frames - self._catalog.leased_frames()
        size = max(1, min(group_frames(self._settings), room))
        stored: list[FrameRecord] = []
        for start in range(0, len(frames), size):
            stored += self._append_group(frames[start : start + size])
        return stored

    def _append_group(self, frames: Sequence[NewFrame]) -> list[FrameRecord]:
        """One group: whole or not at all."""
        fresh, doubles = self._sorted_out(frames)
        victims = self._victims(len(fresh))
        slots = self._free_slots(len(fresh))
        try:
            records = self._write(fresh, slots)
            records = self._commit(fresh, records, doubles, victims)
        except DurabilityLost as error:
            self._failed = error  # whether the commit reached the disk is unknown: leave every file where it is
            raise
        except BaseException:  # an interrupt may even come between the commit and here: the catalog knows
            self._discard(set(slots) - self._catalog.slots())
            raise
        self._discard(record.slot for record in victims)
        return records

    def _recover(self) -> None:
        """Remove unfinished and uncommitted shards. Raises CorruptBuffer."""
        durable.remove_partials(self._array.folder)
        used, slots = self._catalog.slots(), self._array.shape[0]
        if used and max(used) >= slots:
            raise CorruptBuffer(
                f"{self._array.folder} has {slots} slots, {self._catalog.path} speaks of slot {max(used)}: "
                "they are not of one buffer; restore both from one backup, or remove both"
            )
        self._discard(set(self._array.shard_indices()) - used)

    def _free_slots(self, count: int) -> list[int]:
        """Slots that no committed row points at; asked of the catalog each time, for a memory of it could be wrong."""
        used = self._catalog.slots()
        return list(islice((slot for slot in range(self._array.shape[0]) if slot not in used), count))

    def _check(self, frames: Sequence[NewFrame]) -> None:
        if self._failed is not None:
            raise DurabilityLost(f"{self._failed}; this buffer takes nothing more") from self._failed
        expected = (self._settings.height, self._settings.width, 3)
        for new in frames:
            pixels = new.frame.pixels
            if pixels.shape != expected or pixels.dtype != np.uint8:
                raise ValueError(f"{new.file.path}: {pixels.dtype} {pixels.shape}, the buffer holds uint8 {expected}")

    def _sorted_out(self, frames: Sequence[NewFrame]) -> tuple[list[NewFrame], list[NewFrame]]:
        """Frames whose content is new, and the rest."""
        fresh: dict[str, NewFrame] = {}
        doubles = []
        for new in frames:
            if new.digest in fresh or self._catalog.has_digest(new.digest):
                doubles.append(new)
            else:
                fresh[new.digest] = new
        return list(fresh.values()), doubles

    def _victims(self, count: int) -> list[FrameRecord]:
        """The frames that must leave so that `count` new ones fit. Raises BufferFull."""
        frames, capacity = self._catalog.counts().frames, self._settings.capacity_frames
        wanted = max(0, frames + count - capacity) if count else 0
        victims = self._catalog.oldest_unleased(wanted)
        if len(victims) < wanted:
            raise BufferFull(
                f"{self._catalog.path.parent}: no room: rounds {self._catalog.leases()} lease "
                f"{self._catalog.leased_frames()} frames of {capacity}; "
                "wait for the round to end, or raise buffer.capacity_frames"
            )
        return victims

    def _write(self, fresh: Sequence[NewFrame], slots: Sequence[int]) -> list[FrameRecord]:
        """Shards on the disk, fsynced; their records, which are not committed yet."""
        paths = self._array.write_all({slot: new.frame.pixels for slot, new in zip(slots, fresh, strict=True)})
        if paths:
            durable.fsync_files(paths)
            durable.fsync_directory(self._array.folder)
        return [self._record(new, slot) for slot, new in zip(slots, fresh, strict=True)]

    def _record(self, new: NewFrame, slot: int) -> FrameRecord:
        return FrameRecord(
            id=0,
            slot=slot,
            digest=new.digest,
            name=new.file.path,
            captured_at=new.captured_at,
            committed_at=time.time(),
            source_height=new.source_height,
            source_width=new.source_width,
            valid_height=new.frame.valid_height,
            valid_width=new.frame.valid_width,
            crc32=crc32_of(new.frame.pixels),
            holdout=is_holdout(new.digest, self._settings.holdout_fraction),
            source=new.source,
            phash=new.phash,
        )

    def _commit(
        self,
        fresh: Sequence[NewFrame],
        records: Sequence[FrameRecord],
        doubles: Sequence[NewFrame],
        victims: Sequence[FrameRecord],
    ) -> list[FrameRecord]:
        """The one transaction; returns the records with their ids."""
        with self._catalog.transaction() as connection:
            connection.executemany("DELETE FROM frames WHERE id = ?", [(record.id,) for record in victims])
            committed = [_insert(connection, record) for record in records]
            for new in fresh:
                note_file(connection, new.file, "committed", new.digest)
            for new in doubles:
                note_file(connection, new.file, "duplicate", new.digest)
        return committed

    def _discard(self, slots: Iterable[int]) -> None:
        """Remove shards that no committed row points at; not fsynced: `_recover` removes what comes back."""
        for slot in slots:
            self._array.shard_path(slot).unlink(missing_ok=True)


def _insert(connection: sqlite3.Connection, record: FrameRecord) -> FrameRecord:
    names = [field.name for field in fields(FrameRecord) if field.name != "id"]
    marks = ", ".join("?" for _ in names)
    row = connection.execute(
        f"INSERT INTO frames ({', '.join(names)}) VALUES ({marks})",
        [getattr(record, name) for name in names],
    )
    assert row.lastrowid is not None
    connection.execute("INSERT INTO digests (digest, frame) VALUES (?, ?)", (record.digest, row.lastrowid))
    return replace(record, id=row.lastrowid)
