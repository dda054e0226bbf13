"""Write frames into the buffer and remove them, so that a crash at any point shows whole groups only.

Order of a commit: write the shards to slots that no committed row names, fsync the files and their directory, then ONE
SQLite transaction inserts the new rows and deletes the evicted ones; only after it their shards are removed.
"""

import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

from configs.buffer import BufferSettings
from storage import durable
from storage.buffer.catalog import Catalog, note_file
from storage.buffer.catalog_records import FileFact, FrameRecord
from storage.buffer.eviction_plan import EvictionPlan, EvictionPlanner, ShardSizes
from storage.buffer.pixel_array import PixelArray
from storage.errors import CorruptBuffer, DurabilityLost
from storage.eviction.policy import Eviction, Held
from storage.failpoints import step
from storage.media.images import FittedFrame, crc32_of

SPARE_SLOTS = 32
"""Slots beyond the capacity, and so the most frames in one commit; fewer for a buffer of fewer frames."""
NOT_KEPT = -1
"""Slot of a frame that was committed and evicted in the same commit."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Pixels in their form on the disk; packed in the decoding thread, because packing takes longer than writing."""

    shard: bytes
    """Result of `PixelArray.pack`."""
    crc32: int
    """CRC-32 of the pixels."""


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
    packed: Packed | None = None
    """Result of `FrameBuffer.pack`, if it was called beforehand."""


def is_holdout(digest: str, fraction: float) -> bool:
    """Return whether an image is held out: a fixed choice by content, equal in every process and run."""
    return int(digest[:8], 16) / 2**32 < fraction


@dataclass(frozen=True, slots=True)
class HoldoutRule:
    """Which frames are held out: those that their content chooses, and more while a small buffer has too few."""

    fraction: float
    """Share chosen by content (0-1); 0 holds nothing out."""
    least: int = 0
    """Held-out frames that a buffer of `within` frames must have, but at most half of its frames."""
    within: int = 1
    """Frames."""

    def holds(self, digest: str, frames: int, held: int) -> bool:
        """Return whether an image is held out as one of `frames`, of which `held` are; decided once, for good."""
        wanted = min(self.least, self.least * frames // self.within, frames // 2)
        return is_holdout(digest, self.fraction) or (self.fraction > 0.0 and held < wanted)


def group_frames(settings: BufferSettings) -> int:
    """Return the most frames in one commit."""
    return min(SPARE_SLOTS, settings.capacity_frames)


class FrameWriter:
    """The write side of an open buffer; its owner holds the buffer's lock and calls from one thread at a time."""

    def __init__(self, array: PixelArray, catalog: Catalog, settings: BufferSettings, eviction: Eviction) -> None:
        """Take over the buffer: remove what was written but not committed, measure what is there."""
        self._array, self._catalog, self._settings = array, catalog, settings
        self._failed: DurabilityLost | None = None
        self._sizes = ShardSizes(array)
        self._recover()
        self._planner = EvictionPlanner(catalog, settings, eviction, self._sizes)

    def append(self, frames: Sequence[NewFrame], rule: HoldoutRule, *, grow: bool = True) -> list[FrameRecord]:
        """Commit frames in as few groups as slots allow. See `FrameBuffer.append`."""
        if self._failed is not None:
            raise DurabilityLost(f"{self._failed}; this buffer accepts no more frames") from self._failed
        stored: list[FrameRecord] = []
        size = self._planner.group_size(group_frames(self._settings))
        for start in range(0, len(frames), size):
            stored += self._append_group(frames[start : start + size], rule, grow)
        return stored

    def _append_group(self, frames: Sequence[NewFrame], rule: HoldoutRule, grow: bool) -> list[FrameRecord]:
        fresh, doubles = self._sorted_out(frames)
        if fresh and self._planner.too_large(len(fresh)):
            self._shrink()
        coming = [
            Held(number, new.digest, new.source) for number, new in enumerate(fresh, self._catalog.newest_id() + 1)
        ]
        plan = self._planner.plan_for_count(coming)
        written = {seen.id: new for seen, new in zip(coming, fresh, strict=True) if seen.id not in plan.gone}
        slots = dict(zip(written, self._free_slots(len(written)), strict=True))
        try:
            self._write({slots[number]: new for number, new in written.items()})
            self._planner.extend_for_bytes(plan, slots, grow=grow)
            places = [NOT_KEPT if seen.id in plan.gone else slots[seen.id] for seen in coming]
            records = self._records(zip(fresh, places, strict=True), rule)
            records = self._commit(fresh, records, doubles, plan)
        except DurabilityLost as error:
            self._failed = error  # whether the commit reached the disk is unknown: leave every file where it is
            raise
        except BaseException:  # an interrupt may even come between the commit and here: the catalog knows
            self._discard(set(slots.values()) - self._catalog.slots())
            raise
        self._discard([*(frame.slot for frame in plan.victims), *(set(slots.values()) - set(places))])
        return records

    def _shrink(self) -> None:
        """Evict frames without a new one, only after `max_bytes` was lowered. Raises BufferFull."""
        plan = self._planner.plan_for_quota()
        self._commit([], [], [], plan)
        self._discard(frame.slot for frame in plan.victims)

    def _recover(self) -> None:
        """Remove unfinished and uncommitted shards. Raises CorruptBuffer."""
        durable.remove_partials(self._array.folder)
        used, slots = self._catalog.slots(), self._array.shape[0]
        if used and max(used) >= slots:
            raise CorruptBuffer(
                f"{self._array.folder} has {slots} slots, {self._catalog.path} names slot {max(used)}: "
                "they belong to different buffers; restore both from one backup, or remove both"
            )
        self._discard(set(self._array.shard_indices()) - used)

    def _free_slots(self, count: int) -> list[int]:
        """Return slots that no committed row names; read from the catalog each time, because a cache could be wrong."""
        used = self._catalog.slots()
        return list(islice((slot for slot in range(self._array.shape[0]) if slot not in used), count))

    def _sorted_out(self, frames: Sequence[NewFrame]) -> tuple[list[NewFrame], list[NewFrame]]:
        fresh: dict[str, NewFrame] = {}
        doubles = []
        for new in frames:
            if new.digest in fresh or self._catalog.has_digest(new.digest):
                doubles.append(new)
            else:
                fresh[new.digest] = new
        return list(fresh.values()), doubles

    def _write(self, frames: Mapping[int, NewFrame]) -> None:
        """Write shards to the disk, by slot, fsynced."""
        paths = [
            self._array.write(slot, new.frame.pixels)
            if new.packed is None
            else self._array.write_packed(slot, new.packed.shard)
            for slot, new in frames.items()
        ]
        if paths:
            step("frames.written")
            durable.fsync_files(paths)
            step("frames.synced")
            durable.fsync_directory(self._array.folder)
            step("frames.folder_synced")
        self._sizes.note(frames)

    def _records(self, coming: Iterable[tuple[NewFrame, int]], rule: HoldoutRule) -> list[FrameRecord]:
        """Return records of new frames and their slots; each is held out or not with those before it in mind."""
        frames, held = self._catalog.frames_and_held()
        records = []
        for new, slot in coming:
            holdout = rule.holds(new.digest, frames + 1, held)
            frames, held = frames + (slot != NOT_KEPT), held + (holdout and slot != NOT_KEPT)
            records.append(self._record(new, slot, holdout))
        return records

    def _record(self, new: NewFrame, slot: int, holdout: bool) -> FrameRecord:
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
            crc32=crc32_of(new.frame.pixels) if new.packed is None else new.packed.crc32,
            holdout=holdout,
            source=new.source,
            phash=new.phash,
            resample=new.frame.resample,
        )

    def _commit(
        self,
        fresh: Sequence[NewFrame],
        records: Sequence[FrameRecord],
        doubles: Sequence[NewFrame],
        plan: EvictionPlan,
    ) -> list[FrameRecord]:
        """Run the one transaction; return the records with their ids."""
        with self._catalog.transaction() as connection:
            _delete(connection, [frame.id for frame in plan.victims])
            committed = []
            for new, record in zip(fresh, records, strict=True):
                committed.append(_insert(connection, record))
                if record.slot == NOT_KEPT:
                    _delete(connection, [committed[-1].id])
                note_file(connection, new.file, "committed", new.digest)
            for new in doubles:
                note_file(connection, new.file, "duplicate", new.digest)
        return committed

    def _discard(self, slots: Iterable[int]) -> None:
        """Remove shards that no committed row names; not fsynced, because `_recover` removes any that return."""
        for slot in slots:
            self._array.shard_path(slot).unlink(missing_ok=True)
            self._sizes.note([slot])
            step("frames.discarded")


def _delete(connection: sqlite3.Connection, frames: Iterable[int]) -> None:
    connection.executemany("DELETE FROM frames WHERE id = ?", [(frame,) for frame in frames])


def _insert(connection: sqlite3.Connection, record: FrameRecord) -> FrameRecord:
    values = asdict(record)
    del values["id"]
    row = connection.execute(f"INSERT INTO frames ({', '.join(values)}) VALUES (:{', :'.join(values)})", values)
    assert row.lastrowid is not None
    connection.execute("INSERT INTO digests (digest, frame) VALUES (?, ?)", (record.digest, row.lastrowid))
    return replace(record, id=row.lastrowid)
