"""The buffer of target frames: pixels in zarr slots, the catalog decides. `frame_writer.py` writes it."""

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from configs.buffer import BufferSettings
from storage.buffer import files as buffer_files
from storage.buffer.catalog import Catalog, to_record
from storage.buffer.catalog_records import FrameRecord
from storage.buffer.frame_writer import FrameWriter, HoldoutRule, NewFrame, Packed, is_holdout
from storage.buffer.observations import read_embeddings
from storage.errors import CorruptBuffer, FrameEvicted, StorageError
from storage.eviction.build import build_eviction
from storage.layout import StateLayout
from storage.media.images import FittedFrame, crc32_of

__all__ = ["FrameBuffer", "FrameRecord", "HoldoutRule", "NewFrame", "Packed", "is_holdout"]


class FrameBuffer:
    """The frame buffer of a state directory. One process writes; any number read meanwhile."""

    catalog: Catalog
    """The catalog: committed frames, and refused files with their reasons."""

    def __init__(self, layout: StateLayout, settings: BufferSettings, *, writable: bool) -> None:
        self._layout = layout
        self._writing = threading.RLock()
        with ExitStack() as opened:
            if writable:
                opened.enter_context(buffer_files.claim(layout))
            self._array = buffer_files.open_array(layout, settings, writable=writable)
            self.catalog = Catalog.open(layout.catalog, writable=writable)
            opened.callback(self.catalog.close)
            self._by_content = HoldoutRule(settings.holdout_fraction)
            self._writer: FrameWriter | None = None
            if writable:
                policy = build_eviction(settings, partial(read_embeddings, layout))
                self._writer = FrameWriter(self._array, self.catalog, settings, policy)
            self._resources = opened.pop_all()

    @classmethod
    def open(cls, layout: StateLayout, settings: BufferSettings, *, writable: bool) -> Self:
        """Open the buffer; a writer creates it if it is missing and removes uncommitted leftovers of a crash.

        A smaller `capacity_frames` than before takes effect with the next append. Raises
        BufferMismatch when frame or tile size differ from those on disk, AlreadyRunning when another process writes,
        StorageError when a reader finds no buffer, CorruptBuffer when its files do not belong together.
        """
        return cls(layout, settings, writable=writable)

    def close(self) -> None:
        """Close files and release the writer's lock."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(
        self, frames: Sequence[NewFrame], *, grow: bool = True, holdout: HoldoutRule | None = None
    ) -> list[FrameRecord]:
        """Commit frames durably; return the records of the committed ones.

        `holdout` says which are held out; by default `buffer.holdout_fraction` alone does.

        Content that was ever committed, or that comes twice in `frames`, is recorded as a duplicate and not stored.
        When the buffer is full (`capacity_frames`, `max_bytes`, `max_source_share`), the policy `eviction` evicts
        frames that no round leases. A new frame may be among them: it then counts as committed and evicted, and its
        record has the slot `frame_writer.NOT_KEPT`. Without `grow` at least as many bytes leave as come. `frames` is
        one commit, whole or not at all, unless it exceeds the spare slots (`frame_writer.SPARE_SLOTS`), the slots that
        are not leased, or the spare bytes; then it is several commits, in order.

        Raises BufferFull when leases keep too many frames, OSError (ENOSPC and the like) when the disk refuses, or when
        nothing can leave and the buffer must not grow. Then nothing of the group is kept, and the same call may be
        repeated. DurabilityLost is final: this buffer then refuses every further append.
        """
        if self._writer is None:
            raise StorageError(f"{self._layout.buffer}: opened for reading only")
        with self._writing:
            return self._writer.append(frames, holdout or self._by_content, grow=grow)

    def pack(self, frame: FittedFrame) -> Packed:
        """Pack a frame for `append`; may be called from any thread. Raises ValueError for one of another size."""
        return Packed(self._array.pack(frame.pixels), crc32_of(frame.pixels))

    def read(self, record: FrameRecord) -> NDArray[np.uint8]:
        """Return the pixels of a frame, [H, W, 3] RGB.

        Raises CorruptBuffer when they do not match their checksum, FrameEvicted when the frame was evicted.
        """
        with self._explained(record):
            pixels = self._array.read(record.slot)
            if crc32_of(pixels) != record.crc32:
                raise CorruptBuffer(f"{self._array.shard_path(record.slot)}: pixels do not match their checksum")
        return pixels

    def read_crop(self, record: FrameRecord, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """Return a part of a frame, [height, width, 3]; reads only the tiles it touches, each with its own checksum.

        Raises ValueError for a crop that leaves the frame, and what `read` raises.
        """
        with self._explained(record):
            pixels = self._array.read_crop(record.slot, top, left, height, width)
        if not self.catalog.holds(record):  # then the slot may already hold another frame
            raise _evicted(record)
        return pixels

    def records(self, *, ids: Collection[int] | None = None, holdout: bool | None = None) -> list[FrameRecord]:
        """Return committed frames in commit order; only those of `ids` and of the slice `holdout`, where given."""
        return self.catalog.records(ids=ids, holdout=holdout)

    def lease(self, round: int, limit: int | None = None) -> list[FrameRecord]:
        """Protect the frames of this moment (the newest `limit`, if given) from eviction until `release`.

        The lease is durable and outlives the process. Leasing again for the same round adds to its lease. Returns all
        frames of the lease, in commit order.
        """
        with self._writing, self.catalog.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO leases (round, frame) SELECT ?, id FROM frames ORDER BY id DESC LIMIT ?",
                (round, -1 if limit is None else limit),
            )
            rows = connection.execute(
                "SELECT frames.* FROM frames JOIN leases ON frame = id WHERE round = ? ORDER BY id", (round,)
            ).fetchall()
        return [to_record(row) for row in rows]

    def release(self, round: int) -> None:
        """Release the frames of a round; it is no error when it leases none."""
        with self._writing, self.catalog.transaction() as connection:
            connection.execute("DELETE FROM leases WHERE round = ?", (round,))

    def leases(self) -> list[int]:
        """Return the rounds that lease frames. At the start of the daemon these are rounds that a crash interrupted."""
        return self.catalog.leases()

    def keep(self, frames: Mapping[int, int]) -> None:
        """Let eviction spare exactly these frames from now on, each for its condition; others may leave again.

        A frame that is not in the buffer any more is omitted.
        """
        with self._writing, self.catalog.transaction() as connection:
            connection.execute("DELETE FROM kept")
            connection.executemany(
                "INSERT INTO kept (frame, condition) SELECT id, ? FROM frames WHERE id = ?",
                [(condition, frame) for frame, condition in frames.items()],
            )

    @contextmanager
    def _explained(self, record: FrameRecord) -> Iterator[None]:
        """Say why a frame could not be read: it was evicted meanwhile, or its bytes are damaged."""
        try:
            yield
        except CorruptBuffer as error:
            if not self.catalog.holds(record):
                raise _evicted(record) from error
            raise CorruptBuffer(f"frame {record.id} ({record.name}): {error}") from error


class BrokenBuffer(FrameBuffer):
    """A buffer that cannot be opened: every use of it raises StorageError with the reason."""

    def __init__(self, layout: StateLayout, reason: str) -> None:
        self._layout, self._writing, self._writer, self._resources = layout, threading.RLock(), None, ExitStack()
        self.catalog = Catalog(layout.catalog, writable=True, broken=reason)


def _evicted(record: FrameRecord) -> FrameEvicted:
    return FrameEvicted(f"frame {record.id} ({record.name}) was evicted from the buffer")
